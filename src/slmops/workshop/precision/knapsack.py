"""Choose one option of each item: least cost within limits, exactly.

The multiple-choice knapsack problem (Kellerer, Pferschy & Pisinger, Knapsack Problems,
2004, chapter 11). With several limits it is solved as an integer program by HiGHS; with
one limit, the points of its Lagrangian (the lower convex hull) come all at once, and
each is the optimum for exactly the size it has.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from slmops.domain.errors import OverBudgetError, UnavailableError

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """What one thing may be."""

    costs: tuple[float, ...]
    """By option: what is minimised, finite."""
    uses: tuple[tuple[float, ...], ...]
    """By option: what it takes of every limit, >= 0."""


def cheapest_choice(items: Sequence[Item], limits: Sequence[float]) -> tuple[int, ...]:
    """Return the option of each item with the least total cost within all limits.

    Optimal up to a millionth of the difference between the dearest and the cheapest
    choice: HiGHS's tolerance.

    Raises:
        OverBudgetError: no choice keeps all limits.
        UnavailableError: the solver gave up.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_matrix

    if not items:
        return ()
    kept = [_undominated(item) for item in items]
    owner = np.repeat(np.arange(len(items)), [len(options) for options in kept])
    pairs = [(item, at) for item, at in zip(items, kept, strict=True)]
    costs = np.array([item.costs[o] for item, options in pairs for o in options])
    uses = np.array([item.uses[o] for item, options in pairs for o in options])
    bounds = np.asarray(limits, np.float64)
    scale = np.where(bounds > 0, bounds, 1.0)
    span = float(np.ptp(costs)) or 1.0
    one_each = csr_matrix((np.ones(len(owner)), (owner, np.arange(len(owner)))))
    shrunk = _least_total(items)
    if (shrunk > np.asarray(limits)).any():
        raise _over(shrunk, limits)
    slack = 0.0
    for _ in range(3):
        found = milp(
            costs / span,
            integrality=np.ones(len(owner)),
            bounds=Bounds(0, 1),
            constraints=[
                LinearConstraint(one_each, 1, 1),
                LinearConstraint(
                    uses.T / scale[:, None], -np.inf, bounds / scale - slack
                ),
            ],
            options={"mip_rel_gap": 0.0},
        )
        if found.x is None:
            raise (
                _over(shrunk, limits)
                if found.status == _INFEASIBLE
                else _gave_up(found.message)
            )
        chosen = _chosen(found.x, owner, kept)
        if _kept(items, chosen, limits):
            return chosen
        # Within the solver's tolerance of a limit, but past it: ask for a little less.
        slack += 1e-6
    raise _gave_up("its tolerance is coarser than the limits")


_INFEASIBLE = 2


def hull_path(items: Sequence[Item]) -> Iterator[tuple[int, ...]]:
    """Yield optimal choices under the first limit, smallest first.

    Each is the optimum for the size it has; between two of them only one item differs.
    """
    chosen = []
    steps = []
    for at, item in enumerate(items):
        hull = _hull(item)
        chosen.append(hull[0])
        for less, more in pairwise(hull):
            gain = item.costs[less] - item.costs[more]
            steps.append((-gain / (item.uses[more][0] - item.uses[less][0]), at, more))
    yield tuple(chosen)
    # Slopes of one hull only fall, so a stable sort keeps each item's steps in order.
    for _, at, more in sorted(steps, key=lambda step: step[0]):
        chosen[at] = more
        yield tuple(chosen)


def greedy_choice(items: Sequence[Item], limit: float) -> tuple[int, ...]:
    """Start smallest, and take the upgrade with the best gain per use while one fits.

    The baseline: it may end below the optimum, because it never takes a step back.

    Raises:
        OverBudgetError: even the smallest choice is too large.
    """
    chosen = [_smallest(item) for item in items]
    used = sum(item.uses[o][0] for item, o in zip(items, chosen, strict=True))
    if used > limit:
        raise OverBudgetError(f"the smallest choice takes {used:g}, of {limit:g}")
    while True:
        best = max(
            _upgrades(items, chosen, limit - used), default=None, key=lambda u: u[0]
        )
        if best is None:
            return tuple(chosen)
        _, at, option = best
        used += items[at].uses[option][0] - items[at].uses[chosen[at]][0]
        chosen[at] = option


def _smallest(item: Item) -> int:
    sizes = [use[0] for use in item.uses]
    return sizes.index(min(sizes))


def _upgrades(
    items: Sequence[Item], chosen: Sequence[int], spare: float
) -> Iterator[tuple[float, int, int]]:
    for at, (item, now) in enumerate(zip(items, chosen, strict=True)):
        for option, (cost, use) in enumerate(zip(item.costs, item.uses, strict=True)):
            more, gain = use[0] - item.uses[now][0], item.costs[now] - cost
            if gain > 0 and more <= spare:
                yield (gain / more if more > 0 else np.inf), at, option


def _undominated(item: Item) -> list[int]:
    """Leave out options that another one beats or equals in everything."""
    kept: list[int] = []
    order = sorted(range(len(item.costs)), key=lambda o: (item.costs[o], item.uses[o]))
    for option in order:
        uses = item.uses[option]
        if not any(
            all(a <= b for a, b in zip(item.uses[other], uses, strict=True))
            for other in kept
        ):
            kept.append(option)
    return kept


def _hull(item: Item) -> list[int]:
    """Return the lower convex hull of cost over the first use, smallest first."""
    order = sorted(
        _undominated(Item(costs=item.costs, uses=tuple(use[:1] for use in item.uses))),
        key=lambda o: item.uses[o][0],
    )
    hull: list[int] = []
    for option in order:
        while len(hull) > 1 and _is_above(item, hull[-2], hull[-1], option):
            hull.pop()
        hull.append(option)
    return hull


def _is_above(item: Item, first: int, middle: int, last: int) -> bool:
    (x0, *_), (x1, *_), (x2, *_) = (item.uses[o] for o in (first, middle, last))
    y0, y1, y2 = (item.costs[o] for o in (first, middle, last))
    return (y0 - y1) * (x2 - x1) <= (y1 - y2) * (x1 - x0)


def _chosen(
    values: Floats, owner: npt.NDArray[np.int64], kept: Sequence[Sequence[int]]
) -> tuple[int, ...]:
    starts = np.searchsorted(owner, np.arange(len(kept)))
    ends = np.append(starts[1:], len(owner))
    return tuple(
        options[int(values[begin:end].argmax())]
        for options, begin, end in zip(kept, starts, ends, strict=True)
    )


def _totals(items: Sequence[Item], chosen: Sequence[int]) -> Floats:
    rows = [item.uses[o] for item, o in zip(items, chosen, strict=True)]
    return np.asarray(np.array(rows, np.float64).sum(axis=0))


def _kept(
    items: Sequence[Item], chosen: Sequence[int], limits: Sequence[float]
) -> bool:
    return bool((_totals(items, chosen) <= np.asarray(limits)).all())


def _least_total(items: Sequence[Item]) -> Floats:
    rows = [np.array(item.uses, np.float64).min(axis=0) for item in items]
    return np.asarray(np.sum(rows, axis=0))


def _over(least: Floats, limits: Sequence[float]) -> OverBudgetError:
    pairs = zip(least.tolist(), limits, strict=True)
    words = ", ".join(f"{low:.6g} of {limit:.6g}" for low, limit in pairs)
    return OverBudgetError(
        f"no choice keeps all limits: the least they take is {words}"
    )


def _gave_up(why: str) -> UnavailableError:
    return UnavailableError(f"the solver found no choice: {why}")
