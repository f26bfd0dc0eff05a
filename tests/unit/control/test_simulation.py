"""Playing a policy before it is used: the same ends as the engine's own `advance`."""

import math
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmops.control.simulation import play_outcomes, simulate
from slmops.domain.blueprint import RolloutPolicy, WavePlan
from slmops.domain.errors import InvalidInputError
from slmops.testing.fleet_simulation import play_known

Known = Sequence[tuple[str, bool]]


def policy_for(waves: int, *, tolerated: float = 0.02) -> RolloutPolicy:
    return RolloutPolicy(
        waves=(WavePlan(count=1),) * waves,
        tolerated_failure_rate=tolerated,
        alpha=0.05,
        soak_s=0.0,
        deadline_s=math.inf,
        probation_s=0.0,
    )


waves_of_outcomes = st.lists(
    st.lists(
        st.tuples(
            st.sampled_from(["gateway", "till"]), st.sampled_from([0.0, 0.1, 0.5])
        ),
        min_size=1,
        max_size=40,
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=150)
@given(drawn=waves_of_outcomes, tolerated=st.sampled_from([0.02, 0.2]), data=st.data())
def test_a_play_ends_as_the_engine_ends(
    drawn: list[list[tuple[str, float]]], tolerated: float, data: st.DataObject
) -> None:
    dice = data.draw(st.randoms(use_true_random=False))
    outcomes = [
        [(name, dice.random() < rate) for name, rate in known] for known in drawn
    ]
    policy = policy_for(len(outcomes), tolerated=tolerated)
    waves = [Counter(name for name, _ in known) for known in outcomes]
    played = play_outcomes(waves, policy, outcomes)
    engine = play_known(policy, outcomes)
    assert (played.completed, played.exposed) == (engine.completed, engine.exposed)


def test_a_bad_class_of_a_twentieth_of_the_fleet_is_seen_before_most_devices() -> None:
    waves = [
        {"big": 19, "small": 1},
        {"big": 76, "small": 4},
        {"big": 1805, "small": 95},
    ]
    outlook = simulate(
        waves, policy_for(3), {"big": 0.0, "small": 0.6}, runs=300, seed=1
    )
    assert outlook.completed_high < 0.02
    assert outlook.exposed_p95 == 100


def test_a_tolerated_rate_is_seldom_halted_and_the_interval_says_how_sure() -> None:
    outlook = simulate([{"a": 20}, {"a": 200}], policy_for(2), {"a": 0.01}, runs=400)
    assert outlook.completed_low > 0.9
    assert outlook.completed_low < outlook.completed <= outlook.completed_high


def test_the_same_seed_gives_the_same_outlook() -> None:
    one, two = (
        simulate([{"a": 50}], policy_for(1), {"a": 0.05}, runs=50, seed=7)
        for _ in range(2)
    )
    assert one == two


@pytest.mark.parametrize(
    ("rates", "said"),
    [
        ({}, "has no failure rate"),
        ({"a": 0.1, "b": 0.1}, "class b has no device"),
        ({"a": 1.5}, "must be in 0..1"),
    ],
)
def test_odd_rates_are_refused(rates: dict[str, float], said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        simulate([{"a": 5}], policy_for(1), rates, runs=1)
