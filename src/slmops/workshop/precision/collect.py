"""Run calibration text through a model and gather activation statistics; a job.

Text is cut into windows of equal length that do not overlap; every token of a window
counts. Sums are over batches, so memory is the model, one batch, and what second
moments are kept in memory; the rest of these is added up in files.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from slmops.domain.errors import InvalidInputError
from slmops.runtimes.base import WorkerSettings
from slmops.runtimes.llamacpp_activations import ActivationReader
from slmops.workshop.jobs.job import Job
from slmops.workshop.precision.statistics_file import (
    Collected,
    Floats,
    save_statistics,
)

STATISTICS = "statistics"
"""Role of the output."""
MOMENTS_IN_MEMORY = 256 << 20
"""Bytes of second moments that are added up in memory; all others on disk."""

_Sums = npt.NDArray[np.float64]


def collect_statistics(job: Job) -> Mapping[str, Path]:
    """Gather what a model's matrices are multiplied with: kind ``statistics``.

    Inputs: ``model`` (GGUF), ``text`` (UTF-8). Parameters: ``tokens`` (at most so many
    are used), ``window_tokens``, ``hessians`` (second moments too: the statistics then
    take 2 bytes for every pair of a matrix's columns, instead of some kilobytes).
    Output: ``statistics``, as `statistics_file` describes it.

    Raises:
        InvalidInputError: less text than one window, or a model llama.cpp refuses.
        UnavailableError: llama.cpp's structures are not those known here.
    """
    window = job.parameter("window_tokens", int)
    gathered = _Gathered(folder=job.state, moments=job.parameter("hessians", bool))
    reader = ActivationReader(
        job.inputs["model"],
        WorkerSettings(threads=job.threads, context_tokens=window),
        on_input=gathered.add_input,
        on_block=gathered.add_block,
    )
    try:
        tokens = reader.tokenize(job.inputs["text"].read_text(encoding="utf-8"))
        windows = calibration_windows(tokens, window, job.parameter("tokens", int))
        for done, part in enumerate(windows):
            job.report(done, len(windows))
            reader.run(part)
            gathered.tokens += len(part)
    finally:
        reader.close()
    path = job.output / "statistics.npz"
    moments = gathered.moment_matrices() if gathered.moments else None
    save_statistics(path, gathered.means(), moments)
    job.report(len(windows), len(windows))
    return {STATISTICS: path}


def calibration_windows(
    tokens: Sequence[int], window: int, limit: int
) -> list[Sequence[int]]:
    """Cut a text into whole windows, at most `limit` tokens in all, at least one.

    Raises:
        InvalidInputError: the text is shorter than one window.

    >>> calibration_windows([1, 2, 3, 4, 5], 2, 100)
    [[1, 2], [3, 4]]
    """
    count = min(len(tokens), max(limit, window)) // window
    if count < 1:
        raise InvalidInputError(
            f"calibration text must have at least {window} tokens, got {len(tokens)}"
        )
    return [tokens[at * window : (at + 1) * window] for at in range(count)]


@dataclass(slots=True, kw_only=True)
class _Gathered:
    """Sums so far."""

    folder: Path
    moments: bool
    tokens: int = 0
    inputs: dict[str, int] = field(default_factory=dict)
    squares: list[_Sums] = field(default_factory=list)
    blocks: dict[int, float] = field(default_factory=dict)
    matrices: list[Floats | Path] = field(default_factory=list)
    in_memory: int = 0

    def add_input(self, weight: str, rows: Floats, first: str | None) -> None:
        if first is not None:
            self.inputs.setdefault(weight, self.inputs[first])
            return
        if not np.isfinite(rows).all():
            raise InvalidInputError(
                f"the input of {weight} is not finite: the model's weights are bad"
            )
        if weight not in self.inputs:
            self.inputs[weight] = len(self.squares)
            self.squares.append(np.zeros(rows.shape[1]))
            if self.moments:
                self.matrices.append(self._new_matrix(rows.shape[1]))
        at = self.inputs[weight]
        self.squares[at] += np.einsum("tc,tc->c", rows, rows, dtype=np.float64)
        if self.moments:
            self._add_moment(at, rows)

    def add_block(self, block: int, before: Floats, after: Floats) -> None:
        products = np.einsum("tc,tc->t", before, after, dtype=np.float64)
        lengths = np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
        cosines = products / np.maximum(lengths, np.finfo(np.float32).tiny)
        self.blocks[block] = self.blocks.get(block, 0.0) + float(cosines.sum())

    def means(self) -> Collected:
        return Collected(
            tokens=self.tokens,
            inputs=self.inputs,
            mean_squares=tuple(
                (sums / self.tokens).astype(np.float32) for sums in self.squares
            ),
            block_similarity=np.array(
                [self.blocks[block] / self.tokens for block in sorted(self.blocks)],
                np.float32,
            ),
        )

    def moment_matrices(self) -> Iterator[Floats]:
        for at, matrix in enumerate(self.matrices):
            width = len(self.squares[at])
            sums = _opened(matrix, width) if isinstance(matrix, Path) else matrix
            yield sums / np.float32(self.tokens)

    def _new_matrix(self, width: int) -> Floats | Path:
        size = 4 * width * width
        if self.in_memory + size <= MOMENTS_IN_MEMORY:
            self.in_memory += size
            return np.zeros((width, width), np.float32)
        path = self.folder / f"moment-{len(self.matrices)}"
        with path.open("wb") as file:
            file.truncate(size)
        return path

    def _add_moment(self, at: int, rows: Floats) -> None:
        matrix = self.matrices[at]
        product = rows.T @ rows
        if isinstance(matrix, Path):
            # Mapped for the moment of adding only: pages of a map count as memory.
            sums = _opened(matrix, len(product))
            sums += product
        else:
            matrix += product


def _opened(path: Path, width: int) -> Floats:
    return np.memmap(path, np.float32, mode="r+", shape=(width, width))
