"""Quantizing by an assignment: exact sizes, every matrix named, nothing else."""

import io
from pathlib import Path

import pytest

from slmops.domain.errors import InvalidInputError
from slmops.testing.tiny_gguf import write_tiny_llama
from slmops.workshop.gguf_file import read_header
from slmops.workshop.quantize import MIXED, predict_quantized, quantize_gguf

Q = "blk.0.attn_q.weight"


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny_llama(tmp_path / "tiny.gguf", feed_forward=256)


def all_q4(tiny: Path) -> dict[str, str]:
    return {t.name: "Q4_0" for t in read_header(tiny).tensors if len(t.shape) > 1}


def test_every_matrix_gets_its_type_and_the_size_is_predicted(
    tiny: Path, tmp_path: Path
) -> None:
    types = all_q4(tiny) | {Q: "Q8_0", "blk.1.ffn_down.weight": "Q5_K"}
    sink = io.BytesIO()
    made = quantize_gguf(tiny, MIXED, sink, types=types)
    assert made == predict_quantized(read_header(tiny), MIXED, types=types)
    assert made.bytes == len(sink.getvalue())
    path = tmp_path / "made.gguf"
    path.write_bytes(sink.getvalue())
    header = read_header(path)
    assert {t.name: t.kind for t in header.tensors if len(t.shape) > 1} == types
    file_type = header.find("general.file_type")
    assert file_type is not None
    assert file_type.scalar() == 2  # mostly Q4_0


def test_an_assignment_of_one_type_is_that_type_without_a_better_head(
    tiny: Path,
) -> None:
    plain, mixed = io.BytesIO(), io.BytesIO()
    types = all_q4(tiny)
    quantize_gguf(tiny, "Q8_0", plain)
    quantize_gguf(tiny, MIXED, mixed, types=dict.fromkeys(types, "Q8_0"))
    assert plain.getvalue() == mixed.getvalue()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({Q: "Q4_9"}, r"assignment of blk\.0\.attn_q\.weight: type 'Q4_9' is unknown"),
        ({Q: "Q4_K"}, "must be a multiple of 256 wide, got 64"),
        ({"blk.0.ffn_down.weight": "IQ2_S"}, "IQ2_S needs an importance matrix"),
        ({"blk.7.attn_q.weight": "Q4_0"}, r"names what is no matrix: blk\.7\.attn_q"),
        ({"output_norm.weight": "Q4_0"}, "names what is no matrix: output_norm"),
    ],
)
def test_a_type_that_cannot_be_is_refused(
    changes: dict[str, str], message: str, tiny: Path
) -> None:
    types = all_q4(tiny) | changes
    with pytest.raises(InvalidInputError, match=message):
        predict_quantized(read_header(tiny), MIXED, types=types)


def test_a_matrix_left_out_is_named(tiny: Path) -> None:
    types = all_q4(tiny)
    del types[Q]
    with pytest.raises(InvalidInputError, match=r"lacks blk\.0\.attn_q\.weight"):
        quantize_gguf(tiny, MIXED, io.BytesIO(), types=types)


def test_an_assignment_and_a_mix_exclude_each_other(tiny: Path) -> None:
    for name, types in ((MIXED, None), ("Q4_0", all_q4(tiny))):
        with pytest.raises(InvalidInputError, match="goes with quantization MIXED"):
            quantize_gguf(tiny, name, io.BytesIO(), types=types)
