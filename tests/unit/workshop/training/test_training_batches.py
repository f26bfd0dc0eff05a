"""Batches hold every example once, with little padding; rates rise and fall."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmops.domain.errors import InvalidInputError
from slmops.workshop.training.batches import (
    epoch_batches,
    fixed_batches,
    learning_rate_at,
    padded_share,
)

LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=200)


@given(lengths=LENGTHS, budget=st.integers(8, 600), epoch=st.integers(0, 3))
def test_every_example_is_in_one_batch_within_the_budget(
    lengths: list[int], budget: int, epoch: int
) -> None:
    batches = epoch_batches(lengths, batch_tokens=budget, seed=1, epoch=epoch)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[index] for index in batch)
        assert len(batch) == 1 or longest * len(batch) <= budget
    fixed = fixed_batches(lengths, batch_tokens=budget)
    assert sorted(i for batch in fixed for i in batch) == list(range(len(lengths)))


def test_epochs_differ_and_seeds_repeat() -> None:
    lengths = [5 + index % 7 for index in range(60)]

    def batches(seed: int, epoch: int) -> Sequence[tuple[int, ...]]:
        return epoch_batches(lengths, batch_tokens=40, seed=seed, epoch=epoch)

    assert batches(0, 0) == batches(0, 0)
    assert len({batches(0, 0), batches(0, 1), batches(1, 0)}) == 3


def test_little_is_padding_when_lengths_differ_widely() -> None:
    lengths = [10 + (index * 37) % 190 for index in range(2000)]
    batches = epoch_batches(lengths, batch_tokens=1024, seed=0, epoch=0)
    assert padded_share(lengths, batches) < 0.05


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_the_rate_rises_to_its_peak_and_never_above(schedule: str) -> None:
    rates = [
        learning_rate_at(step, steps=50, peak=2.0, warmup=0.2, schedule=schedule)
        for step in range(50)
    ]
    assert rates[:10] == pytest.approx([0.2 * step for step in range(1, 11)])
    assert max(rates) == 2.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    last = {"cosine": 0.2, "linear": 0.05, "constant": 2.0}[schedule]
    assert rates[-1] == pytest.approx(last, abs=0.01)


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="schedule must be one of cosine"):
        learning_rate_at(3, steps=5, peak=1.0, warmup=0.0, schedule="sawtooth")
