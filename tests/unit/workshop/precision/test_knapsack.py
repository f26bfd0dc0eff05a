"""The knapsack: as good as trying everything, within every limit."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmops.domain.errors import OverBudgetError
from slmops.workshop.precision.knapsack import (
    Item,
    cheapest_choice,
    greedy_choice,
    hull_path,
)


@st.composite
def item_lists(draw: st.DrawFn, limits: int) -> list[Item]:
    costs = st.floats(0, 10).map(lambda value: round(value, 3))
    uses = st.tuples(*[st.integers(0, 200)] * limits)
    options = st.lists(st.tuples(costs, uses), min_size=1, max_size=4)
    return [
        Item(costs=tuple(cost for cost, _ in each), uses=tuple(use for _, use in each))
        for each in draw(st.lists(options, min_size=1, max_size=5))
    ]


def total_cost(items: list[Item], chosen: tuple[int, ...]) -> float:
    return sum(item.costs[o] for item, o in zip(items, chosen, strict=True))


def total_use(items: list[Item], chosen: tuple[int, ...], limit: int) -> float:
    return sum(item.uses[o][limit] for item, o in zip(items, chosen, strict=True))


def brute_force(items: list[Item], limits: list[int]) -> float | None:
    every = product(*[range(len(item.costs)) for item in items])
    kept = [
        total_cost(items, chosen)
        for chosen in every
        if all(total_use(items, chosen, at) <= limit for at, limit in enumerate(limits))
    ]
    return min(kept, default=None)


@given(items=item_lists(1), limit=st.integers(0, 800))
def test_one_limit_gives_what_trying_everything_gives(
    items: list[Item], limit: int
) -> None:
    check(items, [limit])


@given(
    items=item_lists(2), limits=st.lists(st.integers(0, 800), min_size=2, max_size=2)
)
def test_two_limits_give_what_trying_everything_gives(
    items: list[Item], limits: list[int]
) -> None:
    check(items, limits)


def check(items: list[Item], limits: list[int]) -> None:
    best = brute_force(items, limits)
    if best is None:
        with pytest.raises(OverBudgetError):
            cheapest_choice(items, limits)
        return
    chosen = cheapest_choice(items, limits)
    for at, limit in enumerate(limits):
        assert total_use(items, chosen, at) <= limit
    assert total_cost(items, chosen) == pytest.approx(best, abs=1e-4)


@given(items=item_lists(1))
def test_every_point_of_the_path_is_the_best_of_its_size(items: list[Item]) -> None:
    sizes = []
    for chosen in hull_path(items):
        size = int(total_use(items, chosen, 0))
        sizes.append(size)
        assert total_cost(items, chosen) == pytest.approx(
            brute_force(items, [size]), abs=1e-9
        )
    assert sizes == sorted(set(sizes))


@given(items=item_lists(1), limit=st.integers(0, 800))
def test_greed_keeps_the_limit_and_never_beats_the_optimum(
    items: list[Item], limit: int
) -> None:
    best = brute_force(items, [limit])
    if best is None:
        with pytest.raises(OverBudgetError):
            greedy_choice(items, limit)
        return
    chosen = greedy_choice(items, limit)
    assert total_use(items, chosen, 0) <= limit
    assert total_cost(items, chosen) >= best - 1e-9


def test_greed_can_be_wrong_where_the_knapsack_is_right() -> None:
    items = [
        Item(costs=(10, 4), uses=((0,), (5,))),
        Item(costs=(10, 0), uses=((0,), (10,))),
    ]
    assert total_cost(items, greedy_choice(items, 10)) == 14
    assert total_cost(items, cheapest_choice(items, [10])) == 10


def test_a_limit_that_cannot_be_kept_says_what_it_would_take() -> None:
    items = [Item(costs=(1.0,), uses=((30,),)), Item(costs=(1.0,), uses=((12,),))]
    with pytest.raises(OverBudgetError, match="42 of 41"):
        cheapest_choice(items, [41])


def test_hundreds_of_items_of_megabytes_are_solved_within_the_limit() -> None:
    sizes = (186624, 228096, 352512)
    items = [
        Item(
            costs=tuple((at % 17 + 1) * 1e-4 / 4**step for step in range(3)),
            uses=tuple((size * (1 + at % 3),) for size in sizes),
        )
        for at in range(210)
    ]
    limit = 105_000_000
    chosen = cheapest_choice(items, [limit])
    below = [
        total_cost(items, each)
        for each in hull_path(items)
        if total_use(items, each, 0) <= limit
    ]
    assert total_use(items, chosen, 0) <= limit
    assert total_cost(items, chosen) <= below[-1] + 1e-9
