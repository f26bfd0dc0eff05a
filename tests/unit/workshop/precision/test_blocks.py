"""Blocks taken apart: the same weights and the same bytes as llama.cpp's own."""

import numpy as np
import pytest

from slmops.workshop.gguf_file import BLOCKS
from slmops.workshop.precision.blocks import (
    COMPENSATED_TYPES,
    as_blocks,
    find_block_type,
    rescaled,
)
from slmops.workshop.quantize import Matrix, decode_rows, encode_rows


def some_rows(seed: int) -> Matrix:
    chance = np.random.default_rng(seed)
    rows = chance.standard_t(4, (6, 512)).astype(np.float32)
    rows[0, :32] = 0  # a group without any weight
    return rows


@pytest.mark.parametrize("kind", sorted(COMPENSATED_TYPES))
def test_grid_and_codes_give_the_weights_of_the_dequantizer(kind: str) -> None:
    rows = some_rows(1)
    raw = encode_rows(rows, kind)
    blocks, block_type = as_blocks(raw, kind), find_block_type(kind)
    assert block_type is not None
    grid = block_type.grid(blocks)
    values = grid.scale * block_type.levels[block_type.codes(blocks)] + grid.offset
    expected = decode_rows(raw, kind, *rows.shape)
    np.testing.assert_allclose(values.reshape(rows.shape), expected, atol=1e-6)


@pytest.mark.parametrize("kind", sorted(COMPENSATED_TYPES))
def test_codes_written_are_codes_read(kind: str) -> None:
    blocks = as_blocks(encode_rows(some_rows(2), kind), kind)
    block_type = find_block_type(kind)
    assert block_type is not None
    chance = np.random.default_rng(3)
    shape = (len(blocks), BLOCKS[kind][0])
    chosen = chance.integers(0, len(block_type.levels), shape).astype(np.uint8)
    before = block_type.grid(blocks)
    block_type.store(blocks, chosen)
    np.testing.assert_array_equal(block_type.codes(blocks), chosen)
    after = block_type.grid(blocks)
    np.testing.assert_array_equal(after.scale, before.scale)
    np.testing.assert_array_equal(after.offset, before.offset)


@pytest.mark.parametrize("kind", sorted(COMPENSATED_TYPES))
def test_putting_back_the_same_codes_changes_nothing(kind: str) -> None:
    raw = encode_rows(some_rows(4), kind)
    blocks, block_type = as_blocks(raw, kind), find_block_type(kind)
    assert block_type is not None
    codes = block_type.codes(blocks)
    blocks[:] = blocks
    block_type.store(blocks, codes)
    assert blocks.tobytes() == raw


def test_a_type_without_free_codes_is_none() -> None:
    assert find_block_type("IQ3_S") is None


def test_a_scale_is_multiplied_in_half_precision() -> None:
    blocks = as_blocks(encode_rows(some_rows(5), "Q4_0"), "Q4_0")
    block_type = find_block_type("Q4_0")
    assert block_type is not None
    before, after = block_type.grid(blocks), block_type.grid(rescaled(blocks, 1.25))
    expected = (before.scale * np.float32(1.25)).astype(np.float16)
    np.testing.assert_array_equal(after.scale, expected.astype(np.float32))
