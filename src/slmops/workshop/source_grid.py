"""The grid a quantized source left: which weights of a reference were rounded before.

A reference made from a quantized file holds weights that lie on that file's grids, one
type for each tensor. Rounding such a tensor to the very same type again costs nothing,
so a candidate that does so looks better than it is. How much better depends on which
tensors that are, hence types are kept tensor by tensor and a candidate is judged by
the rounding error it is spared.

Structures inherit what they keep: a tensor of which whole rows were kept, bit for bit, lies
on the grid it came from, under whatever name and however many rows are left. Dropped
columns cut blocks anew, and training moves weights; both leave the grid.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slmops.domain.errors import InvalidInputError
from slmops.domain.ids import Digest, digest_hex
from slmops.registry.blobs import write_atomically
from slmops.registry.workspace import Workspace
from slmops.wire.codec import decode_json, encode_json
from slmops.workshop.gguf_file import BLOCKS, GgufHeader, TensorEntry, read_header
from slmops.workshop.precision.damage import TYPICAL_ERRORS
from slmops.workshop.quantize import QuantizedFile

Types = Mapping[str, str]
"""Tensor of a 16-bit model → type its weights were once rounded to; others never were."""

FLATTERED_SHARE = 0.1
"""Share of its rounding error that a candidate must be spared to be called flattered.
Divergence grows with that error, so it is then about a tenth too low: as much as the
95 % bounds of a usual evaluation leave open, while less would drown in them."""

_FULL = frozenset({"F64", "F32", "F16", "BF16"})
_STORED: Mapping[str, np.dtype[Any]] = {
    "F16": np.dtype("<u2"),
    "BF16": np.dtype("<u2"),
    "F32": np.dtype("<u4"),
}
_SAMPLED_ROWS = 5

Stored = npt.NDArray[np.unsignedinteger[Any]]
"""Weights as they are stored, never decoded."""

_BLOCK = re.compile(r"blk\.\d+\.")
_BITS_ERROR = 3.4
"""Relative squared error of types that are in no table: this, times 4 to the minus bits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceTypes:
    """What is kept of a quantized source, in a file beside its model's record."""

    types: dict[str, str]
    """Tensor → type; tensors of 16 bits or more are not in it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GridShare:
    """How much of a candidate was rounded to the same types before."""

    bytes: float
    """Share of the bytes of its matrices, 0 to 1."""
    error: float
    """Share of its usual rounding error that it is spared, 0 to 1."""

    @property
    def is_flattered(self) -> bool:
        """Whether its fidelity looks clearly better than it is."""
        return self.error >= FLATTERED_SHARE


def source_types(tensors: tuple[TensorEntry, ...]) -> dict[str, str]:
    """Return which of a source's tensors are quantized, and to what."""
    return {tensor.name: tensor.kind for tensor in tensors if tensor.kind not in _FULL}


def main_type(tensors: tuple[TensorEntry, ...], types: Types) -> str | None:
    """Return the type that most weights were rounded to; None when none was."""
    weights: Counter[str] = Counter()
    for tensor in tensors:
        if tensor.name in types:
            weights[types[tensor.name]] += tensor.elements
    return weights.most_common(1)[0][0] if weights else None


def grid_share(file: QuantizedFile, types: Types) -> GridShare:
    """Tell how much of a quantized file lies on the grids its model came with.

    Args:
        file: its tensors with their types, named as the model's.
        types: of the model.
    """
    matrices = [tensor for tensor in file.tensors if len(tensor.shape) > 1]
    met = [tensor for tensor in matrices if types.get(tensor.name) == tensor.kind]
    error = sum(map(_usual_error, matrices))
    return GridShare(
        bytes=sum(t.bytes for t in met) / max(sum(t.bytes for t in matrices), 1),
        error=sum(map(_usual_error, met)) / error if error else 0.0,
    )


def _usual_error(tensor: TensorEntry) -> float:
    if tensor.kind in _STORED:
        return 0.0
    weights, size = BLOCKS[tensor.kind]
    usual = TYPICAL_ERRORS.get(tensor.kind, _BITS_ERROR * 4 ** (-8 * size / weights))
    return usual * tensor.elements


def save_source_types(workspace: Workspace, model: Digest, types: Types) -> None:
    """Keep the types of an imported model's source beside its record."""
    document = SourceTypes(types=dict(types))
    write_atomically(_path(workspace, model), encode_json(document))


def load_source_types(
    workspace: Workspace, model: Digest, main: str | None, header: GgufHeader
) -> Types:
    """Return the types an imported model's source had.

    Args:
        workspace: holds the model.
        model: its digest.
        main: main type of its source, as its record says; None for a 16-bit source.
        header: of the 16-bit reference.

    Returns:
        What was kept at import. Older imports kept the main type alone: then every
        matrix is taken to have had it, until the source is imported again.

    Raises:
        InvalidInputError: what was kept is damaged.
    """
    path = _path(workspace, model)
    if path.is_file():
        return decode_json(path.read_bytes(), SourceTypes, where=str(path)).types
    if main is None:
        return {}
    return {t.name: main for t in header.tensors if len(t.shape) > 1}


def has_source_types(workspace: Workspace, model: Digest) -> bool:
    """Tell whether a model's source types were kept at import."""
    return _path(workspace, model).is_file()


def _path(workspace: Workspace, model: Digest) -> Path:
    return workspace.models / f"{digest_hex(model)}.types"


@dataclass(kw_only=True, slots=True)
class SourceGrid:
    """The grid of one imported model, followed into what is made from it."""

    reference: Path | None = None
    """The model's 16-bit GGUF; None where nothing lies on a grid."""
    types: Types = field(default_factory=dict)
    """Of the model."""
    _known: dict[Path, Types] = field(default_factory=dict)

    def types_of(self, model: Path) -> Types:
        """Return the types of a 16-bit model that was made from the imported one.

        Raises:
            InvalidInputError: it is no GGUF file, or damaged.
        """
        if self.reference is None or not self.types or model == self.reference:
            return self.types
        if model not in self._known:
            self._known[model] = kept_types(self.reference, self.types, model)
        return self._known[model]


def kept_types(reference: Path, types: Types, model: Path) -> Types:
    """Return the types of those tensors of `model` that are rows of `reference`'s.

    A few rows of each tensor are looked for, bit for bit, in the tensors that have the
    same role in any block.

    Args:
        reference: 16-bit GGUF.
        types: of its tensors.
        model: 16-bit GGUF that was made from it.
    """
    before, after = read_header(reference), read_header(model)
    found = {}
    for tensor in after.tensors:
        if len(tensor.shape) < 2 or tensor.kind not in _STORED:  # noqa: PLR2004
            continue
        rows = _sampled(_stored(after, tensor))
        for source in _possible_sources(before, types, tensor):
            if _holds(_stored(before, source), rows, tensor.rows):
                found[tensor.name] = types[source.name]
                break
    return found


def _possible_sources(
    header: GgufHeader, types: Types, tensor: TensorEntry
) -> Iterator[TensorEntry]:
    """Yield tensors that one could be rows of, its own namesake first."""
    role = _BLOCK.sub("", tensor.name)
    fitting = [
        each
        for each in header.tensors
        if each.name in types
        and (each.width, each.kind) == (tensor.width, tensor.kind)
        and each.rows >= tensor.rows
        and _BLOCK.sub("", each.name) == role
    ]
    yield from sorted(fitting, key=lambda each: each.name != tensor.name)


def _stored(header: GgufHeader, tensor: TensorEntry) -> Stored:
    """Map a tensor as it is stored: (rows, width) of integers."""
    try:
        return np.memmap(
            header.path,
            dtype=_STORED[tensor.kind],
            mode="r",
            offset=tensor.offset,
            shape=(tensor.rows, tensor.width),
        )
    except ValueError:
        raise InvalidInputError(
            f"{header.path}: cut off in tensor {tensor.name!r}"
        ) from None


def _sampled(
    stored: Stored,
) -> list[tuple[int, Stored]]:
    """Return some rows that are not all zeros, evenly spaced, with their places."""
    places = np.linspace(0, len(stored) - 1, min(len(stored), _SAMPLED_ROWS))
    picked = [(int(place), np.array(stored[int(place)])) for place in places.round()]
    return [(place, row) for place, row in picked if row.any()]


def _holds(
    stored: Stored,
    rows: list[tuple[int, Stored]],
    count: int,
) -> bool:
    """Tell whether a tensor has all those rows, in the same place if as many are kept."""
    if not rows:
        return False
    if len(stored) == count:
        return all(np.array_equal(stored[place], row) for place, row in rows)
    return all(_has_row(stored, row) for _, row in rows)


def _has_row(stored: Stored, row: Stored) -> bool:
    start = min(8, len(row))
    alike = np.flatnonzero((stored[:, :start] == row[:start]).all(axis=1))
    return any(np.array_equal(stored[place], row) for place in alike)
