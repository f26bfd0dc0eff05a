"""Recipes: what they stand for, and what they refuse."""

from collections.abc import Callable

import pytest

from slmops.domain.errors import InvalidInputError
from slmops.domain.levers import (
    Distill,
    Finetune,
    PruneDepth,
    PruneWidth,
    RecipeStep,
    Sparsify,
    SparsityPattern,
    TrimVocabulary,
)
from slmops.domain.recipe import (
    CalibrationPlan,
    MixedPlan,
    Recipe,
    RecoverPlan,
    StructurePlan,
)

DEPTH = RecipeStep(prune_depth=PruneDepth(layers=(20, 24)))
WIDTH = RecipeStep(prune_width=PruneWidth(feed_forward=(1024, 1280), kv_heads=2))


def test_a_structure_stands_for_every_combination_of_its_numbers() -> None:
    plan = StructurePlan(name="slim", steps=(DEPTH, WIDTH))
    found = plan.variations()
    assert [each.name for each in found] == ["slim-1", "slim-2", "slim-3", "slim-4"]
    depths = [each.steps[0].lever for each in found]
    widths = [each.steps[1].lever for each in found]
    assert depths == [PruneDepth(layers=n) for n in (20, 20, 24, 24)]
    assert widths == [
        PruneWidth(feed_forward=n, kv_heads=2) for n in (1024, 1280, 1024, 1280)
    ]


def test_a_structure_without_a_choice_keeps_its_name() -> None:
    plan = StructurePlan(
        name="slim", steps=(RecipeStep(prune_depth=PruneDepth(layers=20)),)
    )
    assert plan.variations() == (plan,)


def test_a_step_is_called_by_its_key() -> None:
    assert DEPTH.name == "prune_depth"
    assert DEPTH.lever == PruneDepth(layers=(20, 24))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RecipeStep(), "exactly one of trim_vocabulary"),
        (
            lambda: RecipeStep(
                finetune=Finetune(data="a"), prune_depth=PruneDepth(layers=1)
            ),
            "got 2",
        ),
        (lambda: PruneDepth(layers=()), "must be distinct numbers"),
        (lambda: PruneDepth(layers=(2, 2)), "must be distinct numbers"),
        (lambda: PruneDepth(layers=(2, 0)), "prune_depth.layers must be >= 1, got 0"),
        (lambda: TrimVocabulary(text="a", tokens=255), "must be >= 256"),
        (lambda: PruneWidth(), "needs feed_forward or kv_heads"),
        (lambda: Distill(text="a", data="b"), "one of text, data and prompts"),
        (
            lambda: Sparsify(pattern=SparsityPattern.TWO_OF_FOUR, sparsity=0.6),
            "must be 0.5 with pattern 2:4",
        ),
        (lambda: StructurePlan(name="base", steps=(DEPTH,)), "is the model itself"),
        (lambda: StructurePlan(name="slim", steps=()), "at least one step"),
        (lambda: MixedPlan(megabytes=(0.0,)), "must be > 0"),
        (lambda: Recipe(mixed=MixedPlan()), "needs recipe.calibration"),
        (lambda: Recipe(prepare=(DEPTH,)), "must have one number"),
        (lambda: Recipe(seed=-1), "seed must be >= 0"),
        (
            # slim-1 is also what the first of a search would be called.
            lambda: Recipe(
                structures=(
                    StructurePlan(name="slim", steps=(DEPTH,)),
                    StructurePlan(
                        name="slim-1",
                        steps=(RecipeStep(prune_depth=PruneDepth(layers=2)),),
                    ),
                )
            ),
            "'slim-1' is used twice",
        ),
        (
            lambda: Recipe(
                structures=(StructurePlan(name="a", steps=(DEPTH,)),) * 2,
            ),
            "used twice",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(
    make: Callable[[], object], message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        make()


def test_mixes_go_with_a_calibration_text() -> None:
    recipe = Recipe(mixed=MixedPlan(), calibration=CalibrationPlan())
    assert recipe.search.exhaustive >= 1


@pytest.mark.parametrize(
    ("name", "message"),
    [("Q4_O", "not among the blueprint's"), ("MIXED", "recipe.mixed is not given")],
)
def test_a_recovery_of_what_is_not_tried_is_refused(name: str, message: str) -> None:
    recipe = Recipe(recover=RecoverPlan(candidates=(name,)))
    with pytest.raises(InvalidInputError, match=message):
        recipe.check_recovered(("Q4_0",))
    Recipe(recover=RecoverPlan(candidates=("Q4_0",))).check_recovered(("Q4_0",))
