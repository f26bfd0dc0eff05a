"""The GGUF container, read without trust.

Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (version 3, little
endian; version 2 reads the same). Metadata values keep the bytes they had, so what a
conversion does not mean to change is carried exactly.

Every count and length is compared with the bytes that are left before anything is
allocated for it. Writing lives in
`gguf_writer`, what the metadata means in `model_shape`.
"""

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from slmops.domain.errors import InvalidInputError

BLOCKS: dict[str, tuple[int, int]] = {
    kind.name: sizes for kind, sizes in GGML_QUANT_SIZES.items()
}
"""Tensor type → (weights in a block, bytes of a block)."""

ALIGNMENT = 32
"""Of tensor data in files we write: the format's default."""

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
STRING, ARRAY = int(GGUFValueType.STRING), int(GGUFValueType.ARRAY)
SCALARS: dict[int, str] = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_MAX_HEADER_BYTES = 512 * 1024 * 1024
_MAX_TEXT_BYTES = 16 * 1024 * 1024
_MAX_NAME_BYTES = 255
_MAX_DIMENSIONS = 4
_MAX_ELEMENTS = 1 << 40
_LEAST_ENTRY_BYTES = 8 + 4 + 1
_LEAST_TENSOR_BYTES = 8 + 4 + 8 + 4 + 8

Scalar = int | float | bool | str


@dataclass(frozen=True, kw_only=True, slots=True)
class MetadataEntry:
    """One key of the header with its value as encoded."""

    key: str
    """Dotted name: ``llama.block_count``."""
    value_type: int
    """GGUF value type."""
    raw: bytes
    """The value as it lies in the file, without its type."""

    @property
    def is_array(self) -> bool:
        """Whether the value is an array."""
        return self.value_type == ARRAY

    @property
    def length(self) -> int:
        """Number of items of an array; 1 for anything else."""
        return int(struct.unpack_from("<Q", self.raw, 4)[0]) if self.is_array else 1

    def scalar(self) -> Scalar:
        """Return the value of anything but an array."""
        if self.value_type == STRING:
            return self.raw[8:].decode()
        value: Scalar = struct.unpack("<" + SCALARS[self.value_type], self.raw)[0]
        return value

    def items(self) -> Iterator[Scalar]:
        """Decode an array's items."""
        kind, count = struct.unpack_from("<IQ", self.raw)
        if kind == STRING:
            at = 12
            for _ in range(count):
                (length,) = struct.unpack_from("<Q", self.raw, at)
                yield self.raw[at + 8 : at + 8 + length].decode()
                at += 8 + length
            return
        yield from struct.unpack_from(f"<{count}{SCALARS[kind]}", self.raw, 12)


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorEntry:
    """One tensor as the header describes it."""

    name: str
    """``blk.0.attn_q.weight``."""
    shape: tuple[int, ...]
    """Row width first, as GGUF stores it."""
    kind: str
    """Type of its blocks: ``F16``, ``Q4_K``."""
    offset: int = 0
    """Where its bytes start in the file."""

    @property
    def width(self) -> int:
        """Weights in a row."""
        return self.shape[0]

    @property
    def rows(self) -> int:
        """Number of rows."""
        return math.prod(self.shape[1:])

    @property
    def elements(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Size of its data, without padding."""
        return tensor_bytes(self.kind, self.shape)


@dataclass(frozen=True, kw_only=True, slots=True)
class GgufHeader:
    """All of a GGUF file but its weights, checked against the file's size."""

    path: Path
    """The file it was read from."""
    file_bytes: int
    """Size of the file."""
    metadata: tuple[MetadataEntry, ...]
    """In file order; keys are unique."""
    tensors: tuple[TensorEntry, ...]
    """In file order; names are unique, each lies inside the file."""

    def find(self, key: str) -> MetadataEntry | None:
        """Return the entry called `key`, or None."""
        for entry in self.metadata:
            if entry.key == key:
                return entry
        return None

    def text(self, key: str) -> str | None:
        """Return a text value, or None when it is missing or no text."""
        entry = self.find(key)
        if entry is None or entry.value_type != STRING:
            return None
        return str(entry.scalar())


def tensor_bytes(kind: str, shape: Sequence[int]) -> int:
    """Return the exact size of a tensor's data, without padding.

    >>> tensor_bytes("Q4_0", (64, 2))
    72
    """
    block, size = BLOCKS[kind]
    return math.prod(shape) // block * size


def aligned(size: int, alignment: int) -> int:
    """Round `size` up to a multiple of `alignment`."""
    return (size + alignment - 1) // alignment * alignment


def read_header(path: Path) -> GgufHeader:
    """Read and check a GGUF file's header.

    Raises:
        InvalidInputError: naming the file and what is wrong with it.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            return _HeaderReader(path, file, size).read()
    except OSError as error:
        raise InvalidInputError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidInputError(f"{path}: a text in the header is not UTF-8") from None


class _HeaderReader:
    """One pass over a header; every read is checked against what is left."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self._path = path
        self._file = file
        self._size = size
        self._at = 0

    def read(self) -> GgufHeader:
        tensor_count, entry_count = self._read_preamble()
        metadata: dict[str, MetadataEntry] = {}
        for _ in range(entry_count):
            entry = self._read_entry()
            if entry.key in metadata:
                self._refuse(f"key {entry.key!r} is given twice")
            metadata[entry.key] = entry
        tensors = [self._read_tensor() for _ in range(tensor_count)]
        start = aligned(self._at, self._alignment(metadata))
        placed = tuple(
            TensorEntry(
                name=tensor.name,
                shape=tensor.shape,
                kind=tensor.kind,
                offset=start + tensor.offset,
            )
            for tensor in tensors
        )
        self._check_places(placed, self._alignment(metadata))
        return GgufHeader(
            path=self._path,
            file_bytes=self._size,
            metadata=tuple(metadata.values()),
            tensors=placed,
        )

    def _read_preamble(self) -> tuple[int, int]:
        if self._size == 0:
            self._refuse("the file is empty")
        magic = self._take(4, "the magic")
        if magic != MAGIC:
            self._refuse(f"not a GGUF file: it starts with {magic!r}, not {MAGIC!r}")
        version = self._number("I", "the version")
        if version not in _VERSIONS:
            hint = "; big-endian files are not supported" if version > 1 << 16 else ""
            self._refuse(f"GGUF version must be 2 or 3, got {version}{hint}")
        tensors = self._number("Q", "the tensor count")
        entries = self._number("Q", "the metadata count")
        self._check_count("metadata entries", entries, _LEAST_ENTRY_BYTES)
        self._check_count("tensors", tensors, _LEAST_TENSOR_BYTES)
        return tensors, entries

    def _read_entry(self) -> MetadataEntry:
        key = self._text("a metadata key")
        kind = self._number("I", f"the type of {key!r}")
        start = self._at
        self._skip_value(kind, key)
        length = self._at - start
        self._file.seek(start)
        return MetadataEntry(key=key, value_type=kind, raw=self._file.read(length))

    def _skip_value(self, kind: int, key: str) -> None:
        if kind in SCALARS:
            self._take(struct.calcsize("<" + SCALARS[kind]), f"the value of {key!r}")
        elif kind == STRING:
            self._text(f"the value of {key!r}", limit=_MAX_TEXT_BYTES)
        elif kind == ARRAY:
            self._skip_array(key)
        else:
            self._refuse(f"{key!r} has the unknown value type {kind}")

    def _skip_array(self, key: str) -> None:
        kind = self._number("I", f"the item type of {key!r}")
        count = self._number("Q", f"the length of {key!r}")
        if kind == STRING:
            self._check_count(f"items of {key!r}", count, 8)
            for _ in range(count):
                self._text(f"an item of {key!r}", limit=_MAX_TEXT_BYTES)
        elif kind in SCALARS:
            size = struct.calcsize("<" + SCALARS[kind])
            self._check_count(f"items of {key!r}", count, size)
            self._take(count * size, f"the items of {key!r}")
        else:
            self._refuse(f"{key!r} has the unsupported item type {kind}")

    def _read_tensor(self) -> TensorEntry:
        name = self._text("a tensor's name", limit=_MAX_NAME_BYTES)
        dimensions = self._number("I", f"the dimensions of {name!r}")
        if not 1 <= dimensions <= _MAX_DIMENSIONS:
            self._refuse(
                f"tensor {name!r} must have 1 to 4 dimensions, got {dimensions}"
            )
        shape = tuple(
            self._number("Q", f"the shape of {name!r}") for _ in range(dimensions)
        )
        kind = self._kind(self._number("I", f"the type of {name!r}"), name)
        offset = self._number("Q", f"the offset of {name!r}")
        self._check_shape(name, shape, kind)
        return TensorEntry(name=name, shape=shape, kind=kind, offset=offset)

    def _kind(self, number: int, name: str) -> str:
        try:
            return str(GGMLQuantizationType(number).name)
        except ValueError:
            self._refuse(f"tensor {name!r} has the unknown type {number}")

    def _check_shape(self, name: str, shape: tuple[int, ...], kind: str) -> None:
        if min(shape) < 1 or math.prod(shape) > _MAX_ELEMENTS:
            self._refuse(f"tensor {name!r} has the impossible shape {list(shape)}")
        block = BLOCKS[kind][0]
        if shape[0] % block:
            self._refuse(
                f"tensor {name!r} is {kind}, so its rows must be a multiple of {block}"
                f" wide, got {shape[0]}"
            )

    def _check_places(self, tensors: Sequence[TensorEntry], alignment: int) -> None:
        names: set[str] = set()
        end = 0
        for tensor in sorted(tensors, key=lambda tensor: tensor.offset):
            if tensor.name in names:
                self._refuse(f"tensor {tensor.name!r} is listed twice")
            names.add(tensor.name)
            if tensor.offset % alignment or tensor.offset < end:
                self._refuse(
                    f"tensor {tensor.name!r} is misaligned or overlaps another"
                )
            end = tensor.offset + tensor.bytes
            if end > self._size:
                self._refuse(
                    f"the file is cut off: tensor {tensor.name!r} ends at byte {end},"
                    f" the file at {self._size}"
                )

    def _alignment(self, metadata: dict[str, MetadataEntry]) -> int:
        entry = metadata.get("general.alignment")
        if entry is None:
            return ALIGNMENT
        value = 0 if entry.is_array else entry.scalar()
        if not isinstance(value, int) or value not in {1 << n for n in range(3, 17)}:
            self._refuse(
                f"general.alignment must be a power of two from 8, got {value}"
            )
        return value

    def _check_count(self, what: str, count: int, least_bytes: int) -> None:
        if count * least_bytes > self._size - self._at:
            self._refuse(
                f"{count} {what} cannot fit into the {self._size - self._at} bytes left"
            )

    def _number(self, code: str, what: str) -> int:
        value: int = struct.unpack("<" + code, self._take(struct.calcsize(code), what))[
            0
        ]
        return value

    def _text(self, what: str, *, limit: int = 65535) -> str:
        length = self._number("Q", what)
        if length > limit:
            self._refuse(f"{what} must be at most {limit} bytes long, got {length}")
        return self._take(length, what).decode()

    def _take(self, length: int, what: str) -> bytes:
        if self._at + length > min(self._size, _MAX_HEADER_BYTES):
            self._refuse(f"the header is cut off in {what}, at byte {self._at}")
        raw = self._file.read(length)
        if len(raw) != length:
            self._refuse(f"the file became shorter while it was read, in {what}")
        self._at += length
        return raw

    def _refuse(self, reason: str) -> NoReturn:
        raise InvalidInputError(f"{self._path}: {reason}")
