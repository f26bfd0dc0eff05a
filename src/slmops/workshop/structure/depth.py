"""Depth pruning: take whole transformer blocks out of a model.

A block adds to the residual stream, so a model without it still computes; what is lost
is what the block added. Every removed block saves its bytes, its time and its share of
the KV cache.

Which blocks go is decided by *block influence*, one minus the cosine similarity of a
block's input and output (Men et al. 2024, ShortGPT), from activation statistics; or,
better and dearer, by measuring: see `measured_depth`.

Some architectures give each block a role by its number: every sixth of Gemma 3 sees
the whole context, every fourth of SmolLM3 has no positions. There only whole periods
go, so that every block that stays keeps its role.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from slmops.domain.errors import InvalidInputError
from slmops.workshop.gguf_file import MetadataEntry
from slmops.workshop.gguf_writer import metadata_entry
from slmops.workshop.jobs.job import Job, Report, unheard
from slmops.workshop.precision.statistics_file import load_statistics
from slmops.workshop.structure.measured_depth import (
    Measurement,
    Removals,
    measured_removals,
    save_removals,
)
from slmops.workshop.structure.model_edit import (
    SourceModel,
    TensorEdit,
    array_like,
    copied,
    read_source,
    with_changes,
    write_model,
)

MODEL, REMOVAL = "model", "removal"
"""Roles of the outputs."""
METHODS = ("influence", "measured")
"""How blocks are chosen."""

_BLOCK = re.compile(r"blk\.(\d+)\.(.+)")
_UNPOSITIONED_EVERY = {"smollm3": 4}
_SCALED_BY_DEPTH = {"gemma2": 46, "gemma3": 62}
"""llama.cpp takes this number of blocks for the 27-billion model and scales its
attention differently: neither may be made from the other."""


def prune_depth(job: Job) -> Mapping[str, Path]:
    """Make a model with fewer blocks.

    Inputs: ``model``, a 16-bit GGUF; ``statistics`` for the method ``influence``;
    ``text``, UTF-8, for the method ``measured``.
    Parameters: ``layers``, how many blocks the result has; ``method``; and for
    ``measured`` optionally ``tokens`` to score (default 768), ``window_tokens`` (256)
    and ``runtime``.

    Returns:
        ``model``, and ``removal``: JSON of the blocks that went, in order, with the KL
        divergence after each where it was measured.

    Raises:
        InvalidInputError: a number of blocks that cannot be had, a missing input, or
            statistics of another model.
    """
    source = read_source(job.inputs["model"])
    count = source.shape.layers - job.parameter("layers", int)
    units = removable_units(source, count)
    method = job.parameters.get("method", METHODS[0])
    if method == "measured":
        removals = _measured(job, source, units, count)
    elif method == "influence":
        influence = _influence(job, source)
        removals = Removals.chosen(least_influential(units, influence, count))
    else:
        raise InvalidInputError(f"method must be one of {METHODS}, got {method!r}")
    model, removal = job.output / "model.gguf", job.output / "removal.json"
    remove_blocks(source, removals.blocks, model, job.report)
    save_removals(removals, removal)
    return {MODEL: model, REMOVAL: removal}


def removable_units(source: SourceModel, count: int) -> tuple[tuple[int, ...], ...]:
    """Return what can be taken out at once: single blocks, or whole periods.

    Raises:
        InvalidInputError: `count` blocks cannot be taken out.
    """
    layers, period = source.shape.layers, _period(source)
    if not 0 < count < layers:
        raise InvalidInputError(
            f"layers must be 1 to {layers - 1}: the model has {layers} blocks,"
            f" got {layers - count}"
        )
    if count % period:
        possible = range(layers - layers // period * period, layers, period)
        raise InvalidInputError(
            f"{source.shape.architecture} blocks have roles that repeat every {period},"
            f" so whole periods go: layers must be one of"
            f" {', '.join(str(left) for left in possible if left)}, got {layers - count}"
        )
    _check_scale(source, layers - count)
    return tuple(
        tuple(range(first, first + period))
        for first in range(0, layers - period + 1, period)
    )


def least_influential(
    units: Sequence[tuple[int, ...]], influence: npt.NDArray[np.float32], count: int
) -> tuple[tuple[int, ...], ...]:
    """Return the units of least influence that together hold `count` blocks.

    Args:
        units: blocks that go together, all of one length.
        influence: (layers,) one minus the cosine similarity of input and output.
        count: blocks to take out.

    >>> least_influential([(0,), (1,), (2,)], np.float32([0.9, 0.1, 0.2]), 2)
    ((1,), (2,))
    """
    order = sorted(units, key=lambda unit: (float(influence[list(unit)].sum()), unit))
    return tuple(order[: count // len(units[0])])


def remove_blocks(
    source: SourceModel, removed: Iterable[int], path: Path, report: Report = unheard
) -> Path:
    """Write the model without some blocks; the others move up.

    Raises:
        InvalidInputError: a block that stays would get another role.
    """
    gone = set(removed)
    kept = [block for block in range(source.shape.layers) if block not in gone]
    _check_roles(source, kept)
    _check_scale(source, len(kept))
    new_number = {block: number for number, block in enumerate(kept)}
    edits: list[TensorEdit] = []
    for tensor in source.header.tensors:
        found = _BLOCK.fullmatch(tensor.name)
        if found is None:
            edits.append(copied(tensor))
        elif int(found[1]) in new_number:
            name = f"blk.{new_number[int(found[1])]}.{found[2]}"
            edits.append(copied(tensor, name))
    return write_model(source, _metadata(source, kept), edits, path, report)


def _metadata(source: SourceModel, kept: Sequence[int]) -> tuple[MetadataEntry, ...]:
    changes = [metadata_entry(source.key("block_count"), len(kept), "UINT32")]
    for entry in source.header.metadata:
        per_block = entry.is_array and entry.length == source.shape.layers
        if per_block and entry.key.startswith(source.key("")):
            items = list(entry.items())
            changes.append(array_like(entry, [items[b] for b in kept]))
    return with_changes(source, changes)


def _period(source: SourceModel) -> int:
    shape = source.shape
    return _UNPOSITIONED_EVERY.get(shape.architecture, max(shape.global_every, 1))


def _check_roles(source: SourceModel, kept: Sequence[int]) -> None:
    period = _period(source)
    for number, block in enumerate(kept):
        if ((block + 1) % period == 0) != ((number + 1) % period == 0):
            raise InvalidInputError(
                f"block {block} would become block {number}: every {period}th block of"
                f" {source.shape.architecture} has another role, and theirs differ"
            )


def _check_scale(source: SourceModel, layers: int) -> None:
    special = _SCALED_BY_DEPTH.get(source.shape.architecture)
    if special in {layers, source.shape.layers}:
        raise InvalidInputError(
            f"a {source.shape.architecture} of {special} blocks has another attention"
            f" scale: {source.shape.layers} blocks cannot become {layers}"
        )


def _influence(job: Job, source: SourceModel) -> npt.NDArray[np.float32]:
    path = _input(job, "statistics", "influence")
    similarity = load_statistics(path).block_similarity
    if similarity.shape != (source.shape.layers,):
        raise InvalidInputError(
            f"{path}: statistics must be of a model with {source.shape.layers} blocks,"
            f" got {len(similarity)}"
        )
    return np.float32(1) - similarity


def _measured(
    job: Job, source: SourceModel, units: Sequence[tuple[int, ...]], count: int
) -> Removals:
    measurement = Measurement(
        model=source.header,
        text=_input(job, "text", "measured"),
        state=job.state,
        tokens=_optional(job, "tokens", 768),
        window_tokens=_optional(job, "window_tokens", 256),
        runtime=str(job.parameters.get("runtime") or "llamacpp"),
        threads=job.threads,
    )
    return measured_removals(measurement, units, count // len(units[0]), job.report)


def _input(job: Job, role: str, method: str) -> Path:
    if role not in job.inputs:
        raise InvalidInputError(f"method {method} needs the input {role}")
    return job.inputs[role]


def _optional(job: Job, name: str, default: int) -> int:
    return job.parameter(name, int) if name in job.parameters else default
