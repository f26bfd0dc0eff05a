"""A teacher's distributions on disk: computed once, read a few rows at a time.

A NumPy array file with one record for each learnt position: the most likely tokens with
their log-probabilities at the distillation's temperature. What is not listed is one
outcome, whose mass follows. Rows are half precision, so 1 million positions of 64 tokens
are 256 MB.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slmops.domain.errors import InvalidInputError
from slmops.workshop.training.chat import TokenExample


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherRows:
    """Some positions."""

    ids: npt.NDArray[Any]
    """(rows, k) tokens, most likely first."""
    logprobs: npt.NDArray[np.float16]
    """(rows, k) nats."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherFile:
    """What a teacher said of some sequences."""

    records: npt.NDArray[Any]
    """(positions,), mapped from disk."""
    starts: npt.NDArray[np.int64]
    """(sequences + 1,) first record of each."""

    def rows(self, sequences: Sequence[int], part: slice) -> TeacherRows:
        """Return a part of the positions of some sequences, in their order."""
        spans = [np.arange(self.starts[i], self.starts[i + 1]) for i in sequences]
        found = self.records[np.concatenate(spans)[part]]
        return TeacherRows(ids=found["ids"], logprobs=found["logprobs"])


def record_type(top_k: int, vocabulary: int) -> np.dtype[Any]:
    """Return the layout of one position."""
    number = "<u2" if vocabulary <= 1 << 16 else "<u4"
    return np.dtype([("ids", number, (top_k,)), ("logprobs", "<f2", (top_k,))])


def record_starts(examples: Sequence[TokenExample]) -> npt.NDArray[np.int64]:
    """Return the first record of each sequence, and behind the last."""
    counts = [int(example.learnt.sum()) for example in examples]
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)


def open_teacher_file(
    path: Path, examples: Sequence[TokenExample], dtype: np.dtype[Any]
) -> TeacherFile:
    """Map a finished file and check that it is of these sequences.

    Raises:
        InvalidInputError: damaged, or of another text, vocabulary or top_k.
    """
    starts = record_starts(examples)
    try:
        records = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InvalidInputError(f"{path}: no teacher's logits: {error}") from None
    if records.dtype != dtype or records.shape != (starts[-1],):
        raise InvalidInputError(
            f"{path}: teacher's logits must be {starts[-1]} records of {dtype}, got"
            f" {records.shape} of {records.dtype}: they are of another text or top_k"
        )
    return TeacherFile(records=records, starts=starts)
