"""Memory forecasts: what grows with the context, the vocabulary and sliding windows."""

from dataclasses import replace
from pathlib import Path

import pytest

from slmops.domain.errors import InvalidInputError
from slmops.testing.tiny_gguf import write_tiny_llama
from slmops.workshop.forecast import MemoryForecast, forecast_memory
from slmops.workshop.gguf_file import GgufHeader, read_header
from slmops.workshop.gguf_writer import metadata_entry
from slmops.workshop.model_shape import ModelShape, read_shape

LAYERS = 12


@pytest.fixture(scope="module")
def header(tmp_path_factory: pytest.TempPathFactory) -> GgufHeader:
    folder: Path = tmp_path_factory.mktemp("forecast")
    return read_header(write_tiny_llama(folder / "tiny.gguf", layers=LAYERS))


def forecast(
    shape: ModelShape, header: GgufHeader, context_tokens: int
) -> MemoryForecast:
    return forecast_memory(shape, header.tensors, context_tokens=context_tokens)


def windowed(header: GgufHeader, architecture: str, window: int) -> ModelShape:
    """Return the shape of the same model, called another architecture."""
    entries = [
        replace(entry, key=entry.key.replace("llama.", f"{architecture}."))
        for entry in header.metadata
        if entry.key != "general.architecture"
    ]
    entries += [
        metadata_entry("general.architecture", architecture, "STRING"),
        metadata_entry(f"{architecture}.attention.sliding_window", window, "UINT32"),
    ]
    return read_shape(replace(header, metadata=tuple(entries)))


def test_a_cache_without_windows_grows_with_the_context(header: GgufHeader) -> None:
    shape = read_shape(header)
    short, long = (forecast(shape, header, tokens) for tokens in (1024, 4096))
    assert shape.windowed_layers == 0
    assert long.kv_cache_mib == pytest.approx(4 * short.kv_cache_mib)


@pytest.mark.parametrize(
    ("architecture", "whole"), [("gemma2", 6), ("gemma3", 2), ("olmo2", 3)]
)
def test_layers_with_a_window_keep_no_more_than_it_and_a_batch(
    header: GgufHeader, architecture: str, whole: int
) -> None:
    shape = windowed(header, architecture, 512)
    assert shape.windowed_layers == LAYERS - whole
    plain = replace(shape, windowed_layers=0)
    long, all_of_it = (forecast(one, header, 8192) for one in (shape, plain))
    share = (whole * 8192 + (LAYERS - whole) * 768) / (LAYERS * 8192)
    assert long.kv_cache_mib == pytest.approx(share * all_of_it.kv_cache_mib)
    short, same = (forecast(one, header, 512) for one in (shape, plain))
    assert short == same


def test_a_window_of_an_architecture_that_ignores_it_changes_nothing(
    header: GgufHeader,
) -> None:
    assert windowed(header, "qwen2", 512).windowed_layers == 0


def test_attention_scores_count_once_they_outgrow_other_scratch(
    header: GgufHeader,
) -> None:
    shape = read_shape(header)
    short, long = (forecast(shape, header, tokens) for tokens in (64, 8192))
    assert short.attention_mib == 0
    assert long.attention_mib > long.scratch_mib
    assert long.total_mib > short.total_mib


def test_merges_cost_memory_beside_tokens(header: GgufHeader) -> None:
    shape = read_shape(header)
    assert shape.merges > 0
    without = forecast(replace(shape, merges=0), header, 512)
    assert without.runtime_mib < forecast(shape, header, 512).runtime_mib


def test_a_cache_of_few_bits_is_as_small_as_its_blocks(header: GgufHeader) -> None:
    shape = read_shape(header)

    def cache(kind: str) -> float:
        found = forecast_memory(
            shape, header.tensors, context_tokens=1024, kv_cache=kind
        )
        return found.kv_cache_mib

    exact = cache("f16")
    assert cache("q8_0") == pytest.approx(exact * 34 / 64)
    assert cache("q4_0") == pytest.approx(exact * 18 / 64)
    # Keys alone: values, as wide here, stay at 16 bits.
    assert cache("k-q8_0") == pytest.approx((exact + cache("q8_0")) / 2)
    with pytest.raises(InvalidInputError, match="kv_cache"):
        cache("q3_k")
