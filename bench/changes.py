"""Blueprints that differ from one another by one key: what a rebuild is timed on.

Both bases have six candidates and the three classes of `slmops init`, everything else as
written there. `plain` tries quantizations alone: the shortest cold build, so the hardest
to be a small share of. `calibrated` reads a text for an importance matrix first, and
chooses a mix tensor by tensor.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from slmops.domain.blueprint import Blueprint
from slmops.domain.device import DeviceClass
from slmops.domain.recipe import CalibrationPlan, MixedPlan, Recipe, Rounding
from slmops.workshop.text_sources import golden_prompts

KINDS = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "Q3_K_M")
ONE_MORE = "Q2_K"
PROMPTS = "prompts.txt"
"""The built-in golden prompts and one more, beside the blueprint."""
_LESS_DISK_MIB = 95
"""Too little for what a class with `slmops init`'s budget is given."""

Blueprints = Mapping[str, Blueprint]


def plain(blueprint: Blueprint, folder: Path) -> Blueprints:
    """Return what is changed → the blueprint; the first is what others differ from.

    Args:
        blueprint: of `slmops init`.
        folder: where it lies; a list of golden prompts is written there.
    """
    base = replace(blueprint, candidates=KINDS)
    prompts = golden_prompts(base.golden, folder)
    lines = "\n".join([*prompts, "Name the largest planet."])
    (folder / PROMPTS).write_text(lines, encoding="utf-8")
    first, *others = base.classes
    narrow = replace(first.budget, disk_mib=_LESS_DISK_MIB)
    looser = replace(first.budget, first_token_ms=5000)

    def with_first(changed: DeviceClass) -> Blueprint:
        return replace(base, classes=(changed, *others))

    measuring, quality = base.evaluation, base.quality
    return {
        "cold": base,
        "nothing": base,
        "budget, same choice": with_first(replace(first, budget=looser)),
        "budget, new choice": with_first(replace(first, budget=narrow)),
        "objective": replace(
            base,
            classes=(first, replace(others[0], objective=first.objective), *others[1:]),
        ),
        "threshold": replace(base, quality=replace(quality, min_same_top1=0.72)),
        "golden prompts": replace(base, golden=replace(base.golden, prompts=PROMPTS)),
        "one candidate less": replace(base, candidates=KINDS[:-1]),
        "one candidate more": replace(base, candidates=(*KINDS, ONE_MORE)),
        "context of a class": with_first(replace(first, context_tokens=640)),
        "speed runs": replace(base, evaluation=replace(measuring, speed_runs=6)),
        "scored tokens": replace(base, evaluation=replace(measuring, max_tokens=1024)),
    }


def calibrated(blueprint: Blueprint, folder: Path) -> Blueprints:
    """Return the same for a recipe; see `plain`."""
    del folder
    recipe = Recipe(
        calibration=CalibrationPlan(tokens=2048, rounding=Rounding.NEAREST),
        mixed=MixedPlan(megabytes=(92,), tokens=128),
    )
    base = replace(blueprint, candidates=KINDS[:-1], recipe=recipe)
    mixed = MixedPlan(megabytes=(92, 98), tokens=128)
    tokens = CalibrationPlan(tokens=1024, rounding=Rounding.NEAREST)
    return {
        "cold, recipe": base,
        "nothing": base,
        "seed": replace(base, recipe=replace(recipe, seed=1)),
        "one mix more": replace(base, recipe=replace(recipe, mixed=mixed)),
        "calibration tokens": replace(base, recipe=replace(recipe, calibration=tokens)),
    }


Changes = Callable[[Blueprint, Path], Blueprints]
BASES: Mapping[str, Changes] = {"plain": plain, "calibrated": calibrated}
