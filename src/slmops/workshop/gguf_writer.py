"""The GGUF container, written deterministically and front to back.

Equal metadata, tensors and data give equal bytes, and `file_bytes` tells their exact
number beforehand. Reading lives in `gguf_file`.
"""

import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from gguf.constants import GGMLQuantizationType, GGUFValueType

from slmops.domain.errors import InvalidInputError
from slmops.workshop.gguf_file import (
    ALIGNMENT,
    ARRAY,
    MAGIC,
    SCALARS,
    STRING,
    MetadataEntry,
    Scalar,
    TensorEntry,
    aligned,
)


class ByteSink(Protocol):
    """Where a file's bytes go, front to back."""

    def write(self, data: bytes, /) -> object:
        """Take the next bytes."""
        ...


def metadata_entry(
    key: str, value: Scalar | Sequence[Scalar], kind: str
) -> MetadataEntry:
    """Encode one key and its value.

    Args:
        key: dotted name.
        value: a scalar, a text, or a sequence of one of them.
        kind: GGUF value type of the value or of its items: ``UINT32``, ``STRING``.

    >>> metadata_entry("general.file_type", 1, "UINT32").raw.hex()
    '01000000'
    """
    number = int(GGUFValueType[kind])
    if isinstance(value, str) or not isinstance(value, Sequence):
        return MetadataEntry(key=key, value_type=number, raw=_encoded(value, number))
    raw = struct.pack("<IQ", number, len(value))
    raw += b"".join(_encoded(item, number) for item in value)
    return MetadataEntry(key=key, value_type=ARRAY, raw=raw)


def with_metadata(
    entries: Iterable[MetadataEntry],
    changes: Sequence[MetadataEntry],
    *,
    without: Callable[[str], bool] = lambda key: False,
) -> tuple[MetadataEntry, ...]:
    """Replace entries in place, append new ones, and leave out those `without` names."""
    new = {entry.key: entry for entry in changes}
    kept = [new.pop(entry.key, entry) for entry in entries if not without(entry.key)]
    return (*kept, *new.values())


def file_bytes(
    metadata: Sequence[MetadataEntry], tensors: Sequence[TensorEntry]
) -> int:
    """Return the exact size of the file `write_gguf` makes of these."""
    header = aligned(_header_bytes(metadata, tensors), ALIGNMENT)
    return header + sum(aligned(tensor.bytes, ALIGNMENT) for tensor in tensors)


def write_gguf(
    sink: ByteSink,
    metadata: Sequence[MetadataEntry],
    tensors: Sequence[TensorEntry],
    data: Iterable[Iterable[bytes]],
) -> None:
    """Write a GGUF file front to back; equal input gives equal bytes.

    Args:
        sink: takes the bytes.
        metadata: must not hold ``general.alignment``.
        tensors: offsets are ignored and computed anew.
        data: one item per tensor, in order, each its bytes in pieces; produced while
            writing, so that only one piece is in memory.

    Raises:
        InvalidInputError: an item has not the size its tensor's shape and type ask for.
    """
    sink.write(_header(metadata, tensors))
    for tensor, pieces in zip(tensors, data, strict=True):
        written = 0
        for piece in pieces:
            sink.write(piece)
            written += len(piece)
        if written != tensor.bytes:
            raise InvalidInputError(
                f"tensor {tensor.name!r}: expected {tensor.bytes} bytes, got {written}"
            )
        sink.write(bytes(aligned(written, ALIGNMENT) - written))


def _header(metadata: Sequence[MetadataEntry], tensors: Sequence[TensorEntry]) -> bytes:
    parts = [MAGIC, struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    for entry in metadata:
        parts += [_encoded_text(entry.key), struct.pack("<I", entry.value_type)]
        parts.append(entry.raw)
    offset = 0
    for tensor in tensors:
        number = int(GGMLQuantizationType[tensor.kind])
        parts.append(_encoded_text(tensor.name))
        parts.append(struct.pack("<I", len(tensor.shape)))
        parts.append(struct.pack(f"<{len(tensor.shape)}Q", *tensor.shape))
        parts.append(struct.pack("<IQ", number, offset))
        offset += aligned(tensor.bytes, ALIGNMENT)
    header = b"".join(parts)
    return header + bytes(aligned(len(header), ALIGNMENT) - len(header))


def _header_bytes(
    metadata: Sequence[MetadataEntry], tensors: Sequence[TensorEntry]
) -> int:
    total = len(MAGIC) + struct.calcsize("<IQQ")
    total += sum(8 + len(entry.key.encode()) + 4 + len(entry.raw) for entry in metadata)
    for tensor in tensors:
        total += 8 + len(tensor.name.encode()) + 4 + 8 * len(tensor.shape) + 12
    return total


def _encoded(value: Scalar, kind: int) -> bytes:
    if kind == STRING:
        return _encoded_text(str(value))
    return struct.pack("<" + SCALARS[kind], value)


def _encoded_text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw
