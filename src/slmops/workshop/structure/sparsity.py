"""Unstructured and 2:4 sparsity: single weights set to zero.

Zeros stay where they are stored: GGUF keeps dense blocks and llama.cpp multiplies with
all of them, so sparsity alone saves no bytes and no time in these runtimes. It is here
to be measured, for runtimes that use it, and because a sparse file compresses better on
the wire.

Three scores decide which weights go. *Magnitude*: the smallest of a matrix. *Wanda*
(Sun et al. 2023): the smallest ``|w| * norm of its input`` of each row. *SparseGPT*
(Frantar & Alistarh 2023), in `sparsegpt`: what hurts the output least once the other
weights of the row make up for it.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from slmops.domain.errors import InvalidInputError
from slmops.workshop.gguf_file import TensorEntry
from slmops.workshop.jobs.job import Job
from slmops.workshop.precision.statistics_file import Statistics
from slmops.workshop.quantize import Matrix
from slmops.workshop.structure.importance import read_statistics
from slmops.workshop.structure.model_edit import (
    copied,
    read_source,
    rewritten,
    with_changes,
    write_model,
)
from slmops.workshop.structure.sparsegpt import sparsegpt

MODEL = "model"
"""Role of the output."""
METHODS = ("magnitude", "wanda", "sparsegpt")
"""Which weights go."""
PATTERNS = ("unstructured", "2:4")
"""Where they may lie: anywhere, or two of each four neighbours in a row."""

_PRUNED = re.compile(r"blk\.\d+\.(attn_(q|k|v|output)|ffn_(gate|up|down))\.weight")
_GROUP, _KEPT_OF_GROUP = 4, 2
_HALF = 0.5

Mask = npt.NDArray[np.bool_]
"""(rows, columns), true where a weight goes."""


def sparsify(job: Job) -> Mapping[str, Path]:
    """Set weights of all block matrices to zero; embeddings, head and norms stay.

    Inputs: ``model``, a 16-bit GGUF; ``statistics`` for ``wanda`` and ``sparsegpt``,
    with second moments for the latter.
    Parameters: ``method``; ``pattern``; ``sparsity``, the share of zeros, above 0 and
    below 1 (0.5 for ``2:4``).

    Returns:
        ``model``.

    Raises:
        InvalidInputError: a parameter out of range, missing statistics, or rows that
            groups of four do not divide.
    """
    method = _one_of("method", job.parameter("method", str), METHODS)
    pattern = _one_of("pattern", job.parameter("pattern", str), PATTERNS)
    share = _share(job.parameter("sparsity", float), pattern)
    source = read_source(job.inputs["model"])
    statistics = read_statistics(job.inputs.get("statistics"), source)
    edits = [
        rewritten(
            tensor, tensor.width, _rewriter(tensor, method, pattern, share, statistics)
        )
        if _PRUNED.fullmatch(tensor.name)
        else copied(tensor)
        for tensor in source.header.tensors
    ]
    path = job.output / "model.gguf"
    write_model(source, with_changes(source, []), edits, path, job.report)
    return {MODEL: path}


def smallest_of_matrix(scores: Matrix, share: float) -> Mask:
    """Return where the smallest scores of a whole matrix are.

    Args:
        scores: (rows, columns), >= 0.
        share: of all entries, rounded down to a count.
    """
    flat = scores.ravel()
    mask = np.zeros(flat.shape, np.bool_)
    mask[np.argsort(flat, kind="stable")[: int(share * flat.size)]] = True
    return mask.reshape(scores.shape)


def smallest_of_rows(scores: Matrix, share: float) -> Mask:
    """Return where the smallest scores of each row are; `share` is of each row."""
    order = np.argsort(scores, axis=1, kind="stable")
    mask = np.zeros(scores.shape, np.bool_)
    gone = order[:, : int(share * scores.shape[1])]
    np.put_along_axis(mask, gone, values=True, axis=1)
    return mask


def smallest_of_fours(scores: Matrix) -> Mask:
    """Return where the two smallest of each four neighbours in a row are.

    >>> smallest_of_fours(np.float32([[3, 1, 2, 4]])).tolist()
    [[False, True, True, False]]
    """
    groups = scores.reshape(-1, _GROUP)
    return smallest_of_rows(groups, _KEPT_OF_GROUP / _GROUP).reshape(scores.shape)


def _rewriter(
    tensor: TensorEntry,
    method: str,
    pattern: str,
    share: float,
    statistics: Statistics | None,
) -> Callable[[Matrix], Matrix]:
    if pattern == PATTERNS[1] and tensor.width % _GROUP:
        raise InvalidInputError(
            f"2:4 needs rows of a multiple of 4, {tensor.name} has {tensor.width}"
        )
    if method == "magnitude":
        return lambda weights: _zeroed(weights, _magnitude(weights, pattern, share))
    if statistics is None or tensor.name not in statistics.inputs:
        raise InvalidInputError(
            f"{method} needs the input statistics, with {tensor.name} in it"
        )
    if method == "wanda":
        squares = statistics.importance[tensor.name]
        return lambda weights: _zeroed(
            weights, _wanda(weights, squares, pattern, share)
        )
    if not statistics.has_moments:
        raise InvalidInputError(
            f"sparsegpt needs second moments, and {statistics.path} was made without"
        )

    def pruned(weights: Matrix) -> Matrix:
        moment = statistics.moment(tensor.name)
        if moment is None:
            raise InvalidInputError(f"{statistics.path}: no moments of {tensor.name}")
        return sparsegpt(weights, moment, share, fours=pattern == PATTERNS[1])

    return pruned


def _magnitude(weights: Matrix, pattern: str, share: float) -> Mask:
    scores = np.abs(weights)
    if pattern == PATTERNS[1]:
        return smallest_of_fours(scores)
    return smallest_of_matrix(scores, share)


def _wanda(
    weights: Matrix, squares: npt.NDArray[np.float32], pattern: str, share: float
) -> Mask:
    scores = np.abs(weights) * np.sqrt(squares)
    if pattern == PATTERNS[1]:
        return smallest_of_fours(scores)
    return smallest_of_rows(scores, share)


def _zeroed(weights: Matrix, mask: Mask) -> Matrix:
    return np.where(mask, np.float32(0), weights)


def _one_of(name: str, value: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise InvalidInputError(
            f"{name} must be one of {', '.join(known)}, got {value!r}"
        )
    return value


def _share(share: float, pattern: str) -> float:
    if not 0 < share < 1:
        raise InvalidInputError(
            f"sparsity must be above 0 and below 1, the share of zeros, got {share:g}"
        )
    if pattern == PATTERNS[1] and share != _HALF:
        raise InvalidInputError(f"sparsity of 2:4 is 0.5, got {share:g}")
    return share
