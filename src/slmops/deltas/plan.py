"""Which bytes of the new file come from where: tensors, copies, and the rest."""

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from mmap import mmap

import numpy as np

from slmops.deltas.container import SEGMENT_BYTES
from slmops.deltas.layouts import LAYOUTS
from slmops.deltas.tensors import Tensor, find_tensors

_STEP = 1 << 20
_LEAST_COPY = 64
"""Shorter runs of equal bytes are cheaper inside a literal."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of the new file, in one way."""

    new_at: int
    length: int
    old_at: int
    """Where they lie in the old file, or, for a literal, are likeliest to."""
    is_copy: bool = False
    layout: int | None = None
    """Set for a tensor that both files have."""
    unit: int = 1
    """Blocks in a row of the tensor."""

    def goes_on_in(self, piece: "Piece") -> bool:
        """Tell whether both are copies and `piece` follows in both files."""
        follows = self.old_at + self.length == piece.old_at
        return self.is_copy and piece.is_copy and follows

    def chunk_fits(self) -> bool:
        """Tell whether a copy is short enough to go along with tensors."""
        return 0 < self.length <= SEGMENT_BYTES // 64


def plan_pieces(old: mmap | bytes, new: mmap | bytes) -> Iterator[Piece]:
    """Return pieces that cover the new file front to back."""
    after = find_tensors(new)
    partners = _partners(find_tensors(old), after, (old, new)) if after else {}
    at = old_at = 0
    for tensor in after:
        partner = partners.get(tensor.name)
        if partner is None:
            continue
        yield from _between(old, new, (at, tensor.at), (old_at, partner.at))
        width = tensor.shape[0] // LAYOUTS[tensor.layout].block_weights
        yield Piece(
            tensor.at, tensor.length, partner.at, layout=tensor.layout, unit=width
        )
        at, old_at = tensor.at + tensor.length, partner.at + partner.length
    yield from _between(old, new, (at, len(new)), (old_at, len(old)))


def _partners(
    before: list[Tensor], after: list[Tensor], files: tuple[mmap | bytes, mmap | bytes]
) -> dict[str, Tensor]:
    """Match tensors by name and shape; others by their bytes, if they were renamed."""
    named = {(t.name, t.layout, t.shape): t for t in before}
    partners, unmatched = {}, []
    for tensor in after:
        partner = named.get((tensor.name, tensor.layout, tensor.shape))
        if partner is None:
            unmatched.append(tensor)
        else:
            partners[tensor.name] = partner
    if unmatched:
        sizes = {tensor.length for tensor in unmatched}
        known = {_hash(files[0], t): t for t in before if t.length in sizes}
        for tensor in unmatched:
            partner = known.get(_hash(files[1], tensor))
            if partner is not None:
                partners[tensor.name] = partner
    return partners


def _hash(raw: mmap | bytes, tensor: Tensor) -> bytes:
    view = memoryview(raw)[tensor.at : tensor.at + tensor.length]
    return bytes([tensor.layout]) + sha256(view).digest()


def _between(
    old: mmap | bytes, new: mmap | bytes, span: tuple[int, int], near: tuple[int, int]
) -> Iterator[Piece]:
    """Cover bytes that are no tensor: what is equal at both ends, and a middle."""
    begin, end = span
    length = end - begin
    if not length:
        return
    there = max(near[1] - near[0], 0)
    most = min(length, there)
    head = _equal_bytes((old, near[0]), (new, begin), most)
    head = head if head >= min(_LEAST_COPY, length) else 0
    most -= head
    tail = _equal_bytes((old, near[1]), (new, end), most, backwards=True)
    tail = tail if tail >= _LEAST_COPY else 0
    if head:
        yield Piece(begin, head, near[0], is_copy=True)
    if length - head - tail:
        yield Piece(begin + head, length - head - tail, near[0] + head)
    if tail:
        yield Piece(end - tail, tail, near[1] - tail, is_copy=True)


def _equal_bytes(
    one: tuple[mmap | bytes, int],
    other: tuple[mmap | bytes, int],
    most: int,
    *,
    backwards: bool = False,
) -> int:
    """Count equal bytes from two places on, or before them; a step at a time."""
    done = 0
    while done < most:
        step = min(_STEP, most - done)
        shift = -done - step if backwards else done
        parts = [
            np.frombuffer(raw[at + shift : at + shift + step], np.uint8)
            for raw, at in (one, other)
        ]
        differs = parts[0] != parts[1]
        first = int((differs[::-1] if backwards else differs).argmax())
        if differs[-1 - first if backwards else first]:
            return done + first
        done += step
    return done
