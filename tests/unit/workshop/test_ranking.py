"""Speeds that timing cannot tell apart are equal, whoever is compared in what order."""

from collections.abc import Sequence
from dataclasses import replace
from random import Random

from hypothesis import assume, given
from hypothesis import strategies as st

from slmops.domain.blueprint import QualityFloor
from slmops.domain.device import Budget, DeviceClass, Objective
from slmops.domain.release import Estimate
from slmops.testing.sample_build import SampleFigures, sample_candidate
from slmops.workshop.build_result import Candidate, ClassSelection
from slmops.workshop.feasibility import SelectionRules
from slmops.workshop.ranking import EPSILON, Ranking
from slmops.workshop.select import select_variants
from slmops.workshop.statistics import bounded_median

TILL = DeviceClass(name="till", objective=Objective.SPEED)
RULES = SelectionRules(floor=QualityFloor(), control_kld=0.004)

Runs = tuple[float, float, float]
"""Slowest, median and fastest run, tokens/s."""
RUNS = st.lists(st.floats(5, 100), min_size=3, max_size=3).map(
    lambda runs: (sorted(runs)[0], sorted(runs)[1], sorted(runs)[2])
)
TIMED = st.dictionaries(
    st.sampled_from("ABCDEFG"),
    st.tuples(st.floats(0.001, 0.1), st.floats(60, 200), RUNS),
    min_size=1,
    max_size=7,
)


def timed(name: str, kld: float, mb: float, runs: Runs) -> Candidate:
    low, value, high = runs
    made = sample_candidate(SampleFigures(name=name, kld=kld, mb=mb), classes=[TILL])
    speed = replace(
        made.card.speed[0],
        decode_tokens_per_s=Estimate(value=value, low=low, high=high),
    )
    return replace(made, card=replace(made.card, speed=(speed,)))


def all_timed(figures: dict[str, tuple[float, float, Runs]]) -> list[Candidate]:
    return [timed(name, *each) for name, each in figures.items()]


def selected(
    candidates: Sequence[Candidate], *classes: DeviceClass
) -> tuple[ClassSelection, ...]:
    return select_variants(classes or (TILL,), candidates, RULES)


@given(TIMED)
def test_the_speed_class_gets_the_most_faithful_of_what_may_be_the_fastest(
    figures: dict[str, tuple[float, float, Runs]],
) -> None:
    candidates = all_timed(figures)
    (found,) = selected(candidates)
    bar = max(runs[0] for _, _, runs in figures.values())
    level = {name: each for name, each in figures.items() if each[2][2] >= bar}
    assert found.quantization in level
    # In the same box of divergence, which is 1 % wide, fewer bytes decide.
    best = min(kld for kld, _, _ in level.values())
    assert figures[found.quantization][0] <= best * (1 + EPSILON) * (1 + 1e-9)


@given(TIMED, st.randoms(use_true_random=False))
def test_neither_choice_nor_reasons_depend_on_the_order(
    figures: dict[str, tuple[float, float, Runs]],
    random: Random,
) -> None:
    candidates = all_timed(figures)
    (found,) = selected(candidates)
    random.shuffle(candidates)
    (again,) = selected(candidates)
    assert again.reason == found.reason
    assert set(again.rejected) == set(found.rejected)
    assert again.runner_up == found.runner_up


@given(TIMED)
def test_who_is_surely_faster_ranks_better_and_someone_is_always_fastest(
    figures: dict[str, tuple[float, float, Runs]],
) -> None:
    ranking = Ranking(TILL, all_timed(figures))
    assert ranking.surely_faster(ranking.fastest) == 0
    for one in ranking.candidates:
        for other in ranking.candidates:
            if ranking.decode(one).low > ranking.decode(other).high:
                assert ranking.surely_faster(one) < ranking.surely_faster(other)
                assert ranking.dominator(one) is not other


@given(TIMED)
def test_the_runner_up_is_what_would_be_chosen_without_the_winner(
    figures: dict[str, tuple[float, float, Runs]],
) -> None:
    assume(len(figures) > 1)
    candidates = all_timed(figures)
    (found,) = selected(candidates)
    others = [c for c in candidates if c.quantization != found.quantization]
    (without,) = selected(others)
    assert found.runner_up == without.quantization


def test_a_faster_median_within_the_noise_is_no_reason_to_lose_fidelity() -> None:
    """As a build on a busy machine timed them."""
    (found,) = selected(
        [
            timed("Q8_0", 0.003, 144.8, (51.0, 70.3, 91.0)),
            timed("Q3_K_M", 0.104, 93.5, (52.5, 85.2, 93.1)),
            timed("Q2_K", 0.12, 88.2, (20.0, 22.0, 25.0)),
        ]
    )
    assert found.quantization == "Q8_0"
    assert found.reason == (
        "one of 2 fastest of 3 that fit, which timing cannot tell apart (70.3 tokens/s,"
        " 51.0 to 91.0); of these it has the least KL divergence, at most 0.0033 nats"
    )
    reasons = {r.quantization: r.reason for r in found.rejected}
    assert reasons["Q3_K_M"] == (
        "timing cannot tell it from Q8_0 (85.2 tokens/s, 52.5 to 93.1, against"
        " 70.3 tokens/s, 51.0 to 91.0), which has less KL divergence:"
        " at most 0.0033 nats, against 0.1144"
    )
    assert reasons["Q2_K"] == (
        "worse speed: 22.0 tokens/s, 20.0 to 25.0; Q3_K_M makes at least 52.5"
    )


def test_a_difference_beyond_the_noise_still_decides() -> None:
    (found,) = selected(
        [
            timed("Q8_0", 0.003, 144.8, (60.0, 61.0, 62.0)),
            timed("Q3_K_M", 0.104, 93.5, (70.0, 75.0, 80.0)),
        ]
    )
    assert found.quantization == "Q3_K_M"
    assert found.reason == "best speed of 2 that fit (75.0 tokens/s, 70.0 to 80.0)"


def test_a_difference_within_the_noise_saves_nobody_from_being_dominated() -> None:
    good = timed("GOOD", 0.01, 90, (40.0, 50.0, 60.0))
    lucky = timed("LUCKY", 0.02, 95, (45.0, 55.0, 61.0))
    (found,) = selected([good, lucky])
    assert found.rejected[0].reason == (
        "dominated by GOOD: no worse in quality and bytes, nor slower beyond"
        " timing noise, better in at least one"
    )


def test_classes_share_what_is_as_fast_as_far_as_timing_can_tell() -> None:
    """The small class can only run Q3_K_M, and the till loses no speed with it."""
    small = DeviceClass(name="small", budget=Budget(disk_mib=90))
    found = selected(
        [
            timed("Q8_0", 0.003, 144.8, (51.0, 70.3, 91.0)),
            timed("Q3_K_M", 0.104, 93.5, (52.5, 85.2, 93.1)),
        ],
        small,
        TILL,
    )
    assert [each.quantization for each in found] == ["Q3_K_M", "Q3_K_M"]
    assert found[1].reason == (
        "within timing noise of the best speed (85.2 tokens/s, 52.5 to 93.1), and"
        " one variant fewer to ship"
    )
    assert found[1].rejected[0].reason == (
        "best speed, but Q3_K_M is within timing noise and serves other classes too"
    )


def test_more_runs_tell_apart_what_few_cannot() -> None:
    """One slow run among many no longer hides a difference."""

    def many(name: str, kld: float, speeds: list[float]) -> Candidate:
        made = timed(name, kld, 100, (min(speeds), speeds[0], max(speeds)))
        (speed,) = made.card.speed
        median = bounded_median(speeds)
        speed = replace(speed, decode_median=median, runs=len(speeds))
        return replace(made, card=replace(made.card, speed=(speed,)))

    slow, fast = [50.0, 51.0, 52.0, 53.0], [60.0, 61.0, 62.0, 63.0]
    few = [many("FINE", 0.003, slow), many("FAST", 0.1, [*fast, 40.0])]
    (found,) = selected(few)
    assert found.quantization == "FINE"
    lot = [many("FINE", 0.003, 3 * slow), many("FAST", 0.1, [*(3 * fast), 40.0])]
    (found,) = selected(lot)
    assert found.quantization == "FAST"


def test_of_two_in_one_box_of_quality_a_lone_class_gets_the_smaller() -> None:
    (found,) = selected(
        [
            timed("CLOSER", 0.0300, 100.0, (50.0, 50.0, 50.0)),
            timed("SMALLER", 0.03005, 90.0, (50.0, 50.0, 50.0)),
        ],
        DeviceClass(name="any"),
    )
    assert found.quantization == "SMALLER"
