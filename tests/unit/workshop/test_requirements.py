"""What a recipe needs and is not installed is said before anything begins."""

import sys
from pathlib import Path

import pytest

from slmops.domain.blueprint import Blueprint
from slmops.domain.device import DeviceClass
from slmops.domain.errors import InvalidInputError
from slmops.domain.levers import Distill, Finetune, PruneDepth, RecipeStep
from slmops.domain.recipe import Recipe, RecoverPlan, StructurePlan
from slmops.registry.workspace import Workspace
from slmops.testing.tiny_gguf import write_tiny_llama
from slmops.workshop.models import import_model
from slmops.workshop.pipeline import run_build
from slmops.workshop.requirements import require_extras


def blueprint(recipe: Recipe) -> Blueprint:
    return Blueprint(
        name="some",
        model="tiny-llama",
        classes=(DeviceClass(name="any", context_tokens=64),),
        candidates=("Q4_0",),
        recipe=recipe,
    )


def structure(step: RecipeStep) -> Recipe:
    return Recipe(structures=(StructurePlan(name="slim", steps=(step,)),))


TRAINED = {
    "recipe.prepare: finetune": Recipe(
        prepare=(RecipeStep(finetune=Finetune(data="rows.jsonl")),)
    ),
    "recipe.structures.slim: distill": structure(RecipeStep(distill=Distill(steps=5))),
    "recipe.recover": Recipe(recover=RecoverPlan(candidates=("Q4_0",))),
}


@pytest.mark.parametrize("what", TRAINED)
def test_a_recipe_that_trains_names_the_extra_it_lacks(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_extras(blueprint(TRAINED[what]))
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InvalidInputError) as caught:
        require_extras(blueprint(TRAINED[what]))
    message = str(caught.value)
    assert message.startswith(f"{what.partition(':')[0]}")
    assert message.endswith(
        "needs peft: in slmops' source folder, pip install '.[train]'"
    )


def test_a_recipe_that_does_not_train_needs_none_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("torch", "peft", "transformers", "ray", "mlflow"):
        monkeypatch.setitem(sys.modules, name, None)
    require_extras(blueprint(structure(RecipeStep(prune_depth=PruneDepth(layers=1)))))


@pytest.mark.parametrize("extra", ["ray", "mlflow"])
def test_where_a_build_runs_and_is_logged_needs_its_extra(
    extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, extra, None)
    wanted = {"on_ray": extra == "ray", "to_mlflow": extra == "mlflow"}
    with pytest.raises(InvalidInputError, match=rf"'\.\[{extra}\]'"):
        require_extras(blueprint(Recipe()), **wanted)


def test_a_build_is_refused_before_it_computes_anything(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_model(str(write_tiny_llama(tmp_path / "tiny.gguf")), workspace)
    monkeypatch.setitem(sys.modules, "torch", None)
    wanted = blueprint(TRAINED["recipe.prepare: finetune"])
    with pytest.raises(InvalidInputError, match=r"pip install '\.\[train\]'"):
        run_build(wanted, workspace, folder=tmp_path)
    assert not workspace.steps.exists()
