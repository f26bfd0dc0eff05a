"""The stop and advance rules: valid, monotone, and as strong as the reference says."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmops.domain.errors import InvalidInputError
from slmops.domain.gate import (
    AdvanceRule,
    ClassCount,
    Verdict,
    advance_gate,
    log_e_value,
    stop_gate,
    tolerable_failures,
    upper_failure_bound,
)

RULE = AdvanceRule(
    tolerated_rate=0.02, alpha=0.01, min_per_class=1, max_paired_loss=0.15
)


def count(succeeded: int, failed: int) -> ClassCount:
    return ClassCount(succeeded=succeeded, failed=failed)


@given(
    rate=st.floats(0.001, 0.02),
    devices=st.integers(1, 40),
)
def test_evidence_has_expectation_at_most_one_under_every_tolerated_rate(
    rate: float, devices: int
) -> None:
    expected = sum(
        math.comb(devices, failed)
        * rate**failed
        * (1 - rate) ** (devices - failed)
        * math.exp(log_e_value(devices - failed, failed, tolerated_rate=0.02))
        for failed in range(devices + 1)
    )
    assert expected <= 1 + 1e-9


@given(good=st.integers(0, 500), bad=st.integers(0, 500))
def test_evidence_grows_with_failures_and_falls_with_successes(
    good: int, bad: int
) -> None:
    here = log_e_value(good, bad, tolerated_rate=0.02)
    assert log_e_value(good, bad + 1, tolerated_rate=0.02) > here
    assert log_e_value(good + 1, bad, tolerated_rate=0.02) < here


@given(good=st.integers(0, 300), bad=st.integers(0, 300))
def test_upper_bound_lies_above_the_observed_rate(good: int, bad: int) -> None:
    bound = upper_failure_bound(good, bad, alpha=0.05)
    assert (bad / max(good + bad, 1)) <= bound <= 1.0


def halting_counts(devices: int) -> list[int]:
    """Return, per number of devices, the fewest failures that stop a rollout."""
    limits, failed = [], 0
    for seen in range(1, devices + 1):
        while failed <= seen and log_e_value(
            seen - failed, failed, tolerated_rate=0.02
        ) < math.log(100):
            failed += 1
        limits.append(failed)
    return limits


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rate", "completes", "exposed"),
    [(0.02, 0.99, 1985), (0.04, 0.03, 756), (0.08, 0.0, 107), (0.20, 0.0, 21)],
)
def test_stop_rule_reproduces_the_reference_figures(
    rate: float, completes: float, exposed: int
) -> None:
    limits = halting_counts(2000)
    dice = random.Random(f"stop rule {rate}")
    runs, completed, total = 600, 0, 0
    for _ in range(runs):
        failed = 0
        for seen, limit in enumerate(limits, start=1):
            failed += dice.random() < rate
            if failed >= limit:
                total += seen
                break
        else:
            completed += 1
            total += len(limits)
    assert completed / runs == pytest.approx(completes, abs=0.025)
    assert total / runs == pytest.approx(exposed, rel=0.12)


def test_stop_gate_names_the_class_even_when_the_pool_looks_well() -> None:
    result = stop_gate(
        {"rare": count(4, 6), "common": count(190, 0)}, tolerated_rate=0.02, alpha=0.01
    )
    assert result.verdict is Verdict.FAIL
    assert "class rare: 6 of 10" in result.reason


@given(
    good=st.integers(0, 200),
    bad=st.integers(0, 30),
    pending=st.integers(0, 200),
    failing=st.integers(0, 200),
)
def test_a_halt_while_devices_are_at_work_stands_however_they_end(
    good: int, bad: int, pending: int, failing: int
) -> None:
    failing = min(failing, pending)
    now = ClassCount(succeeded=good, failed=bad, pending=pending)
    then = count(good + pending - failing, bad + failing)
    gate = stop_gate({"a": now}, tolerated_rate=0.02, alpha=0.01)
    if gate.verdict is Verdict.FAIL:
        later = stop_gate({"a": then}, tolerated_rate=0.02, alpha=0.01)
        assert later.verdict is Verdict.FAIL


def test_a_terrible_release_halts_before_its_first_wave_is_decided() -> None:
    now = {"a": ClassCount(succeeded=0, failed=4, pending=16)}
    gate = stop_gate(now, tolerated_rate=0.02, alpha=0.01)
    assert gate.verdict is Verdict.FAIL
    assert "4 of 20 devices failed, 16 still at work" in gate.reason


def test_stop_gate_never_passes_without_an_alarm() -> None:
    assert (
        stop_gate({"a": count(500, 0)}, tolerated_rate=0.02, alpha=0.01).verdict
        is Verdict.INCONCLUSIVE
    )
    assert (
        stop_gate({}, tolerated_rate=0.02, alpha=0.01).verdict is Verdict.INCONCLUSIVE
    )


def test_an_empty_wave_shows_nothing() -> None:
    assert advance_gate({}, {}, {}, RULE).verdict is Verdict.INCONCLUSIVE


def test_no_outcome_yet_is_inconclusive_not_success() -> None:
    result = advance_gate({"a": 3}, {}, {}, RULE)
    assert result.verdict is Verdict.INCONCLUSIVE
    assert "0 of 3" in result.reason


def test_a_class_that_failed_completely_cannot_advance() -> None:
    result = advance_gate(
        {"a": 1, "b": 1}, {"a": count(1, 0), "b": count(0, 1)}, {}, RULE
    )
    assert result.verdict is Verdict.FAIL
    assert "class b: 1 of 1" in result.reason


@pytest.mark.parametrize("classes", [1, 3, 10])
@pytest.mark.parametrize("devices", [1, 2, 3, 4])
def test_a_class_too_small_to_tell_must_show_no_failure(
    devices: int, classes: int
) -> None:
    sizes = {f"c{i}": devices for i in range(classes)}
    counts = {name: count(devices, 0) for name in sizes}
    assert advance_gate(sizes, counts, {}, RULE).verdict is Verdict.PASS
    counts["c0"] = count(devices - 1, 1)
    assert advance_gate(sizes, counts, {}, RULE).verdict is Verdict.FAIL


def test_a_paired_loss_that_is_no_number_is_not_a_good_one() -> None:
    result = advance_gate({"a": 1}, {"a": count(1, 0)}, {"a": [math.nan]}, RULE)
    assert result.verdict is Verdict.FAIL


def test_paired_loss_above_the_margin_stops_the_advance() -> None:
    result = advance_gate({"a": 2}, {"a": count(2, 0)}, {"a": [0.3, 0.2]}, RULE)
    assert result.verdict is Verdict.FAIL
    assert "paired loss" in result.reason


def test_a_large_wave_at_the_tolerated_rate_advances() -> None:
    assert (
        advance_gate({"a": 400}, {"a": count(392, 8)}, {}, RULE).verdict is Verdict.PASS
    )


def test_a_large_wave_far_above_the_tolerated_rate_does_not() -> None:
    assert (
        advance_gate({"a": 400}, {"a": count(360, 40)}, {}, RULE).verdict
        is Verdict.FAIL
    )


@given(devices=st.integers(0, 300), rate=st.floats(0.005, 0.3))
def test_tolerable_failures_is_the_binomial_quantile(devices: int, rate: float) -> None:
    allowed = tolerable_failures(devices, rate, alpha=0.01)
    tail = 1 - sum(
        math.comb(devices, k) * rate**k * (1 - rate) ** (devices - k)
        for k in range(allowed + 1)
    )
    assert tail <= 0.01 + 1e-6


def test_negative_counts_and_impossible_rates_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="must be >= 0"):
        count(-1, 0)
    with pytest.raises(InvalidInputError, match="in \\(0, 1\\)"):
        log_e_value(1, 1, tolerated_rate=1.5)
