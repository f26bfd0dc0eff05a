"""Which examples are trained together, and how fast: pure plans, so that runs resume.

The order of a whole run follows from the lengths, the epoch and the seed alone. A run
that was killed needs only the number of its last step to go on as if nothing had been.
"""

import math
from collections.abc import Sequence

import numpy as np

from slmops.domain.errors import InvalidInputError

_POOL_BATCHES = 32
"""Batches whose examples are sorted by length together: enough that neighbours are
equally long, few enough that an epoch keeps its chance."""

SCHEDULES = ("cosine", "linear", "constant")

Batch = tuple[int, ...]


def epoch_batches(
    lengths: Sequence[int], *, batch_tokens: int, seed: int, epoch: int
) -> tuple[Batch, ...]:
    """Group examples of like length; each is in exactly one batch.

    Args:
        lengths: tokens of each example, >= 1.
        batch_tokens: most tokens of one batch, padding included; an example that is
            longer is a batch of its own.
        seed: of the order.
        epoch: its number; every epoch has another order.

    Returns:
        Indices of examples, batch by batch.

    >>> epoch_batches([5, 9, 5, 9], batch_tokens=18, seed=0, epoch=0)
    ((1, 3), (0, 2))
    """
    chance = np.random.default_rng([seed, epoch])
    order = chance.permutation(len(lengths)).tolist()
    mean = sum(lengths) / max(len(lengths), 1)
    pool = max(int(_POOL_BATCHES * batch_tokens / max(mean, 1)), 1)
    batches: list[Batch] = []
    for first in range(0, len(order), pool):
        ordered = sorted(order[first : first + pool], key=lambda i: (lengths[i], i))
        batches += _filled(ordered, lengths, batch_tokens)
    return tuple(batches[index] for index in chance.permutation(len(batches)).tolist())


def fixed_batches(lengths: Sequence[int], *, batch_tokens: int) -> tuple[Batch, ...]:
    """Group all examples, shortest first: for measuring, where order does not matter."""
    order = sorted(range(len(lengths)), key=lambda index: (lengths[index], index))
    return tuple(_filled(order, lengths, batch_tokens))


def padded_share(lengths: Sequence[int], batches: Sequence[Batch]) -> float:
    """Return which share of the tokens computed is padding.

    >>> padded_share([2, 4], [(0, 1)])
    0.25
    """
    computed = sum(max(lengths[i] for i in batch) * len(batch) for batch in batches)
    used = sum(lengths[index] for batch in batches for index in batch)
    return 1 - used / computed if computed else 0.0


def learning_rate_at(
    step: int, *, steps: int, peak: float, warmup: float, schedule: str
) -> float:
    """Return the learning rate of a step.

    Rises linearly over the warm-up, then falls to a tenth (``cosine``), to zero
    (``linear``), or stays (``constant``).

    Args:
        step: from 0.
        steps: of the whole run.
        peak: highest rate.
        warmup: share of the steps.
        schedule: one of `SCHEDULES`.

    >>> [round(learning_rate_at(s, steps=5, peak=1, warmup=0.2, schedule="linear"), 2)
    ...  for s in range(5)]
    [1.0, 1.0, 0.75, 0.5, 0.25]
    """
    rising = math.ceil(warmup * steps)
    if step < rising:
        return peak * (step + 1) / rising
    done = (step - rising) / max(steps - rising, 1)
    if schedule == "cosine":
        return peak * (0.1 + 0.9 * (1 + math.cos(math.pi * done)) / 2)
    if schedule == "linear":
        return peak * (1 - done)
    if schedule == "constant":
        return peak
    raise InvalidInputError(
        f"parameter schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}"
    )


def _filled(
    ordered: Sequence[int], lengths: Sequence[int], batch_tokens: int
) -> list[Batch]:
    """Cut ascending lengths into batches that stay within the budget when padded."""
    batches: list[Batch] = []
    current: list[int] = []
    for index in ordered:
        if current and lengths[index] * (len(current) + 1) > batch_tokens:
            batches.append(tuple(current))
            current = []
        current.append(index)
    if current:
        batches.append(tuple(current))
    return batches
