"""What `model inspect` says, against the file itself."""

from pathlib import Path

import pytest

from slmops.domain.errors import InvalidInputError
from slmops.testing.tiny_gemma import write_tiny_gemma
from slmops.testing.tiny_gguf import write_tiny_llama
from slmops.workshop.gguf_file import read_header
from slmops.workshop.inspection import inspect_model
from slmops.workshop.quantize import quantize_gguf


def test_groups_and_parts_add_up_to_the_file(tmp_path: Path) -> None:
    path = write_tiny_gemma(tmp_path / "tiny.gguf")
    found, header = inspect_model(path), read_header(path)
    stored = sum(tensor.bytes for tensor in header.tensors)
    assert sum(group.bytes for group in found.groups) == stored
    assert sum(part.bytes for part in found.parts) == stored
    assert sum(group.tensors for group in found.groups) == len(header.tensors)
    assert sum(group.share for group in found.groups) == pytest.approx(1)
    assert {part.part for part in found.parts} == {
        "embedding",
        "attention",
        "feed-forward",
        "norms",
    }
    assert [g.bytes for g in found.groups] == sorted(
        (g.bytes for g in found.groups), reverse=True
    )


def test_blocks_are_those_that_divide_a_row(tmp_path: Path) -> None:
    path = write_tiny_llama(tmp_path / "tiny.gguf", width=48, feed_forward=256)
    groups = {group.name: group.blocks for group in inspect_model(path).groups}
    assert groups["blk.*.ffn_down.weight"] == (32, 256)
    assert groups["blk.*.ffn_up.weight"] == ()
    assert groups["output_norm.weight"] == ()


def test_tensors_of_one_role_in_two_types_are_two_groups(tmp_path: Path) -> None:
    model = write_tiny_llama(tmp_path / "tiny.gguf", layers=8, feed_forward=256)
    with (tmp_path / "q.gguf").open("wb") as sink:
        quantize_gguf(model, "Q4_K_M", sink)
    groups = inspect_model(tmp_path / "q.gguf").groups
    down = {g.type: g.tensors for g in groups if g.name == "blk.*.ffn_down.weight"}
    assert len(down) == 2
    assert sum(down.values()) == 8


def test_a_token_of_context_costs_less_once_windows_are_full(tmp_path: Path) -> None:
    found = inspect_model(write_tiny_gemma(tmp_path / "tiny.gguf"))
    # Two bytes, keys and values, one head of 32 channels; one of seven layers is whole.
    assert found.kv_cache_bytes_a_token == 2 * 2 * 32 * 7
    assert found.kv_cache_bytes_a_late_token == 2 * 2 * 32 * 1
    assert found.tied_embeddings


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(InvalidInputError):
        inspect_model(tmp_path / "x.gguf")
