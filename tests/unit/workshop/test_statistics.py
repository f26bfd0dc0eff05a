"""Bounds of measured figures: they hold their value, repeat, and are as wide as they should."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmops.domain.errors import InvalidInputError
from slmops.domain.release import Estimate
from slmops.workshop.statistics import (
    BLOCK_POSITIONS,
    Blocks,
    bounded_median,
    deviation_of,
    exponential,
    make_blocks,
    mean_estimate,
    median_of_runs,
    prediction_reach,
    quantile_estimate,
)

FINITE = st.floats(-1e6, 1e6, allow_nan=False)
SEEDS = st.integers(0, 2**32 - 1)


def some_blocks(windows: int = 3, per_window: int = 80, seed: int = 1) -> Blocks:
    return make_blocks(windows, per_window, seed=seed, resamples=200)


@given(st.lists(FINITE, min_size=240, max_size=240), SEEDS)
@settings(max_examples=30)
def test_bounds_contain_the_value_and_stay_inside_the_range(
    values: list[float], seed: int
) -> None:
    array = np.array(values)
    blocks = some_blocks(seed=seed)
    for found in (
        mean_estimate(array, blocks),
        quantile_estimate(array, 99.0, blocks),
        quantile_estimate(array, 50.0, blocks),
    ):
        assert found.low <= found.value <= found.high
        slack = 1e-9 * max(abs(array.min()), abs(array.max()), 1.0)
        assert array.min() - slack <= found.low
        assert found.high <= array.max() + slack


@given(SEEDS)
@settings(max_examples=20)
def test_equal_seeds_give_equal_bounds(seed: int) -> None:
    values = np.random.default_rng(5).exponential(1.0, 240)
    first, again = (mean_estimate(values, some_blocks(seed=seed)) for _ in range(2))
    assert first == again


def test_other_seeds_give_other_bounds() -> None:
    values = np.random.default_rng(5).exponential(1.0, 240)
    one, other = (mean_estimate(values, some_blocks(seed=seed)) for seed in (1, 2))
    assert one.value == other.value
    assert (one.low, one.high) != (other.low, other.high)


@given(FINITE)
@settings(max_examples=20)
def test_a_constant_has_no_spread(value: float) -> None:
    found = mean_estimate(np.full(240, value), some_blocks())
    assert found.high - found.low <= 1e-9 * max(abs(value), 1.0)


def test_the_mean_is_covered_about_as_often_as_promised() -> None:
    """95 % bounds of independent values: 200 texts, the true mean is 1."""
    covered = 0
    for trial in range(200):
        values = np.random.default_rng(trial).exponential(1.0, 1024)
        found = mean_estimate(values, make_blocks(4, 256, seed=trial, resamples=300))
        covered += found.low <= 1.0 <= found.high
    assert 0.88 <= covered / 200 <= 0.99


def test_correlated_neighbours_widen_the_bounds() -> None:
    """The point of blocks: the same numbers, once shuffled, once in runs of 32."""
    chance = np.random.default_rng(3)
    runs = np.repeat(chance.exponential(1.0, 32), BLOCK_POSITIONS)
    shuffled = chance.permutation(runs)
    blocks = make_blocks(4, 256, seed=0)
    wide, narrow = (mean_estimate(values, blocks) for values in (runs, shuffled))
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_blocks_never_cross_a_window() -> None:
    blocks = make_blocks(3, 80, seed=0)
    assert {start // 80 for start in blocks.starts} == {0, 1, 2}
    assert all(window * 80 in blocks.starts for window in range(3))
    assert blocks.positions == 240


@given(st.lists(FINITE, min_size=240, max_size=240))
@settings(max_examples=20)
def test_a_percentile_is_an_observed_value(values: list[float]) -> None:
    found = quantile_estimate(np.array(values), 99.0, some_blocks())
    assert found.value in values
    # The 99th percentile of 240 values is the 238th.
    assert sum(value > found.value for value in values) <= 2


@given(st.lists(FINITE, min_size=1, max_size=20))
def test_the_median_of_runs_lies_between_least_and_most(values: list[float]) -> None:
    found = median_of_runs(values)
    assert (found.low, found.high) == (min(values), max(values))
    assert sum(v <= found.value for v in values) >= len(values) / 2
    assert sum(v >= found.value for v in values) >= len(values) / 2


@given(st.floats(-5, 5), st.floats(0, 2), st.floats(0, 2))
def test_perplexity_keeps_the_order_of_its_bounds(
    value: float, below: float, above: float
) -> None:
    found = exponential(Estimate(value=value, low=value - below, high=value + above))
    assert found.low <= found.value <= found.high
    assert math.isclose(math.log(found.value), value, abs_tol=1e-9)


@given(st.integers(2, 8), st.integers(0, 2**32 - 1))
@settings(max_examples=20)
def test_one_more_process_lies_within_the_prediction_about_as_often_as_it_says(
    count: int, seed: int
) -> None:
    chance = np.random.default_rng(seed)
    values = chance.normal(200.0, 0.5, (1000, count + 1))
    inside = 0
    for *seen, following in values.tolist():
        reach = prediction_reach(deviation_of(seen), of=count, mean_of=count)
        inside += abs(following - sum(seen) / count) <= reach
    # Five deviations of a binomial with 1000 draws of 0.95.
    assert abs(inside - 950) <= 35


def test_one_value_alone_predicts_nothing() -> None:
    with pytest.raises(InvalidInputError, match="at least two values"):
        deviation_of([1.0])
    with pytest.raises(InvalidInputError, match="got 1 and 1"):
        prediction_reach(1.0, of=1, mean_of=1)


def test_too_few_positions_give_no_bounds() -> None:
    with pytest.raises(InvalidInputError, match="at least two blocks"):
        make_blocks(1, BLOCK_POSITIONS, seed=0)


@pytest.mark.parametrize(
    "values", [np.zeros(239), np.zeros((240, 1)), np.full(240, np.nan)]
)
def test_values_that_do_not_fit_the_text_are_refused(values: np.ndarray) -> None:
    with pytest.raises(InvalidInputError, match="240 finite numbers"):
        mean_estimate(values, some_blocks())


def test_no_runs_have_no_median() -> None:
    with pytest.raises(InvalidInputError, match="at least one run"):
        median_of_runs([])


@given(st.integers(6, 60))
def test_the_medians_bounds_cover_95_percent_and_are_as_narrow_as_that_allows(
    count: int,
) -> None:
    found = bounded_median([float(n) for n in range(count)])
    outside = int(found.low)
    assert found.high == count - 1 - outside

    def missed(k: int) -> float:
        return 2 * 0.5**count * sum(math.comb(count, n) for n in range(k))

    assert missed(outside + 1) <= 0.05 < missed(outside + 2)


@given(st.lists(st.floats(1, 100), min_size=1, max_size=8))
def test_the_bounds_of_few_runs_are_all_of_them(runs: list[float]) -> None:
    assert bounded_median(runs) == median_of_runs(runs)
