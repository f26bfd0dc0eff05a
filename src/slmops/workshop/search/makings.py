"""Candidates: every structure in every precision the recipe asks for."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from slmops.domain.blueprint import CONTROL_QUANTIZATION
from slmops.domain.errors import OverBudgetError
from slmops.domain.recipe import MIXED, RecoverPlan, Rounding
from slmops.workshop.artefacts import Making
from slmops.workshop.search.mixes import mixed_makings, stock_assignment
from slmops.workshop.search.structures import Levers, Structure


def candidate_makings(
    levers: Levers, structures: Sequence[Structure]
) -> tuple[Making, ...]:
    """Return all candidates of a build, the 8-bit control first; labels differ.

    Args:
        levers: of the build.
        structures: the base first.

    Raises:
        OverBudgetError: mixes of given sizes are asked for, and none can be so small.
    """
    blueprint = levers.build.blueprint
    found = [_control(structures[0])]
    for structure in structures:
        makings = structure_makings(levers, structure)
        found += [each for each in makings if each.label != CONTROL_QUANTIZATION]
    mixed = blueprint.recipe.mixed
    if mixed is not None and mixed.megabytes and not any(m.assignment for m in found):
        raise OverBudgetError(
            "recipe.mixed.megabytes: no structure can be that small:"
            f" {', '.join(f'{size:g}' for size in mixed.megabytes)}"
        )
    wanted = {making.label for making in found}
    if CONTROL_QUANTIZATION not in blueprint.candidates:
        wanted.discard(CONTROL_QUANTIZATION)
    levers.build.eligible = frozenset(wanted)
    return tuple(found)


def _control(base: Structure) -> Making:
    """Return the control: rounded to nearest, as everybody's 8-bit variant is."""
    return Making(model=base.model, quantization=CONTROL_QUANTIZATION)


def structure_makings(levers: Levers, structure: Structure) -> Iterator[Making]:
    """Yield a structure's candidates, in a fixed order; some need steps before them."""
    blueprint = levers.build.blueprint
    plain = Making(
        model=structure.model,
        quantization=CONTROL_QUANTIZATION,
        structure=structure.name,
        steps=structure.steps,
        token_map=structure.token_map,
    )
    calibration = blueprint.recipe.calibration
    if calibration is not None:
        plain = replace(
            plain,
            calibration=levers.text,
            statistics=levers.statistics(structure.model),
            rounding=calibration.rounding,
        )
    found = [
        replace(plain, quantization=name)
        for name in dict.fromkeys(blueprint.candidates)
    ]
    if blueprint.recipe.mixed is not None:
        found += mixed_makings(levers, structure, plain, blueprint.recipe.mixed)
    for making in found:
        yield making
        if _is_recovered(making, blueprint.recipe.recover):
            yield _recovered(levers, structure, making)


def _is_recovered(making: Making, plan: RecoverPlan | None) -> bool:
    if plan is None:
        return False
    mixed = making.assignment is not None and MIXED in plan.candidates
    return mixed or making.quantization in plan.candidates


def _recovered(levers: Levers, structure: Structure, making: Making) -> Making:
    """Return it trained for its own types: rounded to nearest, as it was in training."""
    assignment = making.assignment or stock_assignment(levers, making)
    return replace(
        making,
        model=levers.recovered(structure, assignment),
        assignment=assignment,
        statistics=None,
        calibration=None,
        rounding=Rounding.NEAREST,
        recovered=True,
    )
