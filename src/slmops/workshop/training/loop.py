"""The training loop: resumable to the bit, early stopping, gradient accumulation.

Our own and not transformers' Trainer, because a step's order here follows from seed and
number alone, losses are weighted by learnt tokens across accumulated batches, logits
are computed for learnt positions only, and quantization-aware steps swap weights around
the forward pass; the Trainer needs more code for these than the loop has.
"""

import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from slmops.domain.errors import InvalidInputError
from slmops.wire.codec import decode_json, encode_json
from slmops.workshop.jobs.job import Report
from slmops.workshop.training.batches import Batch, learning_rate_at
from slmops.workshop.training.checkpoint import (
    load_tensors,
    optimizer_tensors,
    restore_optimizer,
    save_tensors,
)
from slmops.workshop.training.log import EvaluationLog, StepLog
from slmops.workshop.training.machine import Machine
from slmops.workshop.training.settings import LoopSettings


class Lesson(Protocol):
    """What is learnt: gradients of batches, and the held-out loss."""

    def learnt(self, batch: Batch) -> int:
        """Return how many tokens of a batch count."""
        ...

    def computed(self, batch: Batch) -> int:
        """Return how many tokens of a batch are computed, padding included."""
        ...

    def learn(self, batch: Batch, scale: float) -> float:
        """Add the gradients of the batch's losses times `scale`; return their sum."""
        ...

    def measure(self, tick: Callable[[], None]) -> tuple[float, float]:
        """Return mean loss and top-1 agreement on what is held out.

        Calls `tick` after every batch; it may raise to stop.
        """
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Course:
    """One training run."""

    lesson: Lesson
    """What is learnt."""
    named: Mapping[str, Any]
    """Name → parameter that is trained."""
    plan: tuple[tuple[Batch, ...], ...]
    """Batches of every step."""
    evaluate_at: frozenset[int]
    """Steps after which the held-out loss is looked at."""
    settings: LoopSettings
    """How it trains."""
    peak: float
    """Highest learning rate."""
    machine: Machine
    """Where it trains."""
    seed: int
    """Of dropout."""
    state: Path
    """Folder for checkpoints."""
    report: Report
    """Told after every step; may raise to stop."""
    around: Callable[[], AbstractContextManager[None]] = nullcontext
    """Entered around every forward and backward pass and every measurement."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far a run is; what a checkpoint holds besides tensors."""

    step: int = 0
    """Steps done."""
    best_step: int = 0
    """Step with the lowest held-out loss."""
    best_loss: float = 0.0
    """That loss; without meaning before the first evaluation."""
    worse: int = 0
    """Evaluations since then."""
    stopped_early: bool = False
    """Whether patience ran out."""
    steps: tuple[StepLog, ...] = field(default=(), repr=False)
    """One per step done."""
    evaluations: tuple[EvaluationLog, ...] = ()
    """One per evaluation."""


def train(course: Course) -> Progress:
    """Train to the end, going on from a checkpoint when there is one.

    Leaves the weights of the best evaluation in the parameters. A run that was killed
    and goes on computes the same bits as one that was not, with equal threads.

    Raises:
        InvalidInputError: the loss is not finite any more.
    """
    run = _Run(course)
    run.restore()
    if not run.progress.evaluations:
        run.evaluate()
    while run.progress.step < len(course.plan) and not run.progress.stopped_early:
        run.step()
        if run.progress.step in course.evaluate_at:
            run.evaluate()
        course.report(run.progress.step, len(course.plan))
    run.take_best()
    return run.progress


class _Run:
    def __init__(self, course: Course) -> None:
        self._course = course
        self.progress = Progress()
        self._optimizer = torch.optim.AdamW(
            list(course.named.values()),
            lr=course.peak,
            weight_decay=course.settings.weight_decay,
            fused=True,
        )
        self._last_save = time.perf_counter()
        self._state = course.state / "training.safetensors"
        self._best = course.state / "best.safetensors"
        course.state.mkdir(parents=True, exist_ok=True)

    def restore(self) -> None:
        found = load_tensors(self._state)
        # Without the best weights so far there is nothing to go on from.
        if found is None or load_tensors(self._best) is None:
            return
        tensors, document = found
        self.progress = decode_json(document, Progress, where=str(self._state))
        self._assign({n: tensors[f"w:{n}"] for n in self._course.named})
        restore_optimizer(
            self._optimizer, self._course.named, tensors, self.progress.step
        )

    def step(self) -> None:
        course, number = self._course, self.progress.step
        course.machine.seed(course.seed, number)
        batches = course.plan[number]
        learnt = sum(map(course.lesson.learnt, batches))
        rate = learning_rate_at(
            number,
            steps=len(course.plan),
            peak=course.peak,
            warmup=course.settings.warmup,
            schedule=course.settings.schedule,
        )
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        with course.around():
            losses = [course.lesson.learn(batch, 1 / learnt) for batch in batches]
        loss = sum(losses) / learnt
        norm = self._clip()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise InvalidInputError(
                f"the loss is not finite at step {number + 1} (loss {loss:g}, gradient"
                f" {norm:g}); train with a lower learning_rate than {course.peak:g}"
            )
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        entry = StepLog(
            step=number + 1,
            loss=loss,
            learning_rate=rate,
            gradient_norm=norm,
            tokens=sum(map(course.lesson.computed, batches)),
        )
        self._advance(step=number + 1, steps=(*self.progress.steps, entry))
        if time.perf_counter() - self._last_save >= course.settings.checkpoint_seconds:
            self._save()

    def evaluate(self) -> None:
        with self._course.around():
            loss, same = self._course.lesson.measure(self._tick)
        step = self.progress.step
        if not math.isfinite(loss):
            raise InvalidInputError(f"the held-out loss is not finite at step {step}")
        entry = EvaluationLog(step=step, loss=loss, same_top1=same)
        first = not self.progress.evaluations
        better = first or loss < self.progress.best_loss
        worse = 0 if better else self.progress.worse + 1
        self._advance(evaluations=(*self.progress.evaluations, entry), worse=worse)
        if better:
            save_tensors(self._best, self._course.named)
            self._advance(best_step=step, best_loss=loss)
        patience = self._course.settings.patience
        last = step >= len(self._course.plan)
        self._advance(stopped_early=0 < patience <= worse and not last)

    def take_best(self) -> None:
        found = load_tensors(self._best)
        if found is None:
            raise InvalidInputError(f"{self._best}: the best weights are gone")
        self._assign(found[0])

    def _tick(self) -> None:
        self._course.report(self.progress.step, len(self._course.plan))

    def _clip(self) -> float:
        parameters = list(self._course.named.values())
        limit = self._course.settings.clip_norm
        return float(torch.nn.utils.clip_grad_norm_(parameters, limit))

    def _assign(self, tensors: Mapping[str, Any]) -> None:
        with torch.no_grad():
            for name, parameter in self._course.named.items():
                parameter.copy_(tensors[name])

    def _save(self) -> None:
        tensors = {f"w:{name}": p for name, p in self._course.named.items()}
        tensors |= optimizer_tensors(self._optimizer, self._course.named)
        save_tensors(self._state, tensors, encode_json(self.progress).decode())
        self._last_save = time.perf_counter()

    def _advance(self, **changes: Any) -> None:  # noqa: ANN401 - fields of Progress
        self.progress = replace(self.progress, **changes)
