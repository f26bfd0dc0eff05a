"""Applying a delta: front to back, in bounded memory, resumable, proved by the result.

The delta and the old file are untrusted. What counts is the digest of the new file; the
old file's is not computed, since a wrong one gives a wrong result. A file beside the
output tells how far it got; after a kill, the output so far is hashed again and the
work goes on.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from slmops.deltas import container
from slmops.deltas.coding import Chunk, Contexts, Extras, decode_chunk
from slmops.deltas.container import (
    COPY_LAYOUT,
    SEGMENT_BYTES,
    ChunkPlace,
    DeltaHeader,
    Kind,
)
from slmops.deltas.entropy import Bytes, Decoder, Integers, Model
from slmops.deltas.layouts import LAYOUTS
from slmops.deltas.pressed import unpress
from slmops.domain.errors import InvalidInputError, SlmopsError, UntrustedError
from slmops.domain.ids import Digest
from slmops.wire import codec

_BLOCK = 1 << 20
_CHECKPOINT_BYTES = 32 << 20
"""Work lost at most by a kill."""
_TABLE_BYTES = 8 << 20
"""Decoding tables kept; others are made again when needed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """How far an output has got, on disk."""

    delta: str
    """SHA-256 of the delta's header, hex."""
    delta_bytes: int
    """Where the next frame begins."""
    out_bytes: int
    """Bytes of the output that hold."""


def apply_delta(old: Path, delta: Path, out: Path, *, expected: Digest) -> None:
    """Make the new file; `out` is whole, on disk and of the expected digest afterwards.

    Called again after a kill it goes on where it was.

    Args:
        old: the file the delta was made from.
        delta: what `make_delta` wrote, or anything else.
        out: where the new file goes; ``<out>.at`` beside it says how far it is.
        expected: digest that signed metadata promises.

    Raises:
        UntrustedError: the delta is damaged, of another pair, or its result is not what
            was expected; nothing is left, take the full file.
        OSError: a file cannot be read, or the disk refuses; what was made is kept.
    """
    try:
        with old.open("rb") as before, delta.open("rb") as source:
            _Applier(before, source, out, expected).run()
    except UntrustedError:
        forget_output(out)
        raise
    except SlmopsError as error:
        forget_output(out)
        raise UntrustedError(str(error)) from None
    _note(out).unlink(missing_ok=True)


def forget_output(out: Path) -> None:
    """Remove what an apply has made so far."""
    out.unlink(missing_ok=True)
    _note(out).unlink(missing_ok=True)


def header_identity(source: BinaryIO) -> str:
    """Return what a checkpoint knows a delta by: SHA-256 of its header, hex."""
    with source:
        return _identity(container.read_header(source))


def _identity(header: DeltaHeader) -> str:
    return hashlib.sha256(container.header_bytes(header)).hexdigest()


def _note(out: Path) -> Path:
    return out.with_name(out.name + ".at")


@dataclass(slots=True)
class _Output:
    file: BinaryIO
    limit: int
    hash: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    made: int = 0

    def write(self, content: bytes | memoryview) -> None:
        self.made += len(content)
        if self.made > self.limit:
            raise InvalidInputError(f"delta: makes more than {self.limit} bytes")
        self.hash.update(content)
        self.file.write(content)

    def flush(self) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())


@dataclass(slots=True)
class _Tables:
    """Models, with the decoder's tables of the layouts in use."""

    models: dict[int, list[Model]] = field(default_factory=dict)
    slots: dict[int, list[Integers]] = field(default_factory=dict)

    def of(self, layout: int) -> list[Integers]:
        if layout not in self.models:
            raise InvalidInputError("delta: a chunk has no models")
        found = self.slots.pop(layout, None)
        if found is None:
            size = _table_bytes(self.models[layout])
            while self.slots and size + self._held() > _TABLE_BYTES:
                del self.slots[next(iter(self.slots))]
            found = [model.slots() for model in self.models[layout]]
        self.slots[layout] = found
        return found

    def _held(self) -> int:
        return sum(_table_bytes(self.models[layout]) for layout in self.slots)


def _table_bytes(models: list[Model]) -> int:
    return sum(len(model.frequencies) for model in models) * 4 << 13


class _Applier:
    def __init__(
        self, old: BinaryIO, source: BinaryIO, out: Path, expected: Digest
    ) -> None:
        self._old, self._source, self._path = old, source, out
        self._header = container.read_header(source)
        self._old_bytes = os.fstat(old.fileno()).st_size
        if self._header.new != expected or self._header.old_bytes != self._old_bytes:
            raise InvalidInputError("delta: made for other files")
        self._tables = _Tables()
        self._does: dict[Kind, Callable[[bytes, _Output], None]] = {
            Kind.COPY: self._copy,
            Kind.LITERAL: self._literal,
            Kind.TENSORS: self._segment,
        }

    def run(self) -> None:
        identity = _identity(self._header)
        frames = container.read_frames(self._source)
        kind, content = next(frames, (None, b""))
        if kind is not Kind.MODELS:
            raise InvalidInputError("delta: the models must come first")
        self._tables.models = container.parse_models(content)
        with self._path.open("r+b" if self._path.exists() else "w+b") as file:
            output = _Output(file, self._header.new_bytes)
            at = self._resume(identity, output)
            for kind, content in frames:
                if kind is Kind.MODELS:
                    raise InvalidInputError("delta: the models come twice")
                self._does[kind](content, output)
                if output.made - at >= _CHECKPOINT_BYTES:
                    at = output.made
                    self._checkpoint(identity, output)
            output.flush()
        self._require(self._header, output)

    def _require(self, header: DeltaHeader, output: _Output) -> None:
        found = Digest("sha256:" + output.hash.hexdigest())
        if output.made != header.new_bytes or found != header.new:
            raise UntrustedError(
                f"delta: expected {header.new_bytes} bytes of {header.new[:19]}…,"
                f" made {output.made} of {found[:19]}…"
            )

    def _resume(self, identity: str, output: _Output) -> int:
        """Hash what is there already; return how much that is."""
        noted = self._noted(identity, output)
        if noted is not None:
            left = noted.out_bytes
            while left:
                block = output.file.read(min(_BLOCK, left))
                output.hash.update(block)
                left -= len(block)
            output.made = noted.out_bytes
            self._source.seek(noted.delta_bytes)
        output.file.truncate(output.made)
        output.file.seek(output.made)
        return output.made

    def _noted(self, identity: str, output: _Output) -> Checkpoint | None:
        try:
            raw = _note(self._path).read_bytes()
            noted = codec.decode_json(raw, Checkpoint, where="checkpoint")
        except (OSError, InvalidInputError):
            return None
        size = os.fstat(output.file.fileno()).st_size
        fits = self._source.tell() <= noted.delta_bytes <= 1 << 50
        holds = 0 < noted.out_bytes <= min(size, output.limit)
        return noted if noted.delta == identity and fits and holds else None

    def _checkpoint(self, identity: str, output: _Output) -> None:
        output.flush()
        note = Checkpoint(
            delta=identity,
            delta_bytes=self._source.tell(),
            out_bytes=output.made,
        )
        partial = self._path.with_name(self._path.name + ".at-partial")
        with partial.open("wb") as file:
            file.write(codec.encode_json(note))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(_note(self._path))

    def _read(self, at: int, length: int) -> bytes:
        if at + length > self._old_bytes:
            raise InvalidInputError("delta: refers to bytes after the old file's end")
        self._old.seek(at)
        content = self._old.read(length)
        if len(content) != length:
            raise InvalidInputError("delta: the old file has become shorter")
        return content

    def _copy(self, content: bytes, output: _Output) -> None:
        copy = container.parse_copy(content)
        if output.made + copy.length > output.limit:
            raise InvalidInputError(f"delta: makes more than {output.limit} bytes")
        for begin in range(0, copy.length, _BLOCK):
            length = min(_BLOCK, copy.length - begin)
            output.write(self._read(copy.at + begin, length))

    def _literal(self, content: bytes, output: _Output) -> None:
        literal = container.parse_literal(content)
        window = self._read(literal.at, literal.window)
        output.write(unpress(literal.pressed, literal.length, window))

    def _segment(self, content: bytes, output: _Output) -> None:
        segment = container.parse_segment(content)
        if sum(chunk.length for chunk in segment.chunks) > SEGMENT_BYTES:
            raise InvalidInputError("delta: a segment is too large")
        decoder = Decoder(segment.states, segment.words)
        extras = Extras(np.frombuffer(segment.extras, np.uint8))
        for place in segment.chunks:
            old = self._read(place.at, place.length)
            if place.layout == COPY_LAYOUT:
                output.write(old)
            else:
                output.write(self._chunk(place, old, decoder, extras))
        decoder.finish()
        extras.finish()

    def _chunk(
        self, place: ChunkPlace, old: bytes, decoder: Decoder, extras: Extras
    ) -> bytes:
        layout = LAYOUTS[place.layout]
        slots = self._tables.of(place.layout)
        blocks = np.frombuffer(old, np.uint8).reshape(place.count, layout.block_bytes)
        chunk = Chunk(layout, blocks, place.unit)

        def take(index: int, contexts: Contexts) -> Bytes:
            return decoder.take(slots[index], contexts)

        return decode_chunk(chunk, take, extras).tobytes()
