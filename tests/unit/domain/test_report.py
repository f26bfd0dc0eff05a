"""Histograms on fixed log grids."""

from hypothesis import given
from hypothesis import strategies as st

from slmops.domain.report import (
    GRID_CELLS,
    GRID_MS,
    grid_cell,
    grid_quantile,
    merge_counts,
)

COUNTS = st.lists(st.integers(0, 1000), min_size=GRID_CELLS, max_size=GRID_CELLS).map(
    tuple
)


@given(value=st.floats(1.0, 100_000.0), times=st.integers(1, 50))
def test_a_quantile_is_off_by_at_most_one_cell(value: float, times: int) -> None:
    counts = [0] * GRID_CELLS
    counts[grid_cell(GRID_MS, value)] = times
    found = grid_quantile(GRID_MS, tuple(counts), 0.5)
    assert found is not None
    step = GRID_MS[1] / GRID_MS[0]
    assert value / step <= found <= value * step


@given(a=COUNTS, b=COUNTS)
def test_merging_adds_and_does_not_mind_the_order(
    a: tuple[int, ...], b: tuple[int, ...]
) -> None:
    assert merge_counts(a, b) == merge_counts(b, a)
    assert sum(merge_counts(a, b)) == sum(a) + sum(b)
    assert merge_counts((), a) == a


def test_no_counts_have_no_quantile() -> None:
    assert grid_quantile(GRID_MS, (0,) * GRID_CELLS, 0.5) is None
