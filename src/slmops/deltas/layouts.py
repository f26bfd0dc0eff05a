"""How blocks of weights are laid out: scales apart from codes.

A block of GGML is split into *side* fields (scales and minima) and *codes*, so that
``weight = scale * (code - zero) + minimum``. Block formats: ggml's ``ggml-common.h``.
Formats that are not split keep their bytes as codes, without a scale.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Field = npt.NDArray[np.uint32]
"""(blocks, items): unsigned numbers."""
Scaling = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]
"""Scale and minimum, each (blocks, groups)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """One block format."""

    name: str
    """As in GGUF or safetensors."""
    block_bytes: int
    """Bytes of a block."""
    block_weights: int
    """Weights in a block."""
    code_bits: int
    """Bits of a code: 4, 8, 16, 32."""
    side_bits: tuple[int, ...]
    """Bits of each side field; 16 means a float16."""
    split: Callable[[Bytes], list[Field]]
    """(blocks, block_bytes) → side fields, then codes."""
    join: Callable[[Sequence[Field]], Bytes]
    """The inverse."""
    scaling: Callable[[Sequence[Field]], Scaling] | None = None
    """Side fields → scale and minimum; None: codes have no scale."""
    zero: int = 0
    """Code that stands for the minimum."""
    exponent: tuple[int, int] | None = None
    """For floats: bits below the exponent, and the smallest exponent told apart."""


def _half(raw: Bytes) -> Field:
    """(blocks, 2) bytes → (blocks, 1) numbers that rise with the float16."""
    value = np.ascontiguousarray(raw).view("<u2").astype(np.uint32)
    return ordered(value, 16)


def _half_bytes(value: Field) -> Bytes:
    return disordered(value, 16).astype("<u2").view(np.uint8)


def half_float(value: Field) -> npt.NDArray[np.float32]:
    """Return float16 numbers of `_half` as float32."""
    return disordered(value, 16).astype(np.uint16).view(np.float16).astype(np.float32)


def ordered(value: Field, bits: int) -> Field:
    """Map the bits of IEEE floats to integers that rise with them."""
    top = np.uint32(1 << (bits - 1))
    mask = np.uint32((1 << bits) - 1)
    return np.where(value & top, value ^ mask, value | top)


def disordered(value: Field, bits: int) -> Field:
    """Undo `ordered`."""
    top = np.uint32(1 << (bits - 1))
    mask = np.uint32((1 << bits) - 1)
    return np.where(value & top, value ^ top, value ^ mask)


def _nibbles(raw: Bytes) -> Field:
    """(…, n) bytes → (…, 2n): low halves first."""
    return np.concatenate([raw & 15, raw >> 4], axis=-1).astype(np.uint32)


def _nibble_bytes(codes: Field) -> Bytes:
    half = codes.shape[-1] // 2
    return (codes[..., :half] & 15 | (codes[..., half:] & 15) << 4).astype(np.uint8)


def _simple(name: str, zero: int, *, minimum: bool, high: bool) -> Layout:
    """Q4_0, Q4_1, Q5_0, Q5_1: scale, perhaps a minimum, perhaps fifth bits, nibbles."""
    sides = 2 if minimum else 1
    head = 2 * sides

    def split(raw: Bytes) -> list[Field]:
        fields = [_half(raw[:, 2 * i : 2 * i + 2]) for i in range(sides)]
        codes = _nibbles(raw[:, head + 4 * high :])
        if high:
            fifth = np.unpackbits(raw[:, head : head + 4], axis=1, bitorder="little")
            codes |= fifth.astype(np.uint32) << 4
        return [*fields, codes]

    def join(fields: Sequence[Field]) -> Bytes:
        codes = fields[-1]
        parts = [_half_bytes(field) for field in fields[:-1]]
        if high:
            fifth = (codes >> 4).astype(np.uint8)
            parts.append(np.packbits(fifth, axis=1, bitorder="little"))
        return np.concatenate([*parts, _nibble_bytes(codes)], axis=1)

    def scaling(fields: Sequence[Field]) -> Scaling:
        scale = half_float(fields[0])
        return scale, half_float(fields[1]) if minimum else np.zeros_like(scale)

    return Layout(
        name=name,
        block_bytes=head + 4 * high + 16,
        block_weights=32,
        code_bits=5 if high else 4,
        side_bits=(16,) * sides,
        split=split,
        join=join,
        scaling=scaling,
        zero=zero,
    )


def _q8_0() -> Layout:
    return Layout(
        name="Q8_0",
        block_bytes=34,
        block_weights=32,
        code_bits=8,
        side_bits=(16,),
        split=lambda raw: [_half(raw[:, :2]), (raw[:, 2:] ^ 128).astype(np.uint32)],
        join=lambda fields: np.concatenate(
            [_half_bytes(fields[0]), fields[1].astype(np.uint8) ^ 128], axis=1
        ),
        scaling=lambda fields: (
            half_float(fields[0]),
            np.zeros(fields[0].shape, np.float32),
        ),
        zero=128,
    )


def _k_scales(raw: Bytes) -> Field:
    """(blocks, 12) bytes → 8 scales and 8 minima of 6 bits (`get_scale_min_k4`)."""
    low, middle, high = raw[:, :4], raw[:, 4:8], raw[:, 8:]
    return np.concatenate(
        [
            low & 63,
            high & 15 | (low >> 6) << 4,
            middle & 63,
            high >> 4 | (middle >> 6) << 4,
        ],
        axis=1,
    ).astype(np.uint32)


def _k_scale_bytes(items: Field) -> Bytes:
    scale, minimum = items[:, :8], items[:, 8:]
    return np.concatenate(
        [
            scale[:, :4] | (scale[:, 4:] >> 4) << 6,
            minimum[:, :4] | (minimum[:, 4:] >> 4) << 6,
            scale[:, 4:] & 15 | (minimum[:, 4:] & 15) << 4,
        ],
        axis=1,
    ).astype(np.uint8)


def _k_quant(name: str, *, high: bool) -> Layout:
    """Q4_K and Q5_K: two float16, 6-bit scales and minima, perhaps fifth bits."""
    begin = 16 + 32 * high

    def split(raw: Bytes) -> list[Field]:
        count = len(raw)
        codes = _nibbles(raw[:, begin:].reshape(count, 4, 32)).reshape(count, 256)
        if high:
            fifth = np.unpackbits(raw[:, 16:48, None], axis=2, bitorder="little")
            codes |= fifth.transpose(0, 2, 1).reshape(count, 256).astype(np.uint32) << 4
        return [_half(raw[:, :2]), _half(raw[:, 2:4]), _k_scales(raw[:, 4:16]), codes]

    def join(fields: Sequence[Field]) -> Bytes:
        codes = fields[3]
        count = len(codes)
        parts = [_half_bytes(fields[0]), _half_bytes(fields[1])]
        parts.append(_k_scale_bytes(fields[2]))
        if high:
            fifth = (codes >> 4).astype(np.uint8).reshape(count, 8, 32)
            packed = np.packbits(fifth.transpose(0, 2, 1), axis=2, bitorder="little")
            parts.append(packed.reshape(count, 32))
        nibbles = _nibble_bytes(codes.reshape(count, 4, 64)).reshape(count, 128)
        return np.concatenate([*parts, nibbles], axis=1)

    def scaling(fields: Sequence[Field]) -> Scaling:
        items = fields[2].astype(np.float32)
        return half_float(fields[0]) * items[:, :8], -half_float(fields[1]) * items[
            :, 8:
        ]

    return Layout(
        name=name,
        block_bytes=begin + 128,
        block_weights=256,
        code_bits=5 if high else 4,
        side_bits=(16, 16, 6),
        split=split,
        join=join,
        scaling=scaling,
    )


def _q6_k_split(raw: Bytes) -> list[Field]:
    count = len(raw)
    low = _nibbles(raw[:, :128].reshape(count, 2, 64))
    packed = raw[:, 128:192].reshape(count, 2, 1, 32)
    pairs = packed >> np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1) & 3
    codes = low.reshape(count, 256) | pairs.reshape(count, 256).astype(np.uint32) << 4
    scales = (raw[:, 192:208] ^ 128).astype(np.uint32)
    return [_half(raw[:, 208:]), scales, codes.astype(np.uint32)]


def _q6_k_join(fields: Sequence[Field]) -> Bytes:
    count = len(fields[2])
    low = _nibble_bytes(fields[2].reshape(count, 2, 128)).reshape(count, 128)
    pairs = (fields[2] >> 4).reshape(count, 2, 4, 32)
    shifts = np.array([0, 2, 4, 6], np.uint32).reshape(1, 1, 4, 1)
    high = np.bitwise_or.reduce(pairs << shifts, axis=2).astype(np.uint8)
    scales = fields[1].astype(np.uint8) ^ 128
    return np.concatenate(
        [low, high.reshape(count, 64), scales, _half_bytes(fields[0])], axis=1
    )


def _q6_k() -> Layout:
    def scaling(fields: Sequence[Field]) -> Scaling:
        scale = half_float(fields[0]) * (fields[1].astype(np.float32) - 128)
        return scale, np.zeros_like(scale)

    return Layout(
        name="Q6_K",
        block_bytes=210,
        block_weights=256,
        code_bits=6,
        side_bits=(16, 8),
        split=_q6_k_split,
        join=_q6_k_join,
        scaling=scaling,
        zero=32,
    )


def _iq4_nl() -> Layout:
    """Codes are indices of an uneven grid that rises with them."""
    return Layout(
        name="IQ4_NL",
        block_bytes=18,
        block_weights=32,
        code_bits=4,
        side_bits=(16,),
        split=lambda raw: [_half(raw[:, :2]), _nibbles(raw[:, 2:])],
        join=lambda fields: np.concatenate(
            [_half_bytes(fields[0]), _nibble_bytes(fields[1])], axis=1
        ),
    )


def _float(name: str, bits: int, mantissa: int, least: int) -> Layout:
    size = bits // 8
    return Layout(
        name=name,
        block_bytes=size,
        block_weights=1,
        code_bits=bits,
        side_bits=(),
        split=lambda raw: [
            ordered(np.ascontiguousarray(raw).view(f"<u{size}").astype(np.uint32), bits)
        ],
        join=lambda fields: (
            disordered(fields[0], bits).astype(f"<u{size}").view(np.uint8)
        ),
        exponent=(mantissa, least),
    )


def _bytes(name: str, block_bytes: int, block_weights: int) -> Layout:
    return Layout(
        name=name,
        block_bytes=block_bytes,
        block_weights=block_weights,
        code_bits=8,
        side_bits=(),
        split=lambda raw: [raw.astype(np.uint32)],
        join=lambda fields: fields[0].astype(np.uint8),
    )


LAYOUTS: tuple[Layout, ...] = (
    _float("F32", 32, 23, 113),
    _float("F16", 16, 10, 3),
    _float("BF16", 16, 7, 113),
    _simple("Q4_0", 8, minimum=False, high=False),
    _simple("Q4_1", 0, minimum=True, high=False),
    _simple("Q5_0", 16, minimum=False, high=True),
    _simple("Q5_1", 0, minimum=True, high=True),
    _q8_0(),
    _k_quant("Q4_K", high=False),
    _k_quant("Q5_K", high=True),
    _q6_k(),
    _iq4_nl(),
    _bytes("Q2_K", 84, 256),
    _bytes("Q3_K", 110, 256),
    _bytes("IQ4_XS", 136, 256),
)
"""A delta names a layout by its place here: append only, never reorder."""
