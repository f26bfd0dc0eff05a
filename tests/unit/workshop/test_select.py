"""Selection: the best that fits, the fewest variants, and a reason for everyone else."""

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from slmops.domain.blueprint import QualityFloor
from slmops.domain.device import Budget, DeviceClass, Objective
from slmops.domain.errors import InvalidInputError, OverBudgetError
from slmops.testing.sample_build import (
    SAMPLE_FIGURES,
    SampleFigures,
    sample_candidate,
)
from slmops.workshop.build_result import Candidate, ClassSelection
from slmops.workshop.feasibility import SelectionRules, excesses_of
from slmops.workshop.ranking import Ranking
from slmops.workshop.select import (
    MERGE_LOSS,
    fewest_variants,
    pareto_front,
    select_variants,
)

RULES = SelectionRules(floor=QualityFloor(), control_kld=0.004)
ANY = DeviceClass(name="any")

FIGURES = st.builds(
    SampleFigures,
    name=st.sampled_from([f"T{n}" for n in range(8)]),
    kld=st.floats(0.001, 0.3),
    mb=st.floats(60, 200),
    decode=st.floats(5, 100),
    same_top1=st.floats(0.6, 0.97),
    eligible=st.booleans(),
    on_reference_grid=st.sampled_from([False, False, False, True]),
)
CANDIDATES = st.lists(
    FIGURES, min_size=1, max_size=8, unique_by=lambda figures: figures.name
)
CLASSES = st.lists(
    st.builds(
        DeviceClass,
        name=st.sampled_from(["a", "b", "c", "d"]),
        objective=st.sampled_from(list(Objective)),
        budget=st.builds(
            Budget,
            disk_mib=st.none() | st.floats(60, 200),
            memory_mib=st.none() | st.floats(150, 400),
            decode_tokens_per_s=st.none() | st.floats(1, 60),
        ),
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda device_class: device_class.name,
)


def made(
    figures: Sequence[SampleFigures], classes: Sequence[DeviceClass] = (ANY,)
) -> list[Candidate]:
    return [sample_candidate(each, classes=classes) for each in figures]


def chosen(selection: Sequence[ClassSelection]) -> list[str]:
    return [each.quantization for each in selection]


def selected(
    figures: Sequence[SampleFigures],
    classes: Sequence[DeviceClass] = (ANY,),
    rules: SelectionRules = RULES,
) -> tuple[ClassSelection, ...]:
    return select_variants(classes, made(figures, classes), rules)


@given(CANDIDATES, CLASSES)
@settings(max_examples=150, deadline=None)
def test_what_is_chosen_fits_and_loses_little_and_all_others_have_a_reason(
    figures: list[SampleFigures], classes: list[DeviceClass]
) -> None:
    candidates = {c.quantization: c for c in made(figures, classes)}
    try:
        selection = selected(figures, classes)
    except OverBudgetError:
        assert any(
            all(excesses_of(c, each, RULES) for c in candidates.values())
            for each in classes
        )
        return
    for each, found in zip(classes, selection, strict=True):
        winner = candidates[found.quantization]
        assert winner.eligible
        assert excesses_of(winner, each, RULES) == ()
        fitting = [c for c in candidates.values() if not excesses_of(c, each, RULES)]
        assert Ranking(each, fitting).loss(winner) <= MERGE_LOSS
        assert {r.quantization for r in found.rejected} == set(candidates) - {
            found.quantization
        }
        assert all(r.reason.strip() for r in found.rejected)
        assert found.reason.strip()
        assert found.violations == ()


@given(CANDIDATES, CLASSES, st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_the_order_of_candidates_does_not_matter(
    figures: list[SampleFigures], classes: list[DeviceClass], seed: int
) -> None:
    shuffled = list(figures)
    random.Random(seed).shuffle(shuffled)
    try:
        expected = chosen(selected(figures, classes))
    except OverBudgetError as error:
        with pytest.raises(OverBudgetError) as again:
            selected(shuffled, classes)
        assert str(again.value) == str(error)
        return
    assert chosen(selected(shuffled, classes)) == expected


@given(CANDIDATES)
@settings(max_examples=100, deadline=None)
def test_nobody_beats_the_pareto_front_and_it_beats_everyone_else(
    figures: list[SampleFigures],
) -> None:
    candidates = made(figures)
    front = pareto_front(candidates, ANY)
    assert front

    costs = Ranking(ANY, candidates).costs

    def beats(one: Candidate, other: Candidate) -> bool:
        pairs = list(zip(costs(one), costs(other), strict=True))
        return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)

    for candidate in candidates:
        beaten = any(beats(other, candidate) for other in candidates)
        assert (candidate in front) is not beaten
        if beaten:
            assert any(beats(other, candidate) for other in front)


@given(CANDIDATES)
@settings(max_examples=60, deadline=None)
def test_a_lone_class_gets_its_best_from_the_pareto_front(
    figures: list[SampleFigures],
) -> None:
    fitting = [c for c in made(figures) if not excesses_of(c, ANY, RULES)]
    assume(fitting)
    (found,) = selected(figures)
    assert found.quantization in {c.quantization for c in pareto_front(fitting, ANY)}


def test_between_equals_in_the_objective_the_smaller_wins() -> None:
    twins = [
        SampleFigures(name="A", kld=0.125, mb=61.0, decode=5.0),
        SampleFigures(name="B", kld=0.125, mb=60.0, decode=5.0),
    ]
    assert chosen(selected(twins)) == ["B"]
    assert chosen(selected(twins[::-1])) == ["B"]


LOSSES = st.dictionaries(
    st.sampled_from("ABCDE"), st.floats(0, MERGE_LOSS), min_size=1, max_size=5
)


@given(st.lists(LOSSES, min_size=1, max_size=4))
@settings(max_examples=150)
def test_no_choice_uses_fewer_variants_or_as_few_with_less_loss(
    options: list[dict[str, float]],
) -> None:
    picks = fewest_variants(options)
    loss = sum(o[name] for name, o in zip(picks, options, strict=True))
    for other in product(*options):
        other_loss = sum(o[name] for name, o in zip(other, options, strict=True))
        assert len(set(picks)) <= len(set(other))
        if len(set(other)) == len(set(picks)):
            assert loss <= other_loss + 1e-12


def test_each_objective_picks_its_own_best() -> None:
    figures = [
        SampleFigures(name="FINE", kld=0.01, mb=150, decode=40),
        SampleFigures(name="FAST", kld=0.10, mb=120, decode=90),
        SampleFigures(name="SMALL", kld=0.12, mb=80, decode=50),
    ]
    for objective, name in (
        (Objective.QUALITY, "FINE"),
        (Objective.SPEED, "FAST"),
        (Objective.SIZE, "SMALL"),
    ):
        found = selected(figures, [replace(ANY, objective=objective)])
        assert chosen(found) == [name]


TWINS = [
    SampleFigures(name="A", kld=0.0500, mb=100),
    SampleFigures(name="B", kld=0.0515, mb=80),
]


def test_classes_share_a_variant_that_costs_either_little() -> None:
    """B is 2.9 % worse than A; the small class can only run B."""
    small = replace(ANY, name="small", budget=Budget(disk_mib=90))
    found = selected(TWINS, [small, ANY])
    assert chosen(found) == ["B", "B"]
    assert "one variant fewer to ship" in found[1].reason
    assert "serves other classes too" in found[1].rejected[0].reason


def test_classes_do_not_share_a_variant_that_costs_one_much() -> None:
    small = replace(ANY, name="small", budget=Budget(disk_mib=90))
    worse = [TWINS[0], replace(TWINS[1], kld=0.06)]
    assert chosen(selected(worse, [small, ANY])) == ["B", "A"]


def test_a_lone_class_is_not_merged_with_anything() -> None:
    assert chosen(selected(TWINS)) == ["A"]


def test_a_dominated_candidate_is_told_by_whom() -> None:
    figures = [
        SampleFigures(name="GOOD", kld=0.01, mb=90, decode=60),
        SampleFigures(name="BAD", kld=0.02, mb=95, decode=50),
    ]
    (found,) = selected(figures)
    assert found.rejected[0].reason.startswith("dominated by GOOD")
    assert found.runner_up == "BAD"


def test_the_references_own_grid_may_win_and_says_that_it_is_flattered() -> None:
    flattered = SampleFigures(
        name="Q4_1", kld=0.0001, mb=60, decode=100, on_reference_grid=True
    )
    (found,) = selected([*SAMPLE_FIGURES, flattered])
    assert found.quantization == "Q4_1"
    assert "; flattered)" in found.reason


def test_nothing_that_fits_names_the_nearest_miss() -> None:
    small = replace(ANY, name="tiny", budget=Budget(disk_mib=82))
    with pytest.raises(OverBudgetError) as caught:
        selected(SAMPLE_FIGURES[:3], [small])
    message = str(caught.value)
    assert message.startswith(
        "class tiny: none of 3 candidates fits; nearest is Q3_K_M"
    )
    assert "disk 89.2 MiB is above the budget 82" in message


def test_below_the_floor_the_choice_carries_what_the_floor_says() -> None:
    bad = [SampleFigures(name="Q2_K", kld=0.9, mb=80, same_top1=0.4)]
    with pytest.raises(OverBudgetError, match="below the quality floor"):
        selected(bad)
    (found,) = selected(bad, rules=replace(RULES, below_floor=True))
    assert len(found.violations) == 2
    assert found.runner_up is None


def test_two_candidates_of_one_name_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="distinct"):
        selected([TWINS[0], TWINS[0]])
