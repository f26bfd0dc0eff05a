"""Codes and scales inside llama.cpp's blocks: taken apart, and put together again.

Every type here stores a weight as ``scale * level(code) + offset``: scale and offset
belong to a group of neighbouring weights, the code to one weight. a `BlockType` reads
both out of blocks that `libgguf` made, and writes other codes under the same
scales. Layouts are those of ``ggml-common.h`` and the dequantizers of
``ggml-quants.c``; the tests compare both directions with `libgguf`, bit by bit.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from slmops.workshop.gguf_file import BLOCKS

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

IQ4_LEVELS = np.array(
    (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113),
    np.float32,
)
"""``kvalues_iq4nl``: levels of the two IQ4 types."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """What the weights of some blocks can be: ``scale * level + offset``."""

    scale: Floats
    """(blocks, weights) float32; 0 where a whole group is."""
    offset: Floats
    """(blocks, weights) float32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockType:
    """One type whose codes can be chosen freely."""

    levels: Floats
    """(codes,) level of each code, ascending; neighbours at least 1 apart."""
    grid: Callable[[Bytes], Grid]
    """Blocks (n, block bytes) → their grid."""
    codes: Callable[[Bytes], Bytes]
    """Blocks (n, block bytes) → (n, weights) codes."""
    store: Callable[[Bytes, Bytes], None]
    """Write (n, weights) codes into blocks, in place."""
    scalable: bool = False
    """Whether one half-precision number, the block's first, scales all of it."""


def find_block_type(kind: str) -> BlockType | None:
    """Return how a type's blocks are taken apart; None where they cannot be."""
    return _TYPES.get(kind)


def rescaled(blocks: Bytes, factor: float) -> Bytes:
    """Return scalable blocks with their first scale multiplied, in half precision."""
    changed = blocks.copy()
    changed[:, :2] = _bytes_of(_half(blocks, 0) * np.float32(factor))
    return changed


def _half(blocks: Bytes, at: int) -> Floats:
    raw = np.ascontiguousarray(blocks[:, at : at + 2])
    return raw.view(np.float16).astype(np.float32)


def _bytes_of(values: Floats) -> Bytes:
    return np.ascontiguousarray(values.astype(np.float16)).view(np.uint8)


def _nibbles(raw: Bytes) -> Bytes:
    """Low halves of a run of bytes, then high halves."""
    return np.concatenate([raw & np.uint8(15), raw >> np.uint8(4)], axis=1)


def _u8(values: npt.NDArray[Any]) -> Bytes:
    return np.asarray(values, np.uint8)


def _paired(codes: Bytes) -> Bytes:
    half = codes.shape[1] // 2
    return codes[:, :half] | (codes[:, half:] << np.uint8(4))


def _levels(first: int, count: int) -> Floats:
    return np.arange(first, first + count, dtype=np.float32)


def _spread(values: Floats, weights: int) -> Floats:
    return np.repeat(values, weights // values.shape[1], axis=1)


def _plain(weights: int, offset_at: int | None = None) -> Callable[[Bytes], Grid]:
    """Scale in the first two bytes, minimum in the next two if there is one."""

    def grid(blocks: Bytes) -> Grid:
        scale = _half(blocks, 0)
        offset = np.zeros_like(scale) if offset_at is None else _half(blocks, offset_at)
        return Grid(scale=_spread(scale, weights), offset=_spread(offset, weights))

    return grid


def _four_bits(at: int) -> tuple[Callable[[Bytes], Bytes], Callable[..., None]]:
    def codes(blocks: Bytes) -> Bytes:
        return _nibbles(blocks[:, at : at + 16])

    def store(blocks: Bytes, chosen: Bytes) -> None:
        blocks[:, at : at + 16] = _paired(chosen)

    return codes, store


def _five_bits(at: int) -> tuple[Callable[[Bytes], Bytes], Callable[..., None]]:
    """32 fifth bits, weight by weight, then nibbles."""

    def codes(blocks: Bytes) -> Bytes:
        fifth = np.unpackbits(blocks[:, at : at + 4], axis=1, bitorder="little")
        return _nibbles(blocks[:, at + 4 : at + 20]) | (fifth << np.uint8(4))

    def store(blocks: Bytes, chosen: Bytes) -> None:
        fifth = np.packbits(chosen >> 4, axis=1, bitorder="little")
        blocks[:, at : at + 4] = fifth
        blocks[:, at + 4 : at + 20] = _paired(chosen & np.uint8(15))

    return codes, store


def _eight_bit_codes(blocks: Bytes) -> Bytes:
    return blocks[:, 2:34] ^ np.uint8(128)


def _store_eight_bits(blocks: Bytes, chosen: Bytes) -> None:
    blocks[:, 2:34] = chosen ^ np.uint8(128)


def _six_bit_pairs(raw: Bytes) -> tuple[Floats, Floats]:
    """Scales and minima of 8 groups in 12 bytes: ``get_scale_min_k4``."""
    low, high, rest = raw[:, :4], raw[:, 4:8], raw[:, 8:12]
    scales = np.concatenate(
        [low & 63, (rest & np.uint8(15)) | ((low >> 6) << np.uint8(4))], axis=1
    )
    minima = np.concatenate(
        [high & 63, (rest >> 4) | ((high >> 6) << np.uint8(4))], axis=1
    )
    return scales.astype(np.float32), minima.astype(np.float32)


def _k45_grid(blocks: Bytes) -> Grid:
    scales, minima = _six_bit_pairs(blocks[:, 4:16])
    return Grid(
        scale=_spread(_half(blocks, 0) * scales, 256),
        offset=_spread(-_half(blocks, 2) * minima, 256),
    )


def _q4_k_codes(blocks: Bytes) -> Bytes:
    raw = blocks[:, 16:144].reshape(-1, 32)
    return _nibbles(raw).reshape(len(blocks), 256)


def _store_q4_k(blocks: Bytes, chosen: Bytes) -> None:
    blocks[:, 16:144] = _paired(chosen.reshape(-1, 64)).reshape(len(blocks), 128)


def _q5_k_codes(blocks: Bytes) -> Bytes:
    low = _nibbles(blocks[:, 48:176].reshape(-1, 32)).reshape(-1, 8, 32)
    bits = np.arange(8, dtype=np.uint8)[None, :, None]
    fifth = (blocks[:, None, 16:48] >> bits) & 1
    return _u8(low | (fifth << np.uint8(4))).reshape(len(blocks), 256)


def _store_q5_k(blocks: Bytes, chosen: Bytes) -> None:
    low = (chosen & np.uint8(15)).reshape(-1, 64)
    blocks[:, 48:176] = _paired(low).reshape(len(blocks), 128)
    bits = np.arange(8, dtype=np.uint8)[None, :, None]
    fifth = (chosen.reshape(-1, 8, 32) >> 4) << bits
    blocks[:, 16:48] = np.bitwise_or.reduce(fifth, axis=1)


def _q6_k_grid(blocks: Bytes) -> Grid:
    scales = np.ascontiguousarray(blocks[:, 192:208]).view(np.int8).astype(np.float32)
    scale = _spread(_half(blocks, 208) * scales, 256)
    return Grid(scale=scale, offset=np.zeros_like(scale))


def _q6_k_codes(blocks: Bytes) -> Bytes:
    low = blocks[:, :128].reshape(-1, 2, 64)
    nibbles = np.stack([low & np.uint8(15), low >> np.uint8(4)], axis=2)
    shifts = np.array([0, 2, 4, 6], np.uint8)[None, None, :, None]
    high = (blocks[:, 128:192].reshape(-1, 2, 1, 32) >> shifts) & 3
    return _u8(nibbles.reshape(-1, 256) | (high << np.uint8(4)).reshape(-1, 256))


def _store_q6_k(blocks: Bytes, chosen: Bytes) -> None:
    low = (chosen & np.uint8(15)).reshape(-1, 2, 2, 64)
    blocks[:, :128] = (low[:, :, 0] | (low[:, :, 1] << np.uint8(4))).reshape(-1, 128)
    shifts = np.array([0, 2, 4, 6], np.uint8)[None, None, :, None]
    high = (chosen.reshape(-1, 2, 4, 32) >> 4) << shifts
    blocks[:, 128:192] = np.bitwise_or.reduce(high, axis=2).reshape(-1, 64)


def _q3_k_grid(blocks: Bytes) -> Grid:
    raw = blocks[:, 96:108]
    low = _nibbles(raw[:, :8])
    shifts = np.array([0, 2, 4, 6], np.uint8)[None, :, None]
    high = ((raw[:, None, 8:12] >> shifts) & 3).reshape(-1, 16)
    scales = (low | (high << np.uint8(4))).astype(np.float32) - 32
    scale = _spread(_half(blocks, 108) * scales, 256)
    return Grid(scale=scale, offset=np.zeros_like(scale))


def _q3_k_codes(blocks: Bytes) -> Bytes:
    shifts = np.array([0, 2, 4, 6], np.uint8)[None, None, :, None]
    low = (blocks[:, 32:96].reshape(-1, 2, 1, 32) >> shifts) & 3
    bits = np.arange(8, dtype=np.uint8)[None, :, None]
    third = (blocks[:, None, :32] >> bits) & 1
    return _u8(low.reshape(-1, 256) | (third << 2).reshape(-1, 256))


def _store_q3_k(blocks: Bytes, chosen: Bytes) -> None:
    shifts = np.array([0, 2, 4, 6], np.uint8)[None, None, :, None]
    low = (chosen & 3).reshape(-1, 2, 4, 32) << shifts
    blocks[:, 32:96] = np.bitwise_or.reduce(low, axis=2).reshape(-1, 64)
    bits = np.arange(8, dtype=np.uint8)[None, :, None]
    third = (chosen.reshape(-1, 8, 32) >> 2) << bits
    blocks[:, :32] = np.bitwise_or.reduce(third, axis=1)


def _iq4_xs_grid(blocks: Bytes) -> Grid:
    pairs = blocks[:, 4:8]
    low = np.stack([pairs & np.uint8(15), pairs >> np.uint8(4)], axis=2).reshape(-1, 8)
    high = np.ascontiguousarray(blocks[:, 2:4]).view("<u2")
    shifts = 2 * np.arange(8, dtype=np.uint16)[None]
    scales = low.astype(np.float32) + 16 * ((high >> shifts) & 3) - 32
    scale = _spread((_half(blocks, 0) * scales).astype(np.float32), 256)
    return Grid(scale=scale, offset=np.zeros_like(scale))


def _iq4_xs_codes(blocks: Bytes) -> Bytes:
    return _nibbles(blocks[:, 8:136].reshape(-1, 16)).reshape(-1, 256)


def _store_iq4_xs(blocks: Bytes, chosen: Bytes) -> None:
    blocks[:, 8:136] = _paired(chosen.reshape(-1, 32)).reshape(-1, 128)


def _simple(
    levels: Floats,
    grid: Callable[[Bytes], Grid],
    packing: tuple[Callable[[Bytes], Bytes], Callable[..., None]],
) -> BlockType:
    codes, store = packing
    return BlockType(levels=levels, grid=grid, codes=codes, store=store, scalable=True)


_TYPES: Mapping[str, BlockType] = {
    "Q4_0": _simple(_levels(-8, 16), _plain(32), _four_bits(2)),
    "Q4_1": _simple(_levels(0, 16), _plain(32, 2), _four_bits(4)),
    "Q5_0": _simple(_levels(-16, 32), _plain(32), _five_bits(2)),
    "Q5_1": _simple(_levels(0, 32), _plain(32, 2), _five_bits(4)),
    "Q8_0": _simple(
        _levels(-128, 256), _plain(32), (_eight_bit_codes, _store_eight_bits)
    ),
    "IQ4_NL": _simple(IQ4_LEVELS, _plain(32), _four_bits(2)),
    "IQ4_XS": BlockType(
        levels=IQ4_LEVELS,
        grid=_iq4_xs_grid,
        codes=_iq4_xs_codes,
        store=_store_iq4_xs,
    ),
    "Q3_K": BlockType(
        levels=_levels(-4, 8), grid=_q3_k_grid, codes=_q3_k_codes, store=_store_q3_k
    ),
    "Q4_K": BlockType(
        levels=_levels(0, 16), grid=_k45_grid, codes=_q4_k_codes, store=_store_q4_k
    ),
    "Q5_K": BlockType(
        levels=_levels(0, 32), grid=_k45_grid, codes=_q5_k_codes, store=_store_q5_k
    ),
    "Q6_K": BlockType(
        levels=_levels(-32, 64), grid=_q6_k_grid, codes=_q6_k_codes, store=_store_q6_k
    ),
}

COMPENSATED_TYPES = frozenset(_TYPES)
"""Types whose codes can be chosen."""


def as_blocks(raw: bytes, kind: str) -> Bytes:
    """View encoded rows as (blocks, block bytes), writable."""
    return np.frombuffer(bytearray(raw), np.uint8).reshape(-1, BLOCKS[kind][1])
