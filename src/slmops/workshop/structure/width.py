"""Width pruning: fewer feed-forward channels and attention heads in every block.

A channel of the feed-forward part is a row of gate and up and a column of down; a head
is rows of query, key and value and columns of the attention output. Taking one out
leaves a smaller dense model that any runtime runs, faster in proportion.

What goes is what contributes least to the block's output on the calibration text: the
mean square of a channel times the squared norm of the column it is multiplied with,
which is Wanda's score (Sun et al. 2023) summed over a column. Without statistics,
weights alone decide. Query heads go with the key and value head they share.

With second moments in the statistics, what is left makes up for what went: the output
matrix is refitted by least squares to what it gave before (the update of Optimal Brain
Surgeon, Hassibi & Stork 1992, for whole columns).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from slmops.domain.errors import InvalidInputError
from slmops.workshop.gguf_file import TensorEntry
from slmops.workshop.jobs.job import Job, Report, unheard
from slmops.workshop.precision.statistics_file import Statistics
from slmops.workshop.quantize import Matrix
from slmops.workshop.structure.importance import (
    BlockScores,
    read_statistics,
    score_block,
)
from slmops.workshop.structure.model_edit import (
    Indices,
    SourceModel,
    TensorEdit,
    changed_metadata,
    copied,
    read_source,
    rewritten,
    selected,
    write_model,
)

MODEL = "model"
"""Role of the output."""

_BLOCK = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
_ROWS = {
    "ffn_gate": "channels",
    "ffn_up": "channels",
    "attn_q": "query",
    "attn_k": "key",
    "attn_v": "value",
}
_COLUMNS = {"ffn_down": "channels", "attn_output": "output"}
_WHOLE = re.compile(r"\w*_norm|rope_freqs|rope_factors_\w+")
_STEP = 32
_GOOD_STEP = 256
_UNEXPLAINED_RATIO = 4.0
"""(1 − R²) / R² for R² of a fifth."""
_SCALED_BY_WIDTH = {"gemma2": 46, "gemma3": 62}
"""Their 27-billion models scale attention by width and heads (llama.cpp)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Widths:
    """Sizes wanted."""

    feed_forward: int
    """Feed-forward channels."""
    heads: int
    """Query heads."""
    kv_heads: int
    """Key and value heads."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockKept:
    """What stays of one block, in its new order."""

    channels: Indices
    """Feed-forward channels."""
    kv_heads: Indices
    """Key and value heads."""
    heads: Indices
    """Query heads, grouped as `kv_heads` are."""


def prune_width(job: Job) -> Mapping[str, Path]:
    """Make a model with narrower blocks.

    Inputs: ``model``, a 16-bit GGUF; optionally ``statistics``, with second moments for
    the refit.
    Parameters: ``feed_forward`` (a multiple of 32; of 256 where K-quants are wanted),
    ``heads``, ``kv_heads``; 0 leaves a size as it is. Heads alone thin out every group;
    kv_heads alone takes out whole groups. Optional ``refit``, true unless told: whether
    output matrices are refitted where there are second moments.

    Returns:
        ``model``.

    Raises:
        InvalidInputError: sizes that cannot be had, tensors these rules do not know, or
            statistics of another model.
    """
    source = read_source(job.inputs["model"])
    wanted = resolve_widths(
        source,
        feed_forward=job.parameter("feed_forward", int),
        heads=job.parameter("heads", int),
        kv_heads=job.parameter("kv_heads", int),
    )
    statistics = read_statistics(job.inputs.get("statistics"), source)
    kept = choose_kept(source, wanted, statistics, job.report)
    refit = "refit" not in job.parameters or job.parameter("refit", bool)
    path = job.output / "model.gguf"
    moments = statistics if refit else None
    write_narrower(source, kept, path, statistics=moments, report=job.report)
    return {MODEL: path}


def resolve_widths(
    source: SourceModel, *, feed_forward: int = 0, heads: int = 0, kv_heads: int = 0
) -> Widths:
    """Fill in what is left as it is, and check what is wanted.

    Raises:
        InvalidInputError: nothing to do, or sizes that cannot be had.
    """
    shape = source.shape
    ratio = shape.heads // shape.kv_heads
    wanted = Widths(
        feed_forward=feed_forward or shape.feed_forward,
        heads=heads or (kv_heads * ratio if kv_heads else shape.heads),
        kv_heads=kv_heads or shape.kv_heads,
    )
    _check_range("feed_forward", wanted.feed_forward, shape.feed_forward)
    _check_range("heads", wanted.heads, shape.heads)
    _check_range("kv_heads", wanted.kv_heads, shape.kv_heads)
    if wanted == _widths_of(source):
        raise InvalidInputError(
            "prune-width needs a smaller feed_forward, heads or kv_heads; all are as"
            f" the model has them: {shape.feed_forward}, {shape.heads}, {shape.kv_heads}"
        )
    if wanted.feed_forward % _STEP:
        below = wanted.feed_forward // _STEP * _STEP
        raise InvalidInputError(
            f"feed_forward must be a multiple of {_STEP}, the smallest block of a"
            f" quantized row, and better of {_GOOD_STEP}: {below} or {below + _STEP},"
            f" got {wanted.feed_forward}"
        )
    _check_heads(source, wanted)
    return wanted


def choose_kept(
    source: SourceModel,
    wanted: Widths,
    statistics: Statistics | None = None,
    report: Report = unheard,
) -> list[BlockKept]:
    """Decide block by block what contributes most."""
    kept = []
    for block in range(source.shape.layers):
        report(block, 2 * source.shape.layers)
        scores = score_block(source, block, statistics)
        kv_heads, heads = _kept_heads(scores, wanted)
        channels = _largest(scores.channels, wanted.feed_forward)
        kept.append(BlockKept(channels=channels, kv_heads=kv_heads, heads=heads))
    return kept


def write_narrower(
    source: SourceModel,
    kept: list[BlockKept],
    path: Path,
    *,
    statistics: Statistics | None = None,
    report: Report = unheard,
) -> Path:
    """Write the model with what is kept.

    Args:
        source: the model.
        kept: one for each block; all of equal sizes.
        path: file to write.
        statistics: with second moments, output matrices are refitted.
        report: told how far it is.
    """
    edits = [
        _edit(source, tensor, kept, statistics) for tensor in source.header.tensors
    ]
    sizes = {"feed_forward_length": len(kept[0].channels)}
    if len(kept[0].heads) != source.shape.heads:
        sizes |= {
            "attention.head_count": len(kept[0].heads),
            "attention.head_count_kv": len(kept[0].kv_heads),
            "attention.key_length": source.shape.key_width,
            "attention.value_length": source.shape.value_width,
        }
    return write_model(source, changed_metadata(source, sizes), edits, path, report)


def refitted(weights: Matrix, moment: Matrix, kept: Indices, *, tokens: int) -> Matrix:
    """Return columns that give nearly what all columns gave.

    Ridge regression of what went on what is left: minimizes E‖W x − W' x_kept‖² +
    λ Σ_c E[x_c²] ‖W'_c − W_c‖². With p columns kept and n tokens seen, the best λ for
    independent columns is (p / n) (1 − R²) / R² (Hoerl & Kennard 1970); R², the share
    of what went that the rest can tell, is taken as a fifth. Fewer tokens, less change:
    without it the refit learns the calibration text's chance correlations.

    Args:
        weights: (rows, columns).
        moment: (columns, columns), E[x xᵀ].
        kept: columns to keep.
        tokens: rows that `moment` is a mean of.

    Returns:
        (rows, kept).
    """
    second = moment.astype(np.float64)
    gone = np.setdiff1d(np.arange(len(second)), kept)
    inside = second[np.ix_(kept, kept)]
    squares = np.diag(inside).copy()
    ridge = _UNEXPLAINED_RATIO * len(kept) / max(tokens, 1)
    # A channel that was always zero gets a ridge too: it cannot tell anything.
    inside[np.diag_indices_from(inside)] += ridge * squares + 1e-6 * squares.mean()
    carried = np.linalg.solve(inside, second[np.ix_(kept, gone)])
    change = weights[:, gone].astype(np.float64) @ carried.T
    return (weights[:, kept] + change).astype(np.float32)


def _edit(
    source: SourceModel,
    tensor: TensorEntry,
    kept: list[BlockKept],
    statistics: Statistics | None,
) -> TensorEdit:
    found = _BLOCK.fullmatch(tensor.name)
    if found is None:
        return copied(tensor)
    part = found[2]
    picks = _picks(source, kept[int(found[1])])
    if part in _ROWS:
        pick = picks[_ROWS[part]]
        is_bias = len(tensor.shape) == 1
        return (
            selected(tensor, columns=pick) if is_bias else selected(tensor, rows=pick)
        )
    if part in _COLUMNS:
        return _narrowed_output(tensor, picks[_COLUMNS[part]], statistics)
    _check_whole(source, tensor, part)
    return copied(tensor)


def _narrowed_output(
    tensor: TensorEntry, pick: Indices, statistics: Statistics | None
) -> TensorEdit:
    if len(tensor.shape) == 1 or len(pick) == tensor.width:
        is_bias = len(tensor.shape) == 1
        return copied(tensor) if is_bias else selected(tensor, columns=pick)
    if statistics is None or not statistics.has_moments:
        return selected(tensor, columns=pick)

    def refit(weights: Matrix) -> Matrix:
        moment = statistics.moment(tensor.name)
        if moment is None:
            return weights[:, pick]
        return refitted(weights, moment, pick, tokens=statistics.tokens)

    return rewritten(tensor, len(pick), refit)


def _picks(source: SourceModel, kept: BlockKept) -> dict[str, Indices]:
    shape = source.shape
    return {
        "channels": kept.channels,
        "query": _spread(kept.heads, shape.key_width),
        "key": _spread(kept.kv_heads, shape.key_width),
        "value": _spread(kept.kv_heads, shape.value_width),
        "output": _spread(kept.heads, shape.value_width),
    }


def _spread(heads: Indices, width: int) -> Indices:
    return np.asarray((heads[:, None] * width + np.arange(width)).ravel(), np.int64)


def _kept_heads(scores: BlockScores, wanted: Widths) -> tuple[Indices, Indices]:
    groups = scores.heads.reshape(scores.kv_heads, -1)
    ratio = groups.shape[1]
    kv_heads = _largest(groups.sum(axis=1), wanted.kv_heads)
    per_group = wanted.heads // wanted.kv_heads
    heads = [group * ratio + _largest(groups[group], per_group) for group in kv_heads]
    return kv_heads, np.concatenate(heads)


def _largest(values: npt.NDArray[np.float64], count: int) -> Indices:
    """Return the places of the `count` largest, ascending; ties go to the first."""
    return np.sort(np.argsort(-values, kind="stable")[:count])


def _widths_of(source: SourceModel) -> Widths:
    shape = source.shape
    return Widths(
        feed_forward=shape.feed_forward, heads=shape.heads, kv_heads=shape.kv_heads
    )


def _check_range(name: str, value: int, most: int) -> None:
    if not 1 <= value <= most:
        raise InvalidInputError(f"{name} must be 0 (leave) to {most}, got {value}")


def _check_heads(source: SourceModel, wanted: Widths) -> None:
    shape = source.shape
    if wanted.heads % wanted.kv_heads:
        raise InvalidInputError(
            f"heads must be a multiple of kv_heads, got {wanted.heads} and"
            f" {wanted.kv_heads}"
        )
    if wanted.heads // wanted.kv_heads > shape.heads // shape.kv_heads:
        raise InvalidInputError(
            f"heads must be at most {wanted.kv_heads * shape.heads // shape.kv_heads}:"
            f" each key and value head has {shape.heads // shape.kv_heads} query heads,"
            f" got {wanted.heads} for {wanted.kv_heads}"
        )
    width = wanted.heads * shape.value_width
    if width % _STEP:
        raise InvalidInputError(
            f"heads x {shape.value_width} must be a multiple of {_STEP}, got {width}"
        )
    scaled = _SCALED_BY_WIDTH.get(shape.architecture) == shape.layers
    if scaled and wanted.heads != shape.heads:
        raise InvalidInputError(
            f"heads of a {shape.architecture} of {shape.layers} blocks must stay"
            f" {shape.heads}: its attention scale depends on them"
        )


def _check_whole(source: SourceModel, tensor: TensorEntry, part: str) -> None:
    per_head = part in {"attn_q_norm", "attn_k_norm"}
    if not _WHOLE.fullmatch(part) or (
        per_head and tensor.width != source.shape.key_width
    ):
        raise InvalidInputError(
            f"{source.header.path}: width pruning does not know what to do with"
            f" {tensor.name} of shape {list(tensor.shape)}"
        )
