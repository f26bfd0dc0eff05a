"""A real model from the package index, imported and quantized to every default mix."""

from pathlib import Path

import pytest

from slmops.registry.workspace import Workspace
from slmops.workshop.gguf_file import read_header
from slmops.workshop.models import find_model, import_model, reference_path
from slmops.workshop.quantize import predict_quantized, quantize_gguf

SIZES = {
    "Q8_0": 144_811_072,
    "Q6_K": 138_382_912,
    "Q5_K_M": 112_103_488,
    "Q4_K_M": 105_454_144,
    "Q4_0": 91_726_912,
    "Q3_K_M": 93_510_208,
    "Q2_K": 88_201_792,
}
"""File sizes of SmolLM2-135M: width 576 makes most K-quants fall back to other types."""


@pytest.fixture(scope="module")
def workspace(
    tmp_path_factory: pytest.TempPathFactory, smollm2_gguf: Path
) -> Workspace:
    made = Workspace(root=tmp_path_factory.mktemp("workspace"))
    import_model(str(smollm2_gguf), made, name="smol")
    return made


@pytest.mark.slow
def test_a_quantized_source_becomes_a_marked_16_bit_reference(
    workspace: Workspace, smollm2_gguf: Path
) -> None:
    record = find_model(workspace, "smol")
    assert record.architecture == "llama"
    assert record.parameters == 134_515_008
    assert record.source_quantization == "Q4_1"
    assert record.chat_template
    again = import_model(str(smollm2_gguf), workspace, name="smol")
    assert again == record


@pytest.mark.slow
@pytest.mark.parametrize("mix", ["Q8_0", "Q4_0", "Q2_K"])
def test_the_predicted_size_is_the_file_s_size(
    workspace: Workspace, tmp_path: Path, mix: str
) -> None:
    reference = reference_path(workspace, find_model(workspace, "smol"))
    target = tmp_path / mix
    with target.open("wb") as sink:
        quantize_gguf(reference, mix, sink)
    assert target.stat().st_size == SIZES[mix]
    assert len(read_header(target).tensors) == len(read_header(reference).tensors)


@pytest.mark.slow
def test_every_default_mix_is_predicted_to_the_byte_without_computing(
    workspace: Workspace,
) -> None:
    header = read_header(reference_path(workspace, find_model(workspace, "smol")))
    predicted = {mix: predict_quantized(header, mix).bytes for mix in SIZES}
    assert predicted == SIZES
