"""Ask a teacher once: its distributions of every learnt position, streamed to disk."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from slmops.workshop.jobs.job import Report
from slmops.workshop.training.batches import fixed_batches
from slmops.workshop.training.bridge import TorchModel
from slmops.workshop.training.chat import TokenExample
from slmops.workshop.training.lessons import Sequences
from slmops.workshop.training.losses import HEAD_ROWS
from slmops.workshop.training.machine import Machine
from slmops.workshop.training.teacher import record_starts, record_type
from slmops.workshop.training.untyped import Tensor

_SYNC_BATCHES = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherPlan:
    """How a teacher is asked."""

    top_k: int
    """Tokens listed, at most the vocabulary."""
    temperature: float
    """Divides the logits."""
    batch_tokens: int
    """Most tokens computed together."""
    machine: Machine
    """Where."""


def write_teacher_file(
    model: TorchModel,
    examples: Sequence[TokenExample],
    path: Path,
    *,
    plan: TeacherPlan,
    report: Report,
    wanted: Sequence[int] | None = None,
) -> None:
    """Write what the model says of the sequences; goes on where a killed run was.

    Args:
        model: the teacher.
        examples: sequences; their learnt positions are written.
        path: file to write. Beside it lies a partial file until all is written.
        plan: how.
        report: told positions done, and of how many.
        wanted: the sequences to ask about, ascending, the same ones in every run; all
            by default. Records of others are zeros, which take no room on the disk.
    """
    if path.is_file():
        return
    partial, mark = path.with_suffix(".partial"), path.with_suffix(".done")
    starts = record_starts(examples)
    dtype = record_type(plan.top_k, model.causal.config.vocab_size)
    asked = range(len(examples)) if wanted is None else wanted
    lengths = [len(examples[index].tokens) for index in asked]
    batches = [
        tuple(asked[place] for place in batch)
        for batch in fixed_batches(lengths, batch_tokens=plan.batch_tokens)
    ]
    done = int(mark.read_text()) if mark.is_file() and partial.is_file() else 0
    records: Tensor = np.lib.format.open_memmap(
        partial, "r+" if done else "w+", dtype, (int(starts[-1]),)
    )
    sequences = Sequences(tuple(examples), plan.machine)
    model.causal.eval()
    written = sum(sequences.learnt(batch) for batch in batches[:done])
    total = sequences.learnt(tuple(asked))
    for number, batch in enumerate(batches[done:], start=done + 1):
        with torch.no_grad():
            hidden, _ = sequences.states(model, batch)
            places = np.concatenate(
                [np.arange(starts[i], starts[i + 1]) for i in batch]
            )
            _write_rows(model, hidden, records, places, plan)
        written += len(places)
        if number % _SYNC_BATCHES == 0 or number == len(batches):
            records.flush()
            mark.write_text(str(number))
        report(written, total)
    del records
    partial.replace(path)


def _write_rows(
    model: TorchModel,
    hidden: Tensor,
    records: Tensor,
    places: Tensor,
    plan: TeacherPlan,
) -> None:
    for first in range(0, len(hidden), HEAD_ROWS):
        rows = slice(first, first + HEAD_ROWS)
        logits = model.logits(hidden[rows]) / plan.temperature
        best = (logits - logits.logsumexp(1, keepdim=True)).topk(plan.top_k, dim=1)
        found = np.zeros(len(logits), records.dtype)
        found["ids"] = best.indices.cpu().numpy()
        found["logprobs"] = best.values.cpu().numpy()
        records[places[rows]] = found
