"""Lessons: true answers, or a teacher's distribution, over sequences of tokens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from slmops.workshop.training.batches import Batch, epoch_batches, fixed_batches
from slmops.workshop.training.bridge import TorchModel
from slmops.workshop.training.chat import TokenExample
from slmops.workshop.training.losses import (
    HEAD_ROWS,
    answer_loss,
    backward_by_rows,
    teacher_loss,
)
from slmops.workshop.training.machine import Machine
from slmops.workshop.training.settings import LoopSettings
from slmops.workshop.training.teacher import TeacherFile
from slmops.workshop.training.untyped import Tensor

Losses = Callable[[Tensor, Tensor, Batch, slice], tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class Sequences:
    """Sequences as tensors on one device."""

    examples: tuple[TokenExample, ...]
    machine: Machine

    @property
    def lengths(self) -> list[int]:
        """Tokens of each."""
        return [len(example.tokens) for example in self.examples]

    def learnt(self, batch: Batch) -> int:
        """Tokens of a batch that count."""
        return sum(int(self.examples[index].learnt.sum()) for index in batch)

    def computed(self, batch: Batch) -> int:
        """Tokens of a padded batch."""
        return len(batch) * max(len(self.examples[index].tokens) for index in batch)

    def states(self, model: TorchModel, batch: Batch) -> tuple[Tensor, Tensor]:
        """Compute the states that predict a batch's learnt tokens.

        Returns:
            (positions, width) states, (positions,) true tokens; example by example.
        """
        rows = [self.examples[index] for index in batch]
        shape = (len(rows), max(len(row.tokens) for row in rows))
        tokens, learnt = np.zeros(shape, np.int64), np.zeros(shape, np.bool_)
        for index, row in enumerate(rows):
            tokens[index, : len(row.tokens)] = row.tokens
            learnt[index, : len(row.tokens)] = row.learnt
        ids = torch.from_numpy(tokens).to(self.machine.device)
        row_of, place = (torch.from_numpy(part) for part in np.nonzero(learnt))
        with self.machine.arithmetic():
            hidden = model.hidden(ids)
        at = (row_of.to(ids.device), place.to(ids.device))
        return hidden[at[0], at[1] - 1], ids[at]


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenLesson:
    """Learns what `losses` say of the positions; see `slmops.workshop.training.loop`."""

    model: TorchModel
    training: Sequences
    held_out: Sequences
    batch_tokens: int
    losses: Losses
    """Gives (rows,) losses and whether the top token is right, of the logits, the true
    tokens, the batch and the rows, for training sequences."""
    held_out_losses: Losses
    """The same for held-out ones."""

    def learnt(self, batch: Batch) -> int:
        """Tokens that count."""
        return self.training.learnt(batch)

    def computed(self, batch: Batch) -> int:
        """Tokens computed."""
        return self.training.computed(batch)

    def learn(self, batch: Batch, scale: float) -> float:
        """Add gradients."""
        self.model.causal.train()
        hidden, targets = self.training.states(self.model, batch)

        def loss_of(states: Tensor, rows: slice) -> Tensor:
            logits = self.model.logits(states)
            return self.losses(logits, targets[rows], batch, rows)[0]

        return backward_by_rows(hidden, loss_of, scale)

    def measure(self, tick: Callable[[], None]) -> tuple[float, float]:
        """Return mean loss and top-1 agreement of the held-out sequences."""
        self.model.causal.eval()
        total, same, count = 0.0, 0, 0
        batches = fixed_batches(self.held_out.lengths, batch_tokens=self.batch_tokens)
        with torch.no_grad():
            for batch in batches:
                hidden, targets = self.held_out.states(self.model, batch)
                for first in range(0, len(hidden), HEAD_ROWS):
                    rows = slice(first, first + HEAD_ROWS)
                    logits = self.model.logits(hidden[rows])
                    loss, right = self.held_out_losses(
                        logits, targets[rows], batch, rows
                    )
                    total += float(loss.sum())
                    same += int(right.sum())
                count += len(hidden)
                tick()
        return total / count, same / count


def true_tokens(
    logits: Tensor, targets: Tensor, batch: Batch, rows: slice
) -> tuple[Tensor, Tensor]:
    """`Losses` of learning from examples."""
    return answer_loss(logits, targets), logits.argmax(1) == targets


@dataclass(frozen=True, kw_only=True, slots=True)
class TaughtTokens:
    """`Losses` of learning from a teacher."""

    teacher: TeacherFile
    """What it said of these sequences."""
    first: int
    """Index of the first of them in the teacher's file."""
    temperature: float
    label_weight: float
    """Share of the loss that is cross entropy with the true tokens."""

    def __call__(
        self,
        logits: Tensor,
        targets: Tensor,
        batch: Batch,
        rows: slice,
    ) -> tuple[Tensor, Tensor]:
        """Return losses and whether student and teacher name the same token."""
        found = self.teacher.rows([self.first + index for index in batch], rows)
        ids = torch.from_numpy(found.ids.astype(np.int64)).to(logits.device)
        logprobs = torch.from_numpy(found.logprobs.astype(np.float32)).to(logits.device)
        loss = teacher_loss(logits, ids, logprobs, temperature=self.temperature)
        if self.label_weight:
            labels = answer_loss(logits, targets)
            loss = (1 - self.label_weight) * loss + self.label_weight * labels
        return loss, logits.argmax(1) == ids[:, 0]


def step_plan(
    lengths: Sequence[int], settings: LoopSettings, *, seed: int
) -> tuple[tuple[tuple[Batch, ...], ...], frozenset[int]]:
    """Return the batches of every step of a run, and after which steps to look.

    Args:
        lengths: tokens of each sequence.
        settings: of the loop.
        seed: of the order.
    """
    steps: list[tuple[Batch, ...]] = []
    looks: set[int] = set()
    epoch = 0
    while len(steps) < settings.max_steps or (
        not settings.max_steps and epoch < settings.epochs
    ):
        batches = epoch_batches(
            lengths, batch_tokens=settings.batch_tokens, seed=seed, epoch=epoch
        )
        for first in range(0, len(batches), settings.accumulation):
            steps += [batches[first : first + settings.accumulation]]
        looks.add(len(steps))
        epoch += 1
    count = settings.max_steps or len(steps)
    every = settings.evaluate_every
    if every:
        looks = set(range(every, count, every))
    return tuple(steps[:count]), frozenset(
        {look for look in looks if look < count} | {count}
    )
