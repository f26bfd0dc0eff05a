"""Activation statistics of a model on disk: what its matrices are multiplied with.

One NumPy archive without pickle and without a date: equal statistics give equal bytes,
and a hostile file can be wrong but cannot run. Tensors that are multiplied with the
same input (query, key and value; gate and up) share one entry. Members, with *x* the
input of a matrix, one row a token:

- ``version``: int32, 1; ``tokens``: int64, rows seen by every matrix.
- ``tensors``: (n,) GGUF names; ``input_of``: (n,) int32, each tensor's input.
- ``mean_square.I``: (width,) float32, mean of ``x**2`` by channel. It is what llama.cpp
  calls the importance matrix.
- ``moment.I`` (optional): (width * (width + 1) / 2,) float32, the lower triangle of
  ``xᵀ x / tokens``, row by row: the Hessian, up to a factor, of the squared error of a
  matrix's output in its weights (Frantar et al. 2022, GPTQ).
- ``block_similarity``: (layers,) float32, mean cosine similarity of a block's input and
  output; 1 minus it is the block influence of Men et al. 2024 (ShortGPT).

A model with tied embeddings has its head's input under ``token_embd.weight``.
"""

import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slmops.domain.errors import InvalidInputError

VERSION = 1
_FIRST_DAY = (1980, 1, 1, 0, 0, 0)
_MEAN_SQUARE, _MOMENT = "mean_square", "moment"
_MAX_WIDTH = 1 << 20
_LEAST_IMPORTANCE = 1e-6
"""Of a channel, in multiples of the mean."""

Floats = npt.NDArray[np.float32]
Members = Iterator[tuple[str, npt.NDArray[Any]]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Statistics:
    """What one model's matrices were multiplied with, on one text."""

    path: Path
    """The file; second moments are read from it when asked for."""
    tokens: int
    """Rows every matrix saw."""
    inputs: Mapping[str, int]
    """Tensor → number of its input; equal numbers are one input."""
    mean_squares: tuple[Floats, ...]
    """By input: (width,) mean square of each channel, finite, >= 0."""
    block_similarity: Floats
    """(layers,) mean cosine similarity of input and output."""
    has_moments: bool
    """Whether the file holds second moments."""

    @property
    def importance(self) -> dict[str, Floats]:
        """Tensor → (width,) importance of its columns, > 0: the importance matrix.

        Channels the text never used weigh almost nothing, but not nothing: a block
        without any weight would be rounded to zeros.
        """
        return {
            name: _positive(self.mean_squares[at]) for name, at in self.inputs.items()
        }

    def moment(self, tensor: str) -> Floats | None:
        """Read a tensor's (width, width) second moments; None if there are none.

        Raises:
            InvalidInputError: damaged.
        """
        at = self.inputs.get(tensor)
        if at is None or not self.has_moments:
            return None
        width = len(self.mean_squares[at])
        try:
            with np.load(self.path, allow_pickle=False) as archive:
                packed = archive[f"{_MOMENT}.{at}"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise InvalidInputError(
                f"{self.path}: moments of {tensor} cannot be read: {error}"
            ) from None
        if packed.shape != (width * (width + 1) // 2,) or packed.dtype != np.float32:
            raise InvalidInputError(
                f"{self.path}: moments of {tensor} must be a float32 triangle of"
                f" {width} rows, got {packed.dtype} {list(packed.shape)}"
            )
        if not np.isfinite(packed).all():
            raise InvalidInputError(f"{self.path}: moments of {tensor} are not finite")
        return unpacked(packed, width)


@dataclass(frozen=True, kw_only=True, slots=True)
class Collected:
    """Statistics before they are written; moments come one at a time."""

    tokens: int
    """Rows every matrix saw."""
    inputs: Mapping[str, int]
    """Tensor → number of its input."""
    mean_squares: tuple[Floats, ...]
    """By input: (width,)."""
    block_similarity: Floats
    """(layers,)."""


def packed(matrix: Floats) -> Floats:
    """Return the lower triangle of a symmetric (n, n) matrix, row by row.

    >>> packed(np.array([[1, 2], [2, 3]], np.float32)).tolist()
    [1.0, 2.0, 3.0]
    """
    rows = [matrix[row, : row + 1] for row in range(len(matrix))]
    return np.concatenate(rows).astype(np.float32, copy=False)


def unpacked(triangle: Floats, width: int) -> Floats:
    """Return the symmetric (width, width) matrix of a packed lower triangle.

    >>> unpacked(np.array([1, 2, 3], np.float32), 2).tolist()
    [[1.0, 2.0], [2.0, 3.0]]
    """
    matrix = np.zeros((width, width), np.float32)
    at = 0
    for row in range(width):
        values = triangle[at : at + row + 1]
        matrix[row, : row + 1] = values
        matrix[: row + 1, row] = values
        at += row + 1
    return matrix


def save_statistics(
    path: Path, collected: Collected, moments: Iterator[Floats] | None = None
) -> None:
    """Write an archive; equal statistics give equal bytes.

    Args:
        path: file to write.
        collected: all but the moments.
        moments: (width, width) of each input, in order; one is in memory at a time.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, array in _members(collected, moments):
            entry = zipfile.ZipInfo(f"{name}.npy", _FIRST_DAY)
            with archive.open(entry, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def load_statistics(path: Path) -> Statistics:
    """Read an archive and check what it says; moments stay on disk.

    Raises:
        InvalidInputError: damaged, or of another kind.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return _read(path, archive)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InvalidInputError(f"{path}: no activation statistics: {error}") from None


def _positive(values: Floats) -> Floats:
    least = np.float32(_LEAST_IMPORTANCE * (float(values.mean()) or 1.0))
    return np.maximum(values, least)


def _members(collected: Collected, moments: Iterator[Floats] | None) -> Members:
    yield "version", np.array(VERSION, np.int32)
    yield "tokens", np.array(collected.tokens, np.int64)
    yield "tensors", np.array(list(collected.inputs), np.str_)
    yield "input_of", np.array(list(collected.inputs.values()), np.int32)
    yield "block_similarity", collected.block_similarity.astype(np.float32)
    for at, values in enumerate(collected.mean_squares):
        yield f"{_MEAN_SQUARE}.{at}", values.astype(np.float32)
    for at, matrix in enumerate(moments or ()):
        yield f"{_MOMENT}.{at}", packed(matrix)


def _read(path: Path, archive: Any) -> Statistics:  # noqa: ANN401 - NumPy's NpzFile
    version = int(archive["version"])
    if version != VERSION:
        raise InvalidInputError(
            f"{path}: statistics must have version {VERSION}, got {version}"
        )
    names, numbers = archive["tensors"], archive["input_of"]
    count = 1 + int(numbers.max(initial=-1))
    if names.dtype.kind != "U" or names.shape != numbers.shape or numbers.min() < 0:
        raise InvalidInputError(f"{path}: tensors and their inputs do not match")
    means = tuple(archive[f"{_MEAN_SQUARE}.{at}"] for at in range(count))
    for name, at in zip(names.tolist(), numbers.tolist(), strict=True):
        _check_means(path, name, means[at])
    held = {name for name in archive.files if name.startswith(_MOMENT)}
    if held not in (set(), {f"{_MOMENT}.{at}" for at in range(count)}):
        raise InvalidInputError(f"{path}: moments of some inputs are missing")
    return Statistics(
        path=path,
        tokens=int(archive["tokens"]),
        inputs=dict(zip(names.tolist(), numbers.tolist(), strict=True)),
        mean_squares=means,
        block_similarity=archive["block_similarity"],
        has_moments=bool(held),
    )


def _check_means(path: Path, name: str, values: npt.NDArray[Any]) -> None:
    if values.dtype != np.float32 or values.ndim != 1 or len(values) > _MAX_WIDTH:
        raise InvalidInputError(
            f"{path}: mean squares of {name} must be one row of float32,"
            f" got {values.dtype} {list(values.shape)}"
        )
    if not np.isfinite(values).all() or values.min(initial=0) < 0:
        raise InvalidInputError(
            f"{path}: mean squares of {name} must be finite and >= 0"
        )
