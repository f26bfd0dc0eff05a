"""Confidence bounds of figures measured on running text.

Neighbouring positions of a text are correlated, so single positions must not be
resampled: bounds would come out too narrow. Blocks of neighbours are drawn instead
(cluster bootstrap; Davison & Hinkley, Bootstrap Methods, 1997, §3.8 and §8.2.3).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from slmops.domain.errors import InvalidInputError
from slmops.domain.release import Estimate

Values = npt.NDArray[np.float64]

BLOCK_POSITIONS = 32
"""Longest block: KL divergence of positions further apart is nearly uncorrelated."""
RESAMPLES = 2000
_LOW, _HIGH = 2.5, 97.5
_MISSED = 0.05
_BATCH = 256
_LEAST_BLOCKS = 2
P99 = 99.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Blocks:
    """How often each block is in each resample; shared by all figures of one text.

    Sharing makes figures of different candidates comparable pair by pair, and equal
    input gives equal bounds.
    """

    starts: tuple[int, ...]
    """First position of each block, ascending, the first is 0."""
    positions: int
    """Positions in total."""
    counts: npt.NDArray[np.int64]
    """(resamples, blocks)."""


def make_blocks(
    windows: int, per_window: int, *, seed: int, resamples: int = RESAMPLES
) -> Blocks:
    """Cut windows of equal length into blocks and draw resamples.

    Args:
        windows: how many, >= 1.
        per_window: scored positions of each, >= 1; blocks never cross a window's end.
        seed: of the drawing.
        resamples: how many to draw.

    Raises:
        InvalidInputError: fewer than two blocks: no bounds can be given.

    >>> make_blocks(2, 48, seed=0).starts
    (0, 32, 48, 80)
    """
    inside = range(0, per_window, BLOCK_POSITIONS)
    starts = [
        window * per_window + offset for window in range(windows) for offset in inside
    ]
    if len(starts) < _LEAST_BLOCKS:
        raise InvalidInputError(
            "confidence bounds need at least two blocks of"
            f" {BLOCK_POSITIONS} scored positions, got {windows * per_window} positions"
        )
    chance = np.random.default_rng(seed)
    drawn = chance.integers(0, len(starts), (resamples, len(starts)))
    counts = np.stack([np.bincount(row, minlength=len(starts)) for row in drawn])
    return Blocks(starts=tuple(starts), positions=windows * per_window, counts=counts)


def mean_estimate(values: Values, blocks: Blocks) -> Estimate:
    """Estimate the mean with 95 % bounds.

    Args:
        values: (positions,), finite.
        blocks: of the same text.
    """
    _check(values, blocks)
    sums = np.add.reduceat(values, blocks.starts)
    sizes = np.diff([*blocks.starts, blocks.positions])
    means = (blocks.counts @ sums) / (blocks.counts @ sizes)
    return _bounded(float(values.mean()), means)


def quantile_estimate(values: Values, percent: float, blocks: Blocks) -> Estimate:
    """Estimate a percentile with 95 % bounds.

    Weighted inverse of the empirical distribution function: no interpolation, so that
    a resample's percentile is always an observed value.
    """
    _check(values, blocks)
    order = np.argsort(values, kind="stable")
    sorted_values = values[order]
    sizes = np.diff([*blocks.starts, blocks.positions])
    owner = np.repeat(np.arange(len(sizes)), sizes)[order]
    found = []
    for first in range(0, len(blocks.counts), _BATCH):
        weights = blocks.counts[first : first + _BATCH, owner].cumsum(axis=1)
        limits = weights[:, -1:] * (percent / 100)
        found.append(sorted_values[(weights < limits).sum(axis=1)])
    place = math.ceil(percent / 100 * len(values)) - 1
    return _bounded(float(sorted_values[max(place, 0)]), np.concatenate(found))


def exponential(estimate: Estimate) -> Estimate:
    """Turn an estimate of a mean negative log-likelihood into one of perplexity.

    >>> exponential(Estimate(value=0.0, low=0.0, high=0.0)).value
    1.0
    """
    return Estimate(
        value=math.exp(estimate.value),
        low=math.exp(estimate.low),
        high=math.exp(estimate.high),
    )


def median_of_runs(values: Sequence[float]) -> Estimate:
    """Return the median of a few runs, with the smallest and the largest as bounds.

    >>> median_of_runs([3.0, 1.0, 2.0])
    Estimate(value=2.0, low=1.0, high=3.0)
    """
    if not values:
        raise InvalidInputError("a median needs at least one run, got none")
    return Estimate(
        value=float(np.median(values)), low=float(min(values)), high=float(max(values))
    )


def bounded_median(values: Sequence[float]) -> Estimate:
    """Return the median of runs with 95 % bounds that assume nothing of their spread.

    The bounds are the k-th smallest and the k-th largest run, with the largest k whose
    interval misses the true median with probability ``2 P(Bin(n, 1/2) < k) <= 0.05``
    (the sign test's interval). Fewer than 6 runs cannot reach 95 %; they give all they
    have.

    >>> bounded_median([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 99.0])
    Estimate(value=5.0, low=2.0, high=8.0)
    """
    whole = median_of_runs(values)
    ordered, count = sorted(values), len(values)
    missed, outside = 0.0, 0
    while True:
        missed += 2 * math.comb(count, outside) / 2**count
        if missed > _MISSED:
            break
        outside += 1
    place = max(outside - 1, 0)
    return Estimate(
        value=whole.value, low=ordered[place], high=ordered[count - 1 - place]
    )


def deviation_of(values: Sequence[float]) -> float:
    """Return the sample standard deviation of two values or more.

    >>> deviation_of([1.0, 3.0])
    1.4142135623730951
    """
    if len(values) < 2:  # noqa: PLR2004 - one value has no spread
        raise InvalidInputError(
            f"a deviation needs at least two values, got {len(values)}"
        )
    return float(np.std(np.asarray(values, np.float64), ddof=1))


def prediction_reach(deviation: float, *, of: int, mean_of: int) -> float:
    """Return half the width of a 95 % prediction interval for one more observation.

    ``t(0.975, of - 1) · deviation · sqrt(1 + 1 / mean_of)`` for normal observations: a
    bound for the next one, not for the mean (Hahn & Meeker, Statistical Intervals, 1991,
    §4.7). With `mean_of` less than `of`, the deviation is borrowed from others that are
    taken to vary alike.

    Args:
        deviation: of observations, >= 0.
        of: how many it is from, >= 2.
        mean_of: how many the centre of the interval is the mean of, >= 1.

    >>> round(prediction_reach(1.0, of=3, mean_of=3), 2)
    4.97
    """
    from scipy.special import stdtrit

    if of < 2 or mean_of < 1:  # noqa: PLR2004 - one value has no spread
        raise InvalidInputError(
            f"a prediction needs a deviation of 2 values and a mean of 1, got {of}"
            f" and {mean_of}"
        )
    quantile = float(stdtrit(of - 1, 1 - _MISSED / 2))
    return quantile * deviation * math.sqrt(1 + 1 / mean_of)


def _check(values: Values, blocks: Blocks) -> None:
    if values.shape != (blocks.positions,) or not np.isfinite(values).all():
        raise InvalidInputError(
            f"measured values must be {blocks.positions} finite numbers,"
            f" got shape {list(values.shape)}"
        )


def _bounded(value: float, resampled: Values) -> Estimate:
    low, high = np.percentile(resampled, [_LOW, _HIGH])
    return Estimate(
        value=value, low=min(float(low), value), high=max(float(high), value)
    )
