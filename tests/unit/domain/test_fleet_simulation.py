"""Whole rollouts by chance, decided by the real `advance`."""

import pytest

from slmops.domain.blueprint import RolloutPolicy, WavePlan
from slmops.testing.fleet_simulation import (
    Arrival,
    SimulatedClass,
    simulate_naive_rule,
    simulate_rollout,
    summarize,
)

WAVES = (20, 80, 400, 1500)
POLICY = RolloutPolicy(
    waves=tuple(WavePlan(count=size) for size in WAVES), soak_s=0, deadline_s=1e9
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rate", "completes", "exposed", "runs"),
    [
        (0.02, 0.99, 1985, 100),
        (0.04, 0.03, 756, 120),
        (0.08, 0.0, 107, 150),
        (0.20, 0.0, 21, 200),
    ],
)
def test_whole_rollouts_reproduce_the_reference_figures(
    rate: float, completes: float, exposed: float, runs: int
) -> None:
    """Tolerances cover chance (about three standard errors) and the advance rule.

    The reference figures are the stop rule's alone; the real `advance` also halts at
    the end of a wave, so exposure comes out a little lower.
    """
    fleet = {"only": SimulatedClass(devices=2000, failure_rate=rate)}
    summary = summarize(
        [simulate_rollout(fleet, POLICY, seed=f"{rate}-{run}") for run in range(runs)]
    )
    assert summary.completed == pytest.approx(completes, abs=0.05)
    assert summary.exposed == pytest.approx(exposed, rel=0.16)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rate", "runs", "least", "most", "exposed"),
    [
        (0.005, 20, 0.95, 1.0, 2000),
        (0.02, 40, 0.92, 1.0, 2000),
        (0.04, 40, 0.0, 0.1, 1500),
        (0.08, 40, 0.0, 0.0, 320),
    ],
)
def test_whole_waves_whose_failures_arrive_first_end_by_their_rate_alone(
    rate: float, runs: int, least: float, most: float, exposed: int
) -> None:
    """Failures report in seconds, successes after a download and the probation."""
    fleet = {"only": SimulatedClass(devices=2000, failure_rate=rate)}
    first = Arrival.FAILURES_FIRST
    summary = summarize(
        [
            simulate_rollout(fleet, POLICY, seed=f"{rate}-{run}", arrival=first)
            for run in range(runs)
        ]
    )
    assert least <= summary.completed <= most
    assert summary.exposed <= exposed


def test_a_bad_release_exposes_its_first_wave_and_no_more() -> None:
    fleet = {"only": SimulatedClass(devices=2000, failure_rate=0.4)}
    for arrival in (Arrival.WHOLE_WAVE, Arrival.FAILURES_FIRST):
        end = simulate_rollout(fleet, POLICY, seed="awful", arrival=arrival)
        assert not end.completed
        assert end.exposed == 20


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rate", "completes", "exposed"),
    [(0.02, 0.92, 1837), (0.04, 0.53, 1139), (0.08, 0.0, 73), (0.20, 0.0, 11)],
)
def test_the_naive_rule_lets_more_bad_releases_through(
    rate: float, completes: float, exposed: float
) -> None:
    summary = summarize(
        [
            simulate_naive_rule(WAVES, failure_rate=rate, seed=f"{rate}-{run}")
            for run in range(1500)
        ]
    )
    assert summary.completed == pytest.approx(completes, abs=0.05)
    assert summary.exposed == pytest.approx(exposed, rel=0.12)


def test_a_rare_class_that_fails_often_cannot_hide_in_the_pool() -> None:
    fleet = {
        "common": SimulatedClass(devices=1900, failure_rate=0.002),
        "rare": SimulatedClass(devices=100, failure_rate=0.6),
    }
    for run in range(20):
        end = simulate_rollout(fleet, POLICY, seed=f"rare-{run}")
        assert not end.completed
        assert "class rare" in end.reason
        assert end.exposed <= 120


def test_the_same_seed_plays_the_same_rollout() -> None:
    fleet = {"only": SimulatedClass(devices=2000, failure_rate=0.1)}
    first = simulate_rollout(fleet, POLICY, seed="same")
    assert first == simulate_rollout(fleet, POLICY, seed="same")


def test_a_fleet_that_never_fails_completes_and_is_all_exposed() -> None:
    fleet = {"only": SimulatedClass(devices=2000, failure_rate=0.0)}
    end = simulate_rollout(fleet, POLICY, seed="well")
    assert end.completed
    assert end.exposed == 2000
