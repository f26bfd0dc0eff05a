"""What a recipe needs that may not be installed, said before anything long begins."""

import importlib.util
from collections.abc import Iterator

from slmops.domain.blueprint import Blueprint
from slmops.domain.errors import InvalidInputError
from slmops.domain.levers import Distill, Finetune, RecipeStep

_TRAINING = ("torch", "transformers", "peft")
_TRAINED: tuple[type, ...] = (Finetune, Distill)


def require_extras(
    blueprint: Blueprint, *, on_ray: bool = False, to_mlflow: bool = False
) -> None:
    """Refuse what would fail hours later for want of a package.

    Args:
        blueprint: what is to be built.
        on_ray: whether its jobs run on a Ray cluster.
        to_mlflow: whether the build is logged to MLflow.

    Raises:
        InvalidInputError: naming what asks for it, the packages, and the extra that
            brings them.
    """
    trained = next(_training(blueprint), None)
    if trained is not None:
        _require(trained, _TRAINING, "train")
    if on_ray:
        _require("executor ray", ("ray",), "ray")
    if to_mlflow:
        _require("--mlflow", ("mlflow",), "mlflow")


def _training(blueprint: Blueprint) -> Iterator[str]:
    """Yield what of a recipe trains, as it is spelled in a blueprint."""
    recipe = blueprint.recipe
    yield from _named("recipe.prepare", recipe.prepare)
    for structure in recipe.structures:
        yield from _named(f"recipe.structures.{structure.name}", structure.steps)
    if recipe.recover is not None:
        yield "recipe.recover"


def _named(where: str, steps: tuple[RecipeStep, ...]) -> Iterator[str]:
    for step in steps:
        if isinstance(step.lever, _TRAINED):
            yield f"{where}: {step.name}"


def _require(what: str, packages: tuple[str, ...], extra: str) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise InvalidInputError(
            f"{what} needs {', '.join(missing)}:"
            f" in slmops' source folder, pip install '.[{extra}]'"
        )
