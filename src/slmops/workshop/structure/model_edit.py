"""Change a 16-bit GGUF model tensor by tensor: select, rename, rewrite.

An edit says what one tensor becomes and yields its bytes while the file is written, so
memory stays at a few chunks (or one tensor, where an edit needs all of it). What an
edit only selects keeps its bits: rows and columns are copied as they are stored, never
decoded.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from gguf.constants import GGUFValueType

from slmops.domain.errors import InvalidInputError
from slmops.workshop.gguf_file import (
    GgufHeader,
    MetadataEntry,
    Scalar,
    TensorEntry,
    read_header,
)
from slmops.workshop.gguf_writer import metadata_entry, with_metadata, write_gguf
from slmops.workshop.jobs.job import Report, unheard
from slmops.workshop.model_shape import ModelShape, read_shape
from slmops.workshop.quantize import CHUNK_WEIGHTS, Matrix, encode_rows, read_rows

Indices = npt.NDArray[np.int64]
"""(kept,) positions, in the order they get."""

_STORED = {"F32": "<u4", "F16": "<u2", "BF16": "<u2"}


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceModel:
    """A 16-bit model to make another one from."""

    header: GgufHeader
    """All but its weights."""
    shape: ModelShape
    """Its sizes."""

    def key(self, name: str) -> str:
        """Return an architecture key: ``block_count`` → ``llama.block_count``."""
        return f"{self.shape.architecture}.{name}"


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorEdit:
    """What one tensor of the new model is, and where its bytes come from."""

    target: TensorEntry
    """Name, shape and type in the new file; its offset means nothing."""
    pieces: Callable[[BinaryIO], Iterator[bytes]]
    """Reads the source file and yields the tensor's bytes, front to back."""


def read_source(path: Path) -> SourceModel:
    """Read a model's header and sizes.

    Raises:
        InvalidInputError: no model, or one whose weights are quantized already: an edit
            of rounded weights would be rounded twice.
    """
    header = read_header(path)
    for tensor in header.tensors:
        if tensor.kind not in _STORED:
            raise InvalidInputError(
                f"{path}: structure is changed in 16 bits, before quantization, but"
                f" {tensor.name} is {tensor.kind}"
            )
    return SourceModel(header=header, shape=read_shape(header))


def read_text(path: Path) -> str:
    """Read a text.

    Raises:
        InvalidInputError: not UTF-8; the message says at which byte.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{path}: not UTF-8 at byte {error.start}") from None


def copied(tensor: TensorEntry, name: str | None = None) -> TensorEdit:
    """Keep a tensor, possibly under another name."""

    def pieces(file: BinaryIO) -> Iterator[bytes]:
        file.seek(tensor.offset)
        left = tensor.bytes
        while left:
            piece = file.read(min(left, 2 * CHUNK_WEIGHTS))
            if not piece:
                raise InvalidInputError(f"{file.name}: cut off in {tensor.name!r}")
            left -= len(piece)
            yield piece

    return TensorEdit(target=replace(tensor, name=name or tensor.name), pieces=pieces)


def selected(
    tensor: TensorEntry,
    *,
    rows: Indices | None = None,
    columns: Indices | None = None,
) -> TensorEdit:
    """Keep some rows and columns of a tensor, bit for bit.

    Args:
        tensor: a matrix, or a vector, whose entries are its columns.
        rows: which, in their new order; None keeps all.
        columns: which, in their new order; None keeps all.
    """
    kept_rows = np.arange(tensor.rows) if rows is None else rows
    width = tensor.width if columns is None else len(columns)
    is_vector = len(tensor.shape) == 1
    shape = (width,) if is_vector else (width, len(kept_rows))

    def pieces(file: BinaryIO) -> Iterator[bytes]:
        stored = np.memmap(
            file,
            dtype=_STORED[tensor.kind],
            mode="r",
            offset=tensor.offset,
            shape=(tensor.rows, tensor.width),
        )
        step = max(CHUNK_WEIGHTS // tensor.width, 1)
        for first in range(0, len(kept_rows), step):
            part = stored[kept_rows[first : first + step]]
            yield (part if columns is None else part[:, columns]).tobytes()

    return TensorEdit(target=replace(tensor, shape=shape), pieces=pieces)


def rewritten(
    tensor: TensorEntry, width: int, rewrite: Callable[[Matrix], Matrix]
) -> TensorEdit:
    """Compute a matrix anew from all of it.

    Args:
        tensor: a matrix.
        width: columns of the result.
        rewrite: (rows, old width) float32 → (rows, `width`) float32, finite.
    """

    def pieces(file: BinaryIO) -> Iterator[bytes]:
        values = rewrite(np.concatenate(list(read_rows(file, tensor))))
        if not np.isfinite(values).all():
            raise InvalidInputError(f"{tensor.name}: the result is not finite")
        yield encode_rows(values, tensor.kind)

    target = replace(tensor, shape=(width, *tensor.shape[1:]))
    return TensorEdit(target=target, pieces=pieces)


def changed_metadata(
    source: SourceModel, sizes: Mapping[str, int]
) -> tuple[MetadataEntry, ...]:
    """Return the model's metadata with other sizes, ready to write.

    Args:
        source: the model.
        sizes: name without architecture → value: ``{"block_count": 24}``. An entry
            that holds one value per block keeps its form.
    """
    changes = []
    for name, value in sizes.items():
        key = source.key(name)
        found = source.header.find(key)
        if found is not None and found.is_array:
            changes.append(metadata_entry(key, [value] * found.length, "UINT32"))
        else:
            changes.append(metadata_entry(key, value, "UINT32"))
    return with_changes(source, changes)


def with_changes(
    source: SourceModel,
    changes: Sequence[MetadataEntry],
    *,
    without: Callable[[str], bool] = lambda key: False,
) -> tuple[MetadataEntry, ...]:
    """Return the model's metadata with other entries, ready to write.

    ``general.size_label`` goes: it says what the model was.
    """
    stale = {"general.alignment", "general.size_label"}
    return with_metadata(
        source.header.metadata,
        changes,
        without=lambda key: key in stale or without(key),
    )


def array_like(entry: MetadataEntry, items: Sequence[Scalar]) -> MetadataEntry:
    """Return an array entry with other items of the same type."""
    item_type = int.from_bytes(entry.raw[:4], "little")
    return metadata_entry(entry.key, items, GGUFValueType(item_type).name)


def scalar_like(entry: MetadataEntry, value: Scalar) -> MetadataEntry:
    """Return an entry with another value of the same type."""
    return metadata_entry(entry.key, value, GGUFValueType(entry.value_type).name)


def write_model(
    source: SourceModel,
    metadata: Sequence[MetadataEntry],
    edits: Sequence[TensorEdit],
    path: Path,
    report: Report = unheard,
) -> Path:
    """Write the new model and check that it is one.

    Args:
        source: the model its weights come from.
        metadata: of the new model.
        edits: its tensors, in file order.
        path: file to write.
        report: told how many weights are written.

    Returns:
        `path`.

    Raises:
        InvalidInputError: sizes and tensors of the result do not agree, or the source
            holds values that are not finite.
    """
    total = sum(edit.target.elements for edit in edits)

    def data() -> Iterator[Iterator[bytes]]:
        done = 0
        for edit in edits:
            report(done, total)
            yield edit.pieces(file)
            done += edit.target.elements
        report(total, total)

    with source.header.path.open("rb") as file, path.open("wb") as sink:
        write_gguf(sink, metadata, [edit.target for edit in edits], data())
    read_shape(read_header(path))
    return path
