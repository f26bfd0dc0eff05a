"""Blocks of weights as tokens with contexts, and back.

Both sides know the old blocks. Scales come first, as differences. A new code is then
foretold: the old weight, divided by the new scale. What is coded is how far that is off,
in the context of how near the foretold value was to the next code, and of a class for
each row that says how much of it changed. A difference of up to `_DIRECT` is a token,
a larger one a token for its size and plain bits.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from slmops.deltas.entropy import TOKENS, Bytes, Encoder, Integers, Model
from slmops.deltas.layouts import Field, Layout
from slmops.domain.errors import InvalidInputError

Contexts = npt.NDArray[np.intp]
Signed = npt.NDArray[np.signedinteger[Any]]

ESCAPE = TOKENS - 1
_DIRECT = 30
CLASSES = 12
_NEAR = 14
"""Contexts of a code within a class."""
_LEAST_NEAR = 117
"""Biased float32 exponent of the smallest distance told apart: 2**-10."""


def context_counts(layout: Layout) -> tuple[int, ...]:
    """Return the number of contexts of each of a layout's models: classes first."""
    return (1, *(2 * CLASSES for _ in layout.side_bits), _NEAR * CLASSES)


def zigzag(difference: Signed, bits: int) -> Integers:
    """Map differences modulo 2**bits to 0, 1, 2, …: near zero first, either sign."""
    half = 1 << (bits - 1)
    wrapped = ((difference + half) & ((1 << bits) - 1)) - half
    sign = wrapped >> (8 * wrapped.itemsize - 1)
    return ((wrapped << 1) ^ sign).astype(np.uint32)


def unzigzag(number: Integers) -> Signed:
    """Undo `zigzag`, up to a multiple of 2**bits."""
    large = bool(len(number)) and int(number.max()) >> 31 != 0
    wide: Signed = number.astype(np.int64 if large else np.int32)
    return (wide >> 1) ^ -(wide & 1)


def tokens_of(numbers: Integers) -> Bytes:
    """Return the token of each number."""
    if not len(numbers) or numbers.max() < _DIRECT:
        return numbers.astype(np.uint8)
    over = np.maximum(numbers.astype(np.float64) - (_DIRECT - 1), 1.0)
    sizes = np.frexp(over)[1] - 1 + _DIRECT
    return np.where(numbers < _DIRECT, numbers, sizes).astype(np.uint8)


def pack_extras(numbers: Integers, tokens: Bytes) -> bytes:
    """Return the plain bits of numbers whose token does not say all."""
    parts = []
    counts = np.bincount(tokens, minlength=TOKENS)
    for token in (t for t in range(_DIRECT + 1, TOKENS) if counts[t]):
        chosen = numbers[tokens == token]
        width, base = _extra(token)
        wide = (chosen.astype(np.int64) - base).astype(">u8")
        bits = np.unpackbits(wide.view(np.uint8).reshape(-1, 8), axis=1)
        parts.append(bits[:, 64 - width :].ravel())
    return np.packbits(np.concatenate(parts)).tobytes() if parts else b""


@dataclass(slots=True)
class Extras:
    """Plain bits, read front to back; every array of numbers begins at a byte."""

    raw: Bytes
    position: int = 0

    def finish(self) -> None:
        """Check that all was read.

        Raises:
            InvalidInputError: bytes are left.
        """
        if self.position != len(self.raw):
            raise InvalidInputError("delta: plain bits are left over")

    def numbers(self, tokens: Bytes) -> Integers:
        """Return the numbers of tokens.

        Raises:
            InvalidInputError: the bits end too early, or a number has over 32 bits.
        """
        numbers = tokens.astype(np.uint32)
        counts = np.bincount(tokens, minlength=TOKENS)
        large = [t for t in range(_DIRECT, TOKENS) if counts[t]]
        total = sum(int(counts[token]) * _extra(token)[0] for token in large)
        end = self.position + (total + 7) // 8
        if end > len(self.raw):
            raise InvalidInputError("delta: plain bits end too early")
        bits = np.unpackbits(self.raw[self.position : end])
        self.position, at = end, 0
        for token in large:
            width, base = _extra(token)
            count = int(counts[token])
            values = _from_bits(bits[at : at + count * width], count, width) + base
            if (values >> 32).any():
                raise InvalidInputError("delta: a difference has over 32 bits")
            numbers[tokens == token] = values.astype(np.uint32)
            at += count * width
        return numbers


def _from_bits(bits: Bytes, count: int, width: int) -> npt.NDArray[np.int64]:
    full = np.zeros((count, 64), np.uint8)
    if width:
        full[:, 64 - width :] = bits.reshape(count, width)
    return np.packbits(full, axis=1).view(">u8").astype(np.int64).ravel()


def _extra(token: int) -> tuple[int, int]:
    """Return how many plain bits follow a token, and the least number it stands for."""
    if token == ESCAPE:
        return 32, 0
    size = token - _DIRECT
    return size, (1 << size) + _DIRECT - 1


@dataclass(frozen=True, slots=True)
class Foretold:
    """What old blocks and new scales say of new codes; each (blocks, codes)."""

    guess: Signed
    """The likeliest code."""
    sign: npt.NDArray[np.int32] | None
    """-1 where the code, if another, is likelier smaller, else 1; None: all 1."""
    near: npt.NDArray[np.intp]
    """How near the foretold value is to another code, below `_NEAR`."""

    def turned(self, difference: Signed) -> Signed:
        """Return a difference with the likelier sign positive; undoes itself."""
        return difference if self.sign is None else difference * self.sign


@dataclass(slots=True)
class Chunk:
    """Whole rows of one tensor, as both sides see them."""

    layout: Layout
    old: Bytes
    """(blocks, block_bytes)."""
    unit: int
    """Blocks in a row; divides the number of blocks."""
    fields: list[Field] = field(init=False)
    """Of the old blocks."""

    def __post_init__(self) -> None:
        self.fields = self.layout.split(self.old)

    def spread(self, classes: Bytes) -> npt.NDArray[np.intp]:
        """Return the class of each block, (blocks, 1)."""
        return np.repeat(classes.astype(np.intp), self.unit)[:, None]

    def side_contexts(self, index: int, classes: Bytes) -> Contexts:
        """Return the contexts of a side field, flat."""
        old = self.fields[index]
        # The upper half of a binade holds a change of weight in half as many steps.
        upper = (old >> 9 & 1) if self.layout.side_bits[index] == 16 else old * 0  # noqa: PLR2004 - float16
        return (self.spread(classes) * 2 + upper).ravel()

    def foretold(self, sides: Sequence[Field]) -> "Foretold":
        """Foretell the new codes from the new side fields."""
        old = self.fields[-1]
        if self.layout.scaling is None:
            return Foretold(old.astype(np.int64), None, self._exponents(old))
        return _foretold(self.layout, self.fields, sides)

    def code_contexts(self, foretold: "Foretold", classes: Bytes) -> Contexts:
        """Return the contexts of the codes, flat."""
        return (self.spread(classes) * _NEAR + foretold.near).ravel()

    def _exponents(self, old: Field) -> npt.NDArray[np.intp]:
        if self.layout.exponent is None:
            return np.zeros(old.shape, np.intp)
        mantissa, least = self.layout.exponent
        magnitude = np.where(old >> (self.layout.code_bits - 1), old, ~old)
        mask = (1 << (self.layout.code_bits - 1 - mantissa)) - 1
        exponent = (magnitude >> mantissa & mask).astype(np.intp)
        return np.clip(exponent - least, 0, _NEAR - 1)


def _foretold(layout: Layout, old: Sequence[Field], sides: Sequence[Field]) -> Foretold:
    """One array operation a line: no machine may fuse two into another rounding."""
    scaling = layout.scaling
    if scaling is None:
        raise InvalidInputError(f"delta: {layout.name} has no scale")
    codes, top = old[-1], (1 << layout.code_bits) - 1
    with np.errstate(all="ignore"):
        (scale, minimum), (new_scale, new_minimum) = scaling(old), scaling(sides)
        shape = (len(codes), scale.shape[1], codes.shape[1] // scale.shape[1])
        ratio = scale / new_scale
        moved = (minimum - new_minimum) / new_scale
        unknown = ~(np.isfinite(ratio) & np.isfinite(moved))
        ratio[unknown], moved[unknown] = 1, 0
        centre = codes.reshape(shape).astype(np.float32)
        centre -= np.float32(layout.zero)
        centre *= ratio[:, :, None]
        centre += moved[:, :, None]
        centre += np.float32(layout.zero)
        np.clip(centre, 0, top, out=centre)
    guess = np.rint(centre)
    centre -= guess
    near = (centre.view(np.int32) >> 23) & 255
    near -= _LEAST_NEAR
    np.clip(near, 0, _NEAR - 3, out=near)
    sign = (centre.view(np.int32) >> 31) | 1
    whole = guess.astype(np.int32)
    near[whole == 0] = _NEAR - 2
    near[whole == top] = _NEAR - 1
    flat = codes.shape
    return Foretold(whole.reshape(flat), sign.reshape(flat), near.reshape(flat))


@dataclass(slots=True)
class Sink:
    """Where an encoded chunk goes."""

    put: Callable[[int, Bytes, Contexts], Bytes]
    """Takes the index of a model, tokens and contexts; returns the tokens to code."""
    extras: list[bytes] = field(default_factory=list)

    def numbers(self, index: int, numbers: Integers, contexts: Contexts) -> None:
        """Code numbers."""
        tokens = self.put(index, tokens_of(numbers), contexts)
        self.extras.append(pack_extras(numbers, tokens))


def encode_chunk(chunk: Chunk, new: Bytes, sink: Sink) -> None:
    """Code `new`, of the shape of the old blocks."""
    layout = chunk.layout
    fields = layout.split(new)
    foretold = chunk.foretold(fields)
    difference = foretold.turned(
        fields[-1].astype(foretold.guess.dtype) - foretold.guess
    )
    codes = zigzag(difference, layout.code_bits)
    classes = _classes(codes.reshape(len(new) // chunk.unit, -1))
    sink.numbers(0, classes.astype(np.uint32), np.zeros(len(classes), np.intp))
    for index, bits in enumerate(layout.side_bits):
        side = fields[index].astype(np.int64) - chunk.fields[index]
        sink.numbers(
            1 + index, zigzag(side, bits).ravel(), chunk.side_contexts(index, classes)
        )
    near = chunk.code_contexts(foretold, classes)
    sink.numbers(1 + len(layout.side_bits), codes.ravel(), near)


def _classes(codes: Integers) -> Bytes:
    """Sort rows by their mean difference: each class stands for twice the one before."""
    mean = np.minimum(codes, 1 << 10).mean(axis=1, dtype=np.float64)
    size = np.frexp(mean + 1e-9)[1]
    classes: npt.NDArray[np.int32] = np.clip(size + 8, 0, CLASSES - 1)
    return classes.astype(np.uint8)


Take = Callable[[int, Contexts], Bytes]
"""Index of a model and contexts → tokens."""


def decode_chunk(chunk: Chunk, take: Take, extras: Extras) -> Bytes:
    """Return the new blocks, (blocks, block_bytes).

    Raises:
        InvalidInputError: the delta is damaged.
    """
    layout = chunk.layout
    rows = np.zeros(len(chunk.old) // chunk.unit, np.intp)
    said = extras.numbers(take(0, rows))
    if (said >= CLASSES).any():
        raise InvalidInputError("delta: a row's class is out of range")
    classes = said.astype(np.uint8)
    fields: list[Field] = []
    for index, bits in enumerate(layout.side_bits):
        numbers = extras.numbers(take(1 + index, chunk.side_contexts(index, classes)))
        fields.append(_added(chunk.fields[index], numbers, bits))
    foretold = chunk.foretold(fields)
    contexts = chunk.code_contexts(foretold, classes)
    numbers = extras.numbers(take(1 + len(layout.side_bits), contexts))
    difference = foretold.turned(unzigzag(numbers).reshape(foretold.guess.shape))
    mask = (1 << layout.code_bits) - 1
    codes = (foretold.guess + difference) & mask
    return layout.join([*fields, codes.astype(np.uint32)])


def _added(old: Field, numbers: Integers, bits: int) -> Field:
    total = old.astype(np.int64) + unzigzag(numbers).reshape(old.shape)
    return (total & ((1 << bits) - 1)).astype(np.uint32)


def coder_for(encoder: Encoder, models: Sequence[Model]) -> Sink:
    """Return a sink that codes with fitted models; tokens they lack are escaped."""

    def put(index: int, tokens: Bytes, contexts: Contexts) -> Bytes:
        model = models[index]
        known = model.frequencies.ravel()[contexts * TOKENS + tokens] > 0
        coded = np.where(known, tokens, ESCAPE).astype(np.uint8)
        encoder.put(model, coded, contexts)
        return coded

    return Sink(put)
