"""Fixed log grids for histograms: counts add, so windows and devices merge by addition."""

import math
from bisect import bisect_right

GRID_CELLS = 48
"""Cells of every grid; the first and the last also hold what lies outside."""


def log_grid(low: float, high: float) -> tuple[float, ...]:
    """Return the `GRID_CELLS` - 1 inner borders of a grid equal in log scale.

    Args:
        low: upper border of the first cell, > 0.
        high: lower border of the last cell, > `low`.

    >>> grid = log_grid(1.0, 100.0)
    >>> len(grid), grid[0], round(grid[-1], 6)
    (47, 1.0, 100.0)
    """
    steps = GRID_CELLS - 2
    return tuple(low * (high / low) ** (i / steps) for i in range(steps + 1))


GRID_MS = log_grid(1.0, 100_000.0)
"""Borders for times in ms."""
GRID_PER_S = log_grid(0.1, 1_000.0)
"""Borders for rates per second."""


def grid_cell(grid: tuple[float, ...], value: float) -> int:
    """Return the index of the cell that holds `value`, 0 to `GRID_CELLS` - 1.

    >>> grid_cell(GRID_MS, 0.5), grid_cell(GRID_MS, 1e9)
    (0, 47)
    """
    return bisect_right(grid, value)


def merge_counts(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    """Add two histograms; an empty one counts as all zeros.

    >>> merge_counts((1, 2), (3, 4)), merge_counts((), (1,))
    ((4, 6), (1,))
    """
    if not a or not b:
        return a or b
    return tuple(x + y for x, y in zip(a, b, strict=True))


def grid_quantile(
    grid: tuple[float, ...], counts: tuple[int, ...], share: float
) -> float | None:
    """Return the `share` quantile, off by at most one cell's width; None when empty.

    Args:
        grid: borders from `log_grid`.
        counts: one count per cell.
        share: 0 to 1.

    >>> counts = [0] * GRID_CELLS
    >>> counts[grid_cell(GRID_MS, 10.0)] = 5
    >>> 9 < grid_quantile(GRID_MS, tuple(counts), 0.5) < 13
    True
    """
    total = sum(counts)
    if total == 0:
        return None
    wanted, seen = share * total, 0
    for cell, count in enumerate(counts):
        seen += count
        if count and seen >= wanted:
            low = grid[max(cell - 1, 0)]
            high = grid[min(cell, len(grid) - 1)]
            return math.sqrt(low * high)
    return grid[-1]
