"""Quantizing: exact sizes, llama.cpp's types and bytes, and the container itself."""

import hashlib
import io
from pathlib import Path

import gguf
import libgguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmops.domain.blueprint import DEFAULT_CANDIDATES
from slmops.domain.errors import InvalidInputError
from slmops.testing.tiny_gguf import write_tiny_llama
from slmops.workshop.gguf_file import TensorEntry, read_header
from slmops.workshop.gguf_source import open_gguf
from slmops.workshop.gguf_writer import metadata_entry, write_gguf
from slmops.workshop.mixes import MIXES, Place, choose_types
from slmops.workshop.progress import silent
from slmops.workshop.quantize import (
    coarse_rows,
    decode_rows,
    encode_rows,
    predict_quantized,
    quantize_gguf,
)
from slmops.workshop.reference import write_reference

REAL_MB = {
    "Q8_0": 144.8,
    "Q6_K": 138.4,
    "Q5_K_M": 112.1,
    "Q4_K_M": 105.5,
    "Q4_0": 91.7,
    "Q3_K_M": 93.5,
    "Q2_K": 88.2,
    "IQ4_XS": 91.3,
    "IQ3_M": 90.2,
    "Q4_1": 98.4,
}
"""Sizes of files that llama.cpp's own quantizer made of SmolLM2-135M."""


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny_llama(tmp_path / "tiny.gguf", width=256, feed_forward=512)


@pytest.mark.parametrize("name", [name for name in MIXES if name != "IQ2_M"])
def test_the_predicted_size_is_the_size(name: str, tiny: Path) -> None:
    sink = io.BytesIO()
    made = quantize_gguf(tiny, name, sink)
    assert made == predict_quantized(read_header(tiny), name)
    assert made.bytes == len(sink.getvalue())


def test_equal_input_gives_equal_bytes(tiny: Path) -> None:
    digests = set()
    for _ in range(2):
        sink = io.BytesIO()
        quantize_gguf(tiny, "Q4_K_M", sink)
        digests.add(hashlib.sha256(sink.getvalue()).hexdigest())
    assert len(digests) == 1


def test_metadata_is_carried_and_only_the_file_type_changes(
    tiny: Path, tmp_path: Path
) -> None:
    made = tmp_path / "made.gguf"
    with made.open("wb") as sink:
        quantize_gguf(tiny, "Q4_K_M", sink)
    before = {entry.key: entry.raw for entry in read_header(tiny).metadata}
    after = {entry.key: entry.raw for entry in read_header(made).metadata}
    assert {key for key in after if after[key] != before.get(key)} == {
        "general.file_type",
        "general.quantization_version",
    }


def test_the_reader_of_gguf_reads_what_we_write(tiny: Path, tmp_path: Path) -> None:
    made = tmp_path / "made.gguf"
    with made.open("wb") as sink:
        quantize_gguf(tiny, "Q5_K_M", sink)
    reader = gguf.GGUFReader(made)
    assert [tensor.name for tensor in reader.tensors] == [
        tensor.name for tensor in read_header(made).tensors
    ]
    for theirs, ours in zip(reader.tensors, read_header(made).tensors, strict=True):
        assert theirs.tensor_type.name == ours.kind
        assert theirs.data_offset == ours.offset
        assert theirs.n_bytes == ours.bytes


def test_the_writer_of_gguf_writes_the_same_bytes(tmp_path: Path) -> None:
    values = np.arange(64, dtype=np.float32).reshape(2, 32)
    theirs = tmp_path / "theirs.gguf"
    writer = gguf.GGUFWriter(theirs, "llama")
    writer.add_uint32("llama.block_count", 2)
    writer.add_array("tokenizer.ggml.tokens", ["a", "bé"])
    writer.add_tensor("token_embd.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    sink = io.BytesIO()
    entries = [
        metadata_entry("general.architecture", "llama", "STRING"),
        metadata_entry("llama.block_count", 2, "UINT32"),
        metadata_entry("tokenizer.ggml.tokens", ["a", "bé"], "STRING"),
    ]
    tensor = TensorEntry(name="token_embd.weight", shape=(32, 2), kind="F32")
    write_gguf(sink, entries, [tensor], [(values.tobytes(),)])
    assert sink.getvalue() == theirs.read_bytes()


def test_a_tensor_of_the_wrong_size_is_refused() -> None:
    tensor = TensorEntry(name="token_embd.weight", shape=(32, 2), kind="F32")
    with pytest.raises(InvalidInputError, match="expected 256 bytes, got 4"):
        write_gguf(io.BytesIO(), [], [tensor], [(b"1234",)])


def test_rows_are_rounded_alike_whatever_the_pieces(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, pieces = io.BytesIO(), io.BytesIO()
    quantize_gguf(tiny, "Q3_K_M", whole)
    monkeypatch.setattr("slmops.workshop.quantize.CHUNK_WEIGHTS", 3 * 512)
    quantize_gguf(tiny, "Q3_K_M", pieces)
    assert whole.getvalue() == pieces.getvalue()


def test_a_mix_that_needs_an_importance_matrix_says_so(tiny: Path) -> None:
    with pytest.raises(InvalidInputError, match="IQ2_M needs an importance matrix"):
        quantize_gguf(tiny, "IQ2_M", io.BytesIO())


@pytest.mark.slow
def test_with_an_importance_matrix_it_is_made(tiny: Path) -> None:
    header = read_header(tiny)
    imatrix = {
        tensor.name: np.linspace(0.1, 1, tensor.width, dtype=np.float32)
        for tensor in header.tensors
    }
    made = quantize_gguf(tiny, "IQ2_M", io.BytesIO(), imatrix=imatrix)
    assert made.tensor_types["IQ2_S"] > 0


def test_an_importance_of_the_wrong_width_is_refused(tiny: Path) -> None:
    wrong = {"blk.0.attn_q.weight": np.ones(3, np.float32)}
    with pytest.raises(InvalidInputError, match="must be 256 finite numbers"):
        quantize_gguf(tiny, "Q4_0", io.BytesIO(), imatrix=wrong)


def test_an_unknown_name_gets_a_suggestion(tiny: Path) -> None:
    with pytest.raises(InvalidInputError, match="did you mean Q4_K_"):
        quantize_gguf(tiny, "q4_k_x", io.BytesIO())


def test_a_quantized_file_is_no_reference(tiny: Path, tmp_path: Path) -> None:
    made = tmp_path / "made.gguf"
    with made.open("wb") as sink:
        quantize_gguf(tiny, "Q8_0", sink)
    with pytest.raises(InvalidInputError, match="16 bits or more"):
        quantize_gguf(made, "Q4_0", io.BytesIO())


def test_rows_that_no_block_divides_stay_in_16_bits() -> None:
    tensor = TensorEntry(name="blk.0.attn_q.weight", shape=(40, 8), kind="F16")
    (choice,) = choose_types([tensor], "Q4_K_M", kv_sharing=1)
    assert choice.kind == "F16"


@pytest.mark.parametrize(
    ("name", "kind"),
    [("Q4_K_M", "Q5_0"), ("Q5_K_M", "Q5_1"), ("Q6_K", "Q8_0"), ("IQ4_XS", "IQ4_NL")],
)
def test_narrow_rows_fall_back_to_a_32_weight_block(name: str, kind: str) -> None:
    tensors = [
        TensorEntry(name=f"blk.{layer}.attn_q.weight", shape=(576, 8), kind="F16")
        for layer in range(30)
    ]
    choices = choose_types(tensors, name, kv_sharing=3)
    assert {choice.kind for choice in choices} == {kind}


def test_the_sensitive_layers_are_the_outer_eighths_and_every_third() -> None:
    def sensitive(index: int) -> bool:
        place = Place(index=index, count=30, kv_sharing=1, has_imatrix=False)
        return place.is_sensitive

    layers = [index for index in range(30) if sensitive(index)]
    assert layers == [0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 26, 27, 28, 29]


@given(st.integers(1, 8), st.floats(0.001, 100), st.integers(0, 2**32 - 1))
def test_coarse_rows_carry_two_bits(rows: int, scale: float, seed: int) -> None:
    values = np.random.default_rng(seed).normal(0, scale, (rows, 64))
    coarse = coarse_rows(values.astype(np.float32))
    for block in coarse.reshape(-1, 32):
        assert len(np.unique(block)) <= 4


def test_a_block_of_zeros_stays_zero() -> None:
    assert not coarse_rows(np.zeros((1, 32), np.float32)).any()


@given(st.integers(0, 2**32 - 1))
def test_bf16_rounds_to_nearest_even(seed: int) -> None:
    values = np.random.default_rng(seed).normal(0, 1, (2, 64)).astype(np.float32)
    want = gguf.quants.quantize(values, gguf.GGMLQuantizationType.BF16)
    raw = encode_rows(values, "BF16")
    assert raw == want.tobytes()
    again = decode_rows(raw, "BF16", 2, 64)
    np.testing.assert_allclose(again, values, rtol=2**-8)


@pytest.mark.slow
def test_the_real_model_gets_the_sizes_llama_cpp_gives_it(
    smollm2_gguf: Path, tmp_path: Path
) -> None:
    reference = tmp_path / "reference.gguf"
    with reference.open("wb") as sink:
        write_reference(open_gguf(smollm2_gguf), sink, "F16", silent)
    header = read_header(reference)
    sizes = {
        name: round(predict_quantized(header, name).bytes / 1e6, 1) for name in REAL_MB
    }
    assert sizes == REAL_MB
    for name in DEFAULT_CANDIDATES:
        made = tmp_path / "made.gguf"
        with made.open("wb") as sink:
            quantize_gguf(reference, name, sink)
        assert made.stat().st_size == predict_quantized(header, name).bytes


def test_blocks_are_those_of_the_reference_quantizer(tiny: Path) -> None:
    header = read_header(tiny)
    sink = io.BytesIO()
    quantize_gguf(tiny, "Q4_0", sink)
    name = "blk.0.ffn_up.weight"
    source = next(tensor for tensor in header.tensors if tensor.name == name)
    raw = tiny.read_bytes()[source.offset : source.offset + source.bytes]
    values = decode_rows(raw, "F16", source.rows, source.width)
    want = libgguf.quantize_rows(values, gguf.GGMLQuantizationType.Q4_0)
    assert want.tobytes() in sink.getvalue()
