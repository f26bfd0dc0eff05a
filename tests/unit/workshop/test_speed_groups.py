"""Groups timed before: nobody is timed twice, and what is timed apart keeps its promise."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from slmops.domain.ids import Digest
from slmops.domain.release import Estimate, Speed
from slmops.testing.sample_release import sample_release
from slmops.wire.codec import decode_json
from slmops.workshop.artefacts import Artefact
from slmops.workshop.build_context import BuildContext
from slmops.workshop.speed_groups import joined, on_scale
from slmops.workshop.speeds import measure_speeds
from slmops.workshop.statistics import bounded_median, median_of_runs
from slmops.workshop.steps import StepRecord

Make = Callable[..., BuildContext]
Echo = Callable[..., Artefact]

RUNS, TRIALS = 5, 1000
NOISE = 0.05
"""Deviation of one run's logarithm."""
DRIFT = 0.3
"""The same of what slows one group and not the other."""


def timed(build: BuildContext) -> list[int]:
    """Return the sizes of all groups that were ever timed in the workspace."""
    paths = build.workspace.steps.glob("*.json")
    records = [
        decode_json(path.read_bytes(), StepRecord, where=str(path)) for path in paths
    ]
    return sorted(len(r.step.inputs) for r in records if r.step.kind == "speed")


def company(echo_artefact: Echo, size: int) -> list[Artefact]:
    """Return the control and others, each of its own bytes."""
    others = [echo_artefact(f"Q{n}_K", hold_mib=n) for n in range(1, size)]
    return [echo_artefact("Q8_0"), *others]


def runs(decode: list[float]) -> Speed:
    """Return the speed that so many tokens per second in each run give."""
    (speed,) = sample_release().variants[0].card.speed[:1]
    first = [1000 / each for each in decode]
    return replace(
        speed,
        first_token_ms=median_of_runs(first),
        first_token_tail_ms=max(first),
        prefill_tokens_per_s=median_of_runs([10 * each for each in decode]),
        decode_tokens_per_s=median_of_runs(decode),
        decode_median=bounded_median(decode),
        runs=len(decode),
    )


def drawn(chance: np.random.Generator, median: float, slow: float) -> Speed:
    noise = np.exp(NOISE * chance.standard_normal(RUNS))
    return runs([float(each) for each in median * slow * noise])


def encloses(bounds: Estimate, value: float) -> bool:
    return bounds.low <= value <= bounds.high


def test_a_candidate_less_is_not_timed_again(
    make_build: Make, echo_artefact: Echo
) -> None:
    group = company(echo_artefact, 4)
    before = measure_speeds(make_build(), group)
    for fewer in (group[:-1], group[1:], group[::-1]):
        build = make_build()
        after = measure_speeds(build, fewer)
        assert timed(build) == [4]
        for artefact in fewer:
            (was,), (now,) = before[artefact.digest], after[artefact.digest]
            assert now.decode_median == was.decode_median
            assert now.load_ms == was.load_ms
            assert now.anchored is None


def test_the_step_that_served_is_in_the_provenance(
    make_build: Make, echo_artefact: Echo
) -> None:
    group = company(echo_artefact, 3)
    first, second = make_build(), make_build()
    measure_speeds(first, group)
    measure_speeds(second, group[:-1])
    used = {r.step.digest for r in second.runner.provenance() if r.step.kind == "speed"}
    whole = {r.step.digest for r in first.runner.provenance() if r.step.kind == "speed"}
    assert used == whole


def test_a_candidate_more_is_timed_alone_with_the_control(
    make_build: Make, echo_artefact: Echo
) -> None:
    group = company(echo_artefact, 6)
    before = measure_speeds(make_build(), group[:-1])
    more = make_build()
    after = measure_speeds(more, group)
    assert timed(more) == [2, 5]
    for artefact in group[:-1]:
        assert after[artefact.digest][0].decode_median == (
            before[artefact.digest][0].decode_median
        )
        assert after[artefact.digest][0].anchored is None
    assert after[group[-1].digest][0].anchored is not None
    again = make_build()
    assert measure_speeds(again, group) == after
    assert all(timing.reused for timing in again.runner.timings)


def test_whom_two_groups_know_is_taken_from_both(
    make_build: Make, echo_artefact: Echo
) -> None:
    group = company(echo_artefact, 7)
    measure_speeds(make_build(), group[:-2])
    measure_speeds(make_build(), group[:-1])
    build = make_build()
    found = measure_speeds(build, group)
    assert timed(build) == [2, 2, 5]
    assert [found[a.digest][0].anchored is not None for a in group] == [
        *[False] * 5,
        *[True] * 2,
    ]


@pytest.mark.parametrize("size", [1, 2])
def test_all_are_timed_together_when_anchoring_would_spare_little(
    make_build: Make, echo_artefact: Echo, size: int
) -> None:
    group = company(echo_artefact, 3)
    measure_speeds(make_build(), group[:size])
    build = make_build()
    found = measure_speeds(build, group)
    assert timed(build) == [size, 3]
    assert all(speed.anchored is None for (speed,) in found.values())


def test_nobody_is_anchored_without_the_control(
    make_build: Make, echo_artefact: Echo
) -> None:
    group = company(echo_artefact, 7)[1:]
    measure_speeds(make_build(), group[:-1])
    build = make_build()
    measure_speeds(build, group)
    assert timed(build) == [5, 6]


def test_other_runs_are_another_scale(make_build: Make, echo_artefact: Echo) -> None:
    group = company(echo_artefact, 2)
    measure_speeds(make_build(), group)
    build = make_build(runs=4)
    measure_speeds(build, group)
    assert timed(build) == [2, 2]


def test_damaged_times_are_taken_anew(make_build: Make, echo_artefact: Echo) -> None:
    group = company(echo_artefact, 3)
    first = make_build()
    measure_speeds(first, group)
    (record,) = (r for r in first.runner.provenance() if r.step.kind == "speed")
    path = first.blobs.path(record.outputs["speeds"])
    path.chmod(0o600)
    path.write_bytes(b"damaged")
    build = make_build()
    measure_speeds(build, group[:-1])
    assert timed(build) == [2, 3]


def test_what_slowed_a_group_is_taken_out() -> None:
    control, late = runs([100.0] * 5), runs([50.0] * 5)
    found = on_scale(runs([40.0] * 5), here=late, there=control)
    assert found.decode_tokens_per_s.value == pytest.approx(80)
    assert found.prefill_tokens_per_s.value == pytest.approx(800)
    assert found.first_token_ms.value == pytest.approx(12.5)
    assert found.first_token_tail_ms == pytest.approx(12.5)
    assert found.anchored is not None
    assert found.anchored.value == pytest.approx(2)


def test_a_row_of_the_first_group_stays_as_it_is() -> None:
    control, other, late = Digest("c"), Digest("o"), Digest("l")
    first = {control: runs([100.0]), other: runs([70.0])}
    second = {control: runs([50.0]), late: runs([40.0]), other: runs([1.0])}
    found = joined([other, late, control], [first, second], control)
    assert list(found) == [other, control, late]
    assert found[other] is first[other]
    assert found[control] is first[control]


def test_bounds_hold_what_they_promise_whatever_drift_lay_between() -> None:
    chance = np.random.default_rng(7)
    truth, control = 80.0, 60.0
    ours, unwidened, unscaled = 0, 0, 0
    for _ in range(TRIALS):
        first, later = np.exp(DRIFT * chance.standard_normal(2))
        there, here = drawn(chance, control, first), drawn(chance, control, later)
        apart = drawn(chance, truth, later)
        found = on_scale(apart, here, there)
        assert found.decode_median is not None
        assert apart.decode_median is not None
        assert found.anchored is not None
        ours += encloses(found.decode_median, truth * first)
        factor = found.anchored.value
        mine = apart.decode_median
        narrow = Estimate(
            value=mine.value * factor, low=mine.low * factor, high=mine.high * factor
        )
        unwidened += encloses(narrow, truth * first)
        unscaled += encloses(mine, truth * first)
    # Five runs promise 1 - 2 / 2**5 = 93.75 %.
    assert ours / TRIALS > 0.9375
    assert unwidened / TRIALS < 0.9
    assert unscaled / TRIALS < 0.5


def test_equal_candidates_seldom_look_unequal_across_groups() -> None:
    chance = np.random.default_rng(8)
    wrong = 0
    for _ in range(TRIALS):
        first, later = np.exp(DRIFT * chance.standard_normal(2))
        there, here = drawn(chance, 60.0, first), drawn(chance, 60.0, later)
        mine = drawn(chance, 80.0, first).decode_median
        theirs = on_scale(drawn(chance, 80.0, later), here, there).decode_median
        assert mine is not None
        assert theirs is not None
        wrong += mine.low > theirs.high or theirs.low > mine.high
    # Five runs each of one group: 0.8 % (see `ranking`).
    assert wrong / TRIALS < 0.008
