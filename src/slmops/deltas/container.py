"""The file format of a delta: a header, then frames; every number is bounded.

::

    8 bytes  magic "SLMOPSD1"
    u32      length of the header, then the header: canonical JSON
    frame*   u8 kind, u32 length, then that many bytes

Frames give the new file front to back. `MODELS` comes first, `END` last. Numbers are
little-endian. A reader allocates nothing that a bound here does not allow.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import BinaryIO

import numpy as np

from slmops.deltas.coding import context_counts
from slmops.deltas.entropy import MAX_LANES, TOKENS, Integers, Model, Words
from slmops.deltas.layouts import LAYOUTS
from slmops.deltas.pressed import press, unpress
from slmops.domain.errors import InvalidInputError
from slmops.domain.ids import Digest
from slmops.wire import codec

MAGIC = b"SLMOPSD1"
FORMAT = 1
HEADER_BYTES = 4096
FRAME_BYTES = 3 << 20
SEGMENT_BYTES = 2 << 20
"""Of the new file in one frame of tensors."""
CHUNK_BYTES = 1 << 20
CHUNK_WEIGHTS = 1 << 16
LITERAL_BYTES = 1 << 20
WINDOW_BYTES = 3 << 20
"""Of the old file that a literal may refer to."""
CHUNKS = 4096
MODELS_BYTES = 1 << 20
COPY_LAYOUT = 255

_FRAME = struct.Struct("<BI")
_COPY = struct.Struct("<QQ")
_LITERAL = struct.Struct("<IQI")
_SEGMENT = struct.Struct("<HHIII")
_CHUNK = np.dtype([("layout", "u1"), ("unit", "<u4"), ("count", "<u4"), ("at", "<u8")])


class Kind(IntEnum):
    """What a frame holds."""

    MODELS = 1
    COPY = 2
    LITERAL = 3
    TENSORS = 4
    END = 5


_KINDS = frozenset(int(kind) for kind in Kind)


@dataclass(frozen=True, kw_only=True, slots=True)
class DeltaHeader:
    """Which file a delta turns into which."""

    format: int
    """Version of the format."""
    old: Digest
    """Of the file that must be there."""
    old_bytes: int
    """Its size."""
    new: Digest
    """Of the file that is made."""
    new_bytes: int
    """Its size."""

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise InvalidInputError(
                f"delta: format must be {FORMAT}, got {self.format}"
            )
        if not (0 <= self.old_bytes < 1 << 50 and 0 <= self.new_bytes < 1 << 50):
            raise InvalidInputError("delta: sizes are out of range")


@dataclass(frozen=True, slots=True)
class Copy:
    """Bytes of the old file."""

    at: int
    length: int


@dataclass(frozen=True, slots=True)
class Literal:
    """New bytes, pressed by zstd with a window of the old file as dictionary."""

    length: int
    at: int
    window: int
    pressed: bytes


@dataclass(frozen=True, slots=True)
class ChunkPlace:
    """Where the old blocks of a chunk lie, and how they are laid out."""

    layout: int
    """Index into `LAYOUTS`, or `COPY_LAYOUT` for bytes taken over."""
    unit: int
    """Blocks in a row."""
    count: int
    """Blocks, or bytes for `COPY_LAYOUT`."""
    at: int
    """Offset in the old file."""

    @property
    def length(self) -> int:
        """Bytes, old and new."""
        size = 1 if self.layout == COPY_LAYOUT else LAYOUTS[self.layout].block_bytes
        return self.count * size


@dataclass(frozen=True, slots=True)
class Segment:
    """Chunks of tensors, coded together."""

    chunks: tuple[ChunkPlace, ...]
    states: Integers
    words: Words
    extras: bytes


def header_bytes(header: DeltaHeader) -> bytes:
    """Return magic and header."""
    raw = codec.encode_json(header)
    return MAGIC + struct.pack("<I", len(raw)) + raw


def read_header(source: BinaryIO) -> DeltaHeader:
    """Read magic and header; the frames follow.

    Raises:
        InvalidInputError: no delta, or a damaged one.
    """
    if source.read(len(MAGIC)) != MAGIC:
        raise InvalidInputError("delta: no delta, or of another format")
    (length,) = struct.unpack("<I", _exactly(source, 4))
    if length > HEADER_BYTES:
        raise InvalidInputError(f"delta: header must be at most {HEADER_BYTES} bytes")
    raw = _exactly(source, length)
    return codec.decode_json(raw, DeltaHeader, where="delta header")


def frame(kind: Kind, content: bytes) -> bytes:
    """Return a frame."""
    return _FRAME.pack(kind, len(content)) + content


def read_frames(source: BinaryIO) -> Iterator[tuple[Kind, bytes]]:
    """Read frames up to and without `END`, which ends the file.

    Raises:
        InvalidInputError: truncated, too large or unknown.
    """
    while True:
        number, length = _FRAME.unpack(_exactly(source, _FRAME.size))
        if number not in _KINDS:
            raise InvalidInputError(f"delta: unknown frame {number}")
        if length > FRAME_BYTES:
            raise InvalidInputError(f"delta: a frame of {length} bytes is too large")
        if number == Kind.END:
            if length or source.read(1):
                raise InvalidInputError("delta: bytes after its end")
            return
        yield Kind(number), _exactly(source, length)


def copy_content(copy: Copy) -> bytes:
    """Encode the content of a `COPY` frame."""
    return _COPY.pack(copy.at, copy.length)


def parse_copy(content: bytes) -> Copy:
    """Undo `copy_content`."""
    if len(content) != _COPY.size:
        raise InvalidInputError("delta: a copy frame has a wrong length")
    return Copy(*_COPY.unpack(content))


def literal_content(literal: Literal) -> bytes:
    """Encode the content of a `LITERAL` frame."""
    head = _LITERAL.pack(literal.length, literal.at, literal.window)
    return head + literal.pressed


def parse_literal(content: bytes) -> Literal:
    """Undo `literal_content`."""
    if len(content) < _LITERAL.size:
        raise InvalidInputError("delta: a literal frame is too short")
    length, at, window = _LITERAL.unpack_from(content)
    if length > LITERAL_BYTES or window > WINDOW_BYTES:
        raise InvalidInputError("delta: a literal or its window is too large")
    return Literal(length, at, window, content[_LITERAL.size :])


def segment_content(segment: Segment) -> bytes:
    """Encode the content of a `TENSORS` frame."""
    places = np.array(
        [(c.layout, c.unit, c.count, c.at) for c in segment.chunks], dtype=_CHUNK
    )
    described = press(places.tobytes())
    head = _SEGMENT.pack(
        len(segment.states),
        len(places),
        len(described),
        len(segment.words),
        len(segment.extras),
    )
    states, words = segment.states.astype("<u4"), segment.words.astype("<u2")
    parts = (head, described, states.tobytes(), words.tobytes(), segment.extras)
    return b"".join(parts)


def parse_segment(content: bytes) -> Segment:
    """Undo `segment_content`; offsets are checked by whoever reads the old file."""
    if len(content) < _SEGMENT.size:
        raise InvalidInputError("delta: a tensor frame is too short")
    lanes, chunks, described, words, extras = _SEGMENT.unpack_from(content)
    if not (1 <= lanes <= MAX_LANES and 1 <= chunks <= CHUNKS):
        raise InvalidInputError("delta: lanes or chunks are out of range")
    if _SEGMENT.size + described + 4 * lanes + 2 * words + extras != len(content):
        raise InvalidInputError("delta: a tensor frame has a wrong length")
    at = _SEGMENT.size + described
    raw = unpress(content[_SEGMENT.size : at], chunks * _CHUNK.itemsize)
    states = np.frombuffer(content, "<u4", lanes, at).astype(np.uint32)
    at += 4 * lanes
    return Segment(
        tuple(_checked_place(*row.tolist()) for row in np.frombuffer(raw, _CHUNK)),
        states,
        np.frombuffer(content, "<u2", words, at),
        content[at + 2 * words :],
    )


def _checked_place(layout: int, unit: int, count: int, at: int) -> ChunkPlace:
    place = ChunkPlace(layout, unit, count, at)
    if layout != COPY_LAYOUT:
        known = layout < len(LAYOUTS)
        if not known or count * LAYOUTS[layout].block_weights > CHUNK_WEIGHTS:
            raise InvalidInputError("delta: a chunk is too large or of no known layout")
        if unit < 1 or count % unit:
            raise InvalidInputError("delta: a chunk must hold whole rows")
    if not 1 <= place.length <= CHUNK_BYTES:
        raise InvalidInputError("delta: a chunk is too large")
    return place


def models_content(models: dict[int, Sequence[Model]]) -> bytes:
    """Encode the content of a `MODELS` frame: by layout, what `coding` needs."""
    parts = []
    for layout in sorted(models):
        parts.append(bytes([layout]))
        for model in models[layout]:
            seen = model.frequencies > 0
            bits = np.packbits(seen, axis=1, bitorder="little")
            parts += [bits.tobytes(), model.frequencies[seen].astype("<u2").tobytes()]
    raw = b"".join(parts)
    return struct.pack("<I", len(raw)) + press(raw)


def parse_models(content: bytes) -> dict[int, list[Model]]:
    """Undo `models_content`."""
    if len(content) < 4:  # noqa: PLR2004 - one u32
        raise InvalidInputError("delta: the models are too short")
    (length,) = struct.unpack_from("<I", content)
    if length > MODELS_BYTES:
        raise InvalidInputError("delta: the models are too large")
    reader = _Reader(unpress(content[4:], length))
    models: dict[int, list[Model]] = {}
    while reader.left:
        layout = reader.take(1)[0]
        if layout >= len(LAYOUTS) or layout in models:
            raise InvalidInputError("delta: models of an unknown or repeated layout")
        counts = context_counts(LAYOUTS[layout])
        models[layout] = [_parse_model(reader, count) for count in counts]
    return models


def _parse_model(reader: "_Reader", contexts: int) -> Model:
    raw = np.frombuffer(reader.take(contexts * TOKENS // 8), np.uint8)
    seen = np.unpackbits(raw, bitorder="little").reshape(contexts, TOKENS) > 0
    values = reader.take(2 * int(np.count_nonzero(seen)))
    frequencies = np.zeros((contexts, TOKENS), np.uint32)
    frequencies[seen] = np.frombuffer(values, "<u2")
    return Model.checked(frequencies)


@dataclass(slots=True)
class _Reader:
    raw: bytes
    at: int = 0

    @property
    def left(self) -> int:
        return len(self.raw) - self.at

    def take(self, length: int) -> bytes:
        if length > self.left:
            raise InvalidInputError("delta: the models end too early")
        self.at += length
        return self.raw[self.at - length : self.at]


def _exactly(source: BinaryIO, length: int) -> bytes:
    content = source.read(length)
    if len(content) != length:
        raise InvalidInputError("delta: it ends too early")
    return content
