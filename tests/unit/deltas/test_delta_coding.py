"""Blocks of every layout survive splitting, coding and joining."""

import numpy as np
import pytest

from slmops.deltas.coding import (
    ESCAPE,
    Chunk,
    Contexts,
    Extras,
    Sink,
    coder_for,
    context_counts,
    decode_chunk,
    encode_chunk,
)
from slmops.deltas.entropy import TOKENS, TOTAL, Bytes, Decoder, Encoder, Model
from slmops.deltas.layouts import LAYOUTS, Layout
from slmops.domain.errors import InvalidInputError


def _fitted(layout: Layout, chunk: Chunk, new: Bytes) -> list[Model]:
    counts = [np.zeros((n, TOKENS), np.int64) for n in context_counts(layout)]

    def put(index: int, tokens: Bytes, contexts: Contexts) -> Bytes:
        np.add.at(counts[index], (contexts, tokens), 1)
        return tokens

    encode_chunk(chunk, new, Sink(put))
    return [Model.fitted(count, ESCAPE) for count in counts]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_blocks_of_random_bits_and_their_changes_come_back(layout: Layout) -> None:
    rng = np.random.default_rng(7)
    old = rng.integers(0, 256, (48, layout.block_bytes), dtype=np.uint8)
    assert (layout.join(layout.split(old)) == old).all()
    new = old.copy()
    new[::3, 0] += 1
    new[5] = rng.integers(0, 256, layout.block_bytes)
    chunk = Chunk(layout, old, 8)
    models = _fitted(layout, chunk, old)  # of no change: all else is escaped
    encoder = Encoder()
    sink = coder_for(encoder, models)
    encode_chunk(chunk, new, sink)
    decoder = Decoder(*encoder.finish(16))
    slots = [model.slots() for model in models]
    extras = Extras(np.frombuffer(b"".join(sink.extras), np.uint8))
    got = decode_chunk(chunk, lambda i, c: decoder.take(slots[i], c), extras)
    decoder.finish()
    extras.finish()
    assert (got == new).all()


def test_the_coder_comes_within_a_per_cent_of_the_entropy() -> None:
    rng = np.random.default_rng(1)
    share = np.array([0.9, 0.08, 0.02])
    tokens = rng.choice(3, 200_000, p=share).astype(np.uint8)
    contexts = np.zeros(len(tokens), np.intp)
    counts = np.bincount(tokens, minlength=TOKENS).reshape(1, TOKENS)
    encoder = Encoder()
    encoder.put(Model.fitted(counts, ESCAPE), tokens, contexts)
    states, words = encoder.finish(64)
    entropy = -float((share * np.log2(share)).sum()) * len(tokens) / 8
    assert 2 * len(words) + 4 * len(states) < 1.015 * entropy


def test_frequencies_that_do_not_sum_up_are_refused() -> None:
    frequencies = np.zeros((1, TOKENS), np.uint32)
    frequencies[0, 0] = TOTAL - 1
    with pytest.raises(InvalidInputError, match="sum to"):
        Model.checked(frequencies)
