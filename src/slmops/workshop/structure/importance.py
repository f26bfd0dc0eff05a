"""How much channels and heads contribute to what a block adds.

The contribution of input channel *c* to a matrix's output has the mean square
``E[x_c²] ‖W[:, c]‖²``. Activation statistics give the first factor. Without them the
norms of the weights that make the channel stand in for it.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from slmops.domain.errors import InvalidInputError
from slmops.workshop.gguf_file import TensorEntry
from slmops.workshop.precision.statistics_file import Statistics, load_statistics
from slmops.workshop.quantize import read_rows
from slmops.workshop.structure.model_edit import SourceModel

Scores = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockScores:
    """Mean square contributions within one block; comparable within a field only."""

    channels: Scores
    """(feed-forward,)."""
    heads: Scores
    """(query heads,)."""
    kv_heads: int
    """Key and value heads; query heads are grouped by them, in order."""


def read_statistics(path: Path | None, source: SourceModel) -> Statistics | None:
    """Read statistics and check that they are of this model; None without a path.

    Raises:
        InvalidInputError: damaged, or of a model of other sizes.
    """
    if path is None:
        return None
    statistics = load_statistics(path)
    for tensor in source.header.tensors:
        at = statistics.inputs.get(tensor.name)
        if at is not None and len(statistics.mean_squares[at]) != tensor.width:
            raise InvalidInputError(
                f"{path}: statistics of another model: {tensor.name} has"
                f" {tensor.width} columns, they have {len(statistics.mean_squares[at])}"
            )
    return statistics


def score_block(
    source: SourceModel, block: int, statistics: Statistics | None
) -> BlockScores:
    """Score a block's feed-forward channels and attention heads."""
    shape = source.shape
    down = _column_squares(source, f"blk.{block}.ffn_down.weight")
    output = _column_squares(source, f"blk.{block}.attn_output.weight")
    inner = _mean_square(statistics, f"blk.{block}.ffn_down.weight")
    mixed = _mean_square(statistics, f"blk.{block}.attn_output.weight")
    if inner is None:
        inner = _row_squares(source, f"blk.{block}.ffn_up.weight")
        if _find(source, f"blk.{block}.ffn_gate.weight"):
            inner = inner * _row_squares(source, f"blk.{block}.ffn_gate.weight")
    if mixed is None:
        made = _row_squares(source, f"blk.{block}.attn_v.weight")
        heads = made.reshape(shape.kv_heads, shape.value_width)
        mixed = heads.repeat(shape.heads // shape.kv_heads, axis=0).ravel()
    per_head = (mixed * output).reshape(shape.heads, shape.value_width)
    return BlockScores(
        channels=inner * down, heads=per_head.sum(axis=1), kv_heads=shape.kv_heads
    )


def _mean_square(statistics: Statistics | None, tensor: str) -> Scores | None:
    if statistics is None or tensor not in statistics.inputs:
        return None
    return statistics.mean_squares[statistics.inputs[tensor]].astype(np.float64)


def _column_squares(source: SourceModel, name: str) -> Scores:
    tensor = _tensor(source, name)
    total = np.zeros(tensor.width)
    with source.header.path.open("rb") as file:
        for rows in read_rows(file, tensor):
            total += np.square(rows, dtype=np.float64).sum(axis=0)
    return total


def _row_squares(source: SourceModel, name: str) -> Scores:
    with source.header.path.open("rb") as file:
        return np.concatenate(
            [
                np.square(rows, dtype=np.float64).sum(axis=1)
                for rows in read_rows(file, _tensor(source, name))
            ]
        )


def _tensor(source: SourceModel, name: str) -> TensorEntry:
    found = _find(source, name)
    if found is None:
        raise InvalidInputError(f"{source.header.path}: tensor {name!r} is missing")
    return found


def _find(source: SourceModel, name: str) -> TensorEntry | None:
    for tensor in source.header.tensors:
        if tensor.name == name:
            return tensor
    return None
