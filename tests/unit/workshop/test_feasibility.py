"""Budgets and the quality floor: only a pessimistic bound that meets them counts."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from slmops.domain.blueprint import QualityFloor
from slmops.domain.device import Budget, DeviceClass
from slmops.domain.memory import PeakMemory
from slmops.domain.release import Estimate
from slmops.runtimes.speed import LEAST_RUNS_FOR_P95, slow_tail
from slmops.testing.sample_build import SampleFigures, sample_candidate
from slmops.workshop.build_result import Candidate
from slmops.workshop.feasibility import (
    LEAST_CONTROL_KLD,
    SelectionRules,
    excesses_of,
    floor_violations,
)

CLASS = DeviceClass(name="gateway")
RULES = SelectionRules(floor=QualityFloor(), control_kld=0.004)
"""Allows a mean KL divergence of 0.16 nats and asks a same-top-1 of 0.7."""
SHARES = st.floats(0.1, 3.0)


def candidate(**changes: object) -> Candidate:
    figures = SampleFigures(name="Q4_K_M", kld=0.045, mb=105.0)
    return sample_candidate(replace(figures, **changes), classes=[CLASS])  # type: ignore[arg-type]


def reasons(found: Candidate, budget: Budget, rules: SelectionRules = RULES) -> str:
    device_class = replace(CLASS, budget=budget)
    return "; ".join(e.text for e in excesses_of(found, device_class, rules))


def test_a_candidate_within_everything_fits() -> None:
    budget = Budget(
        memory_mib=300, disk_mib=110, first_token_ms=400, decode_tokens_per_s=40
    )
    assert reasons(candidate(), budget) == ""


@given(SHARES)
def test_the_lower_bound_of_decode_speed_must_meet_the_budget(share: float) -> None:
    found = candidate(decode=50.0)
    speed = found.card.speed[0].decode_tokens_per_s
    fits = reasons(found, Budget(decode_tokens_per_s=share * 50.0)) == ""
    assert fits == (speed.low >= share * 50.0)


@given(SHARES)
def test_the_upper_bound_of_the_divergence_must_meet_the_floor(share: float) -> None:
    found = candidate(kld=share * RULES.max_kld)
    fits = reasons(found, Budget()) == ""
    assert fits == (found.card.fidelity.mean_kld.high <= RULES.max_kld)


@given(st.floats(0.05, 0.95))
def test_the_lower_bound_of_same_top1_must_meet_the_floor(share: float) -> None:
    found = candidate(same_top1=share)
    fits = reasons(found, Budget()) == ""
    assert fits == (found.card.fidelity.same_top1.low >= RULES.floor.min_same_top1)


@given(SHARES)
def test_peak_memory_and_disk_and_first_token_are_limits(share: float) -> None:
    found = candidate()
    speed = found.card.speed[0]
    limits = {
        "memory_mib": speed.peak_rss_mib,
        "disk_mib": found.card.bytes / 2**20,
        "first_token_ms": speed.first_token_tail_ms,
    }
    for name, value in limits.items():
        budget = Budget(**{name: share * value})
        assert (reasons(found, budget) == "") == (value <= share * value)


def test_the_ratio_says_how_far_off() -> None:
    device_class = replace(CLASS, budget=Budget(disk_mib=50))
    (excess,) = excesses_of(candidate(mb=2**20 * 100 / 1e6), device_class, RULES)
    assert round(excess.ratio, 3) == 2.0
    assert excess.text == "disk 100.0 MiB is above the budget 50"


def test_speed_measured_at_other_settings_meets_nothing() -> None:
    budget = Budget(decode_tokens_per_s=1)
    other = replace(CLASS, threads=4, budget=budget)
    assert candidate().card.speed_for(other) is None
    (excess,) = excesses_of(candidate(), other, RULES)
    assert excess.text == "its speed was not measured"


def test_without_a_budget_that_needs_speed_none_has_to_be_measured() -> None:
    other = replace(CLASS, threads=4, budget=Budget(disk_mib=500))
    assert excesses_of(candidate(), other, RULES) == ()


def test_a_control_nobody_asked_for_may_not_be_chosen() -> None:
    assert "a control" in reasons(candidate(eligible=False), Budget())


def test_below_the_floor_budgets_still_hold() -> None:
    rules = replace(RULES, below_floor=True)
    bad = candidate(kld=3.0, same_top1=0.2)
    assert reasons(bad, Budget(), rules) == ""
    assert "disk" in reasons(bad, Budget(disk_mib=10), rules)
    assert len(floor_violations(bad.card, rules)) == 2


def test_a_control_without_loss_does_not_forbid_everything() -> None:
    rules = replace(RULES, control_kld=0.0)
    assert rules.max_kld == RULES.floor.max_kld_times_8bit * LEAST_CONTROL_KLD


def test_equal_to_the_limit_is_enough() -> None:
    found = candidate()
    exact = Estimate(value=0.1, low=0.1, high=RULES.max_kld)
    fidelity = replace(found.card.fidelity, mean_kld=exact)
    card = replace(found.card, fidelity=fidelity)
    assert floor_violations(card, RULES) == ()


def test_what_misses_a_budget_says_what_of_it_was_not_measured() -> None:
    found = candidate()
    speed = replace(
        found.card.speed[0],
        context_tokens=1024,
        filled_tokens=900,
        peak_rss_mib=300.0,
        extrapolated_mib=40.0,
    )
    found = replace(found, card=replace(found.card, speed=(speed,)))
    assert reasons(found, Budget(memory_mib=280)) == (
        "peak memory (measured to 260.0 MiB at 900 tokens, extrapolated to 1024)"
        " 300.0 MiB is above the budget 280"
    )


def bounded(found: Candidate, high: float) -> Candidate:
    speed = found.card.speed[0]
    peak = speed.peak_rss_mib
    bounds = Estimate(value=peak, low=peak - 1, high=high)
    known = PeakMemory(measured=bounds, full=bounds, processes=3, deviation_mib=0.2)
    speed = replace(speed, peak_memory=known)
    return replace(found, card=replace(found.card, speed=(speed,)))


@given(st.floats(0, 100), st.floats(0, 100))
def test_the_upper_bound_of_the_peak_must_meet_the_budget(
    above: float, spare: float
) -> None:
    peak = candidate().card.speed[0].peak_rss_mib
    found = bounded(candidate(), peak + above)
    fits = reasons(found, Budget(memory_mib=peak + spare)) == ""
    assert fits == (peak + above <= peak + spare)


def test_a_peak_within_the_budget_by_chance_is_refused_with_its_bounds() -> None:
    found = bounded(candidate(), 224.0)
    assert reasons(found, Budget(memory_mib=222)) == (
        "upper bound of peak memory (220.0 over 3 processes) 224.0 MiB is above the"
        " budget 222"
    )


def test_few_runs_must_meet_the_first_token_budget_with_their_worst() -> None:
    assert reasons(candidate(), Budget(first_token_ms=339)) == (
        "time to first token (worst of 5 runs) 340.0 ms is above the budget 339"
    )


@given(st.lists(st.floats(1, 1000), min_size=1, max_size=40))
def test_the_tail_is_the_worst_of_few_runs_and_a_percentile_of_many(
    runs: list[float],
) -> None:
    tail = slow_tail(runs)
    if len(runs) < LEAST_RUNS_FOR_P95:
        assert tail == max(runs)
    else:
        assert sum(run > tail for run in runs) <= len(runs) * 0.05 + 1
