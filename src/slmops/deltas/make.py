"""Making a delta from two files: plan pieces, fit models to a sample, code.

Memory: the two files are mapped, and some tens of megabytes. Equal files give equal
bytes. The server does this; devices only apply.
"""

import hashlib
import mmap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from slmops.deltas import container
from slmops.deltas.coding import (
    ESCAPE,
    Chunk,
    Contexts,
    Sink,
    coder_for,
    context_counts,
    encode_chunk,
)
from slmops.deltas.container import (
    CHUNK_BYTES,
    CHUNK_WEIGHTS,
    COPY_LAYOUT,
    FORMAT,
    LITERAL_BYTES,
    SEGMENT_BYTES,
    WINDOW_BYTES,
    ChunkPlace,
    Copy,
    DeltaHeader,
    Kind,
    Literal,
    Segment,
)
from slmops.deltas.entropy import MAX_LANES, TOKENS, Bytes, Counts, Encoder, Model
from slmops.deltas.layouts import LAYOUTS
from slmops.deltas.plan import Piece, plan_pieces
from slmops.deltas.pressed import press
from slmops.domain.ids import Digest

_SAMPLE = 4
"""Models are fitted to every fourth chunk, and to the first few."""
_SAMPLE_FIRST = 8
_BYTES_PER_LANE = 200
"""Coded bytes for each lane: a lane costs about two."""
_LEAST_LANES = 16
_Map = mmap.mmap | bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class MadeDelta:
    """What a delta turns into what, and its size."""

    old: Digest
    """Of the file it needs."""
    new: Digest
    """Of the file it makes."""
    new_bytes: int
    """Size of that file."""
    delta_bytes: int
    """Size of the delta."""


def make_delta(old: Path, new: Path, out: Path) -> MadeDelta:
    """Write the delta that turns `old` into `new`.

    Args:
        old: what the device has.
        new: what it shall have.
        out: is replaced; not durable until the caller says so.

    Raises:
        OSError: a file cannot be read or written.
    """
    with _mapped(old) as before, _mapped(new) as after, out.open("wb") as sink:
        header = DeltaHeader(
            format=FORMAT,
            old=_digest(before),
            old_bytes=len(before),
            new=_digest(after),
            new_bytes=len(after),
        )
        sink.write(container.header_bytes(header))
        _Maker(before, after, sink).run()
        return MadeDelta(
            old=header.old,
            new=header.new,
            new_bytes=header.new_bytes,
            delta_bytes=sink.tell(),
        )


@dataclass(frozen=True, slots=True)
class _Place:
    """A chunk, and where its new bytes lie."""

    chunk: ChunkPlace
    new_at: int


@dataclass(slots=True)
class _Maker:
    old: _Map
    new: _Map
    sink: BinaryIO
    models: dict[int, list[Model]] = field(default_factory=dict)
    pending: list[_Place] = field(default_factory=list)

    def run(self) -> None:
        places = list(self._joined(self._places()))
        self._fit([place for place in places if isinstance(place, _Place)])
        self._emit(Kind.MODELS, container.models_content(dict(self.models)))
        for place in places:
            self._take(place)
        self._flush()
        self._emit(Kind.END, b"")

    def _take(self, place: "_Place | Piece") -> None:
        """Gather chunks, and short copies between them, into segments."""
        if isinstance(place, Piece):
            if not (self.pending and place.chunk_fits() and place.is_copy):
                self._flush()
                self._write_bytes(place)
                return
            copied = ChunkPlace(COPY_LAYOUT, 1, place.length, place.old_at)
            place = _Place(copied, place.new_at)
        if self._pending_bytes() + place.chunk.length > SEGMENT_BYTES:
            self._flush()
        self.pending.append(place)

    def _places(self) -> Iterator[_Place | Piece]:
        """Cut tensors into chunks; those that are equal become copies."""
        for piece in plan_pieces(self.old, self.new):
            if piece.layout is None:
                yield piece
                continue
            layout = LAYOUTS[piece.layout]
            most = min(
                CHUNK_BYTES // layout.block_bytes, CHUNK_WEIGHTS // layout.block_weights
            )
            blocks = piece.length // layout.block_bytes
            unit = piece.unit if piece.unit <= most else _divisor(piece.unit, most)
            step = most // unit * unit
            for begin in range(0, blocks, step):
                count, at = min(step, blocks - begin), begin * layout.block_bytes
                length = count * layout.block_bytes
                place = ChunkPlace(piece.layout, unit, count, piece.old_at + at)
                if self._equal(place.at, piece.new_at + at, length):
                    yield Piece(piece.new_at + at, length, place.at, is_copy=True)
                else:
                    yield _Place(place, piece.new_at + at)

    def _joined(self, places: Iterator[_Place | Piece]) -> Iterator[_Place | Piece]:
        """Join copies that follow each other in both files."""
        last: Piece | None = None
        for place in places:
            if last and isinstance(place, Piece) and last.goes_on_in(place):
                last = replace(last, length=last.length + place.length)
                continue
            if last:
                yield last
            last = place if isinstance(place, Piece) else None
            if last is None:
                yield place
        if last:
            yield last

    def _equal(self, old_at: int, new_at: int, length: int) -> bool:
        before = memoryview(self.old)[old_at : old_at + length]
        with before, memoryview(self.new)[new_at : new_at + length] as after:
            return np.array_equal(
                np.frombuffer(before, np.uint8), np.frombuffer(after, np.uint8)
            )

    def _fit(self, places: Sequence[_Place]) -> None:
        seen: dict[int, int] = {}
        counts: dict[int, list[Counts]] = {}
        for place in places:
            number = place.chunk.layout
            index = seen.get(number, 0)
            seen[number] = index + 1
            if index < _SAMPLE_FIRST or index % _SAMPLE == 0:
                tables = counts.setdefault(number, _no_counts(number))
                chunk, new = self._load(place)
                encode_chunk(chunk, new, Sink(_counter(tables)))
        self.models = {
            number: [Model.fitted(table, ESCAPE) for table in tables]
            for number, tables in counts.items()
        }

    def _load(self, place: _Place) -> tuple[Chunk, Bytes]:
        layout, at = LAYOUTS[place.chunk.layout], place.chunk
        shape = (at.count, layout.block_bytes)
        old = np.frombuffer(self.old, np.uint8, at.length, at.at).reshape(shape)
        new = np.frombuffer(self.new, np.uint8, at.length, place.new_at).reshape(shape)
        return Chunk(layout, old.copy(), at.unit), new.copy()

    def _pending_bytes(self) -> int:
        return sum(place.chunk.length for place in self.pending)

    def _flush(self) -> None:
        if not self.pending:
            return
        places, self.pending = self.pending, []
        encoder, extras = Encoder(), list[bytes]()
        for place in places:
            if place.chunk.layout != COPY_LAYOUT:
                sink = coder_for(encoder, self.models[place.chunk.layout])
                encode_chunk(*self._load(place), sink)
                extras += sink.extras
        lanes = _lanes(encoder.bits())
        states, words = encoder.finish(lanes)
        chunks = tuple(place.chunk for place in places)
        content = container.segment_content(
            Segment(chunks, states, words, b"".join(extras))
        )
        total = sum(chunk.length for chunk in chunks)
        if len(content) < total:
            self._emit(Kind.TENSORS, content)
        else:
            self._write_bytes(Piece(places[0].new_at, total, chunks[0].at))

    def _write_bytes(self, piece: Piece) -> None:
        if piece.is_copy:
            copy = Copy(piece.old_at, piece.length)
            self._emit(Kind.COPY, container.copy_content(copy))
            return
        for begin in range(0, piece.length, LITERAL_BYTES):
            length = min(LITERAL_BYTES, piece.length - begin)
            at = max(piece.old_at + begin - (WINDOW_BYTES - length) // 2, 0)
            window = self.old[at : at + WINDOW_BYTES]
            start = piece.new_at + begin
            pressed = press(self.new[start : start + length], window)
            literal = Literal(length, min(at, len(self.old)), len(window), pressed)
            self._emit(Kind.LITERAL, container.literal_content(literal))

    def _emit(self, kind: Kind, content: bytes) -> None:
        self.sink.write(container.frame(kind, content))


def _no_counts(layout: int) -> list[Counts]:
    counts = context_counts(LAYOUTS[layout])
    return [np.zeros((count, TOKENS), np.int64) for count in counts]


def _counter(tables: Sequence[Counts]) -> Callable[[int, Bytes, Contexts], Bytes]:
    def put(index: int, tokens: Bytes, contexts: Contexts) -> Bytes:
        table = tables[index]
        pairs = contexts * TOKENS + tokens
        table += np.bincount(pairs, minlength=table.size).reshape(table.shape)
        return tokens

    return put


def _lanes(bits: float) -> int:
    lanes = _LEAST_LANES
    while lanes < MAX_LANES and bits / 8 > 2 * lanes * _BYTES_PER_LANE:
        lanes *= 2
    return lanes


def _divisor(number: int, most: int) -> int:
    """Return the largest divisor of `number` up to `most`."""
    return next(d for d in range(most, 0, -1) if number % d == 0)


def _digest(raw: _Map) -> Digest:
    return Digest("sha256:" + hashlib.sha256(raw).hexdigest())


@contextmanager
def _mapped(path: Path) -> Iterator[_Map]:
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            yield b""
            return
        # Not closed by hand: arrays may still look into it, and the file is read-only.
        yield mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
