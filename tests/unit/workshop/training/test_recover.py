"""A model trained with rounded weights loses less when it is quantized."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from slmops.domain.errors import InvalidInputError
from slmops.testing.tiny_gemma import write_tiny_gemma
from slmops.testing.tiny_gguf import stored_bytes
from slmops.workshop.gguf_file import read_header
from slmops.workshop.jobs.job import Job
from slmops.workshop.quantize import decode_rows, quantize_gguf
from slmops.workshop.training import recover

torch = pytest.importorskip("torch")

from slmops.workshop.training.bridge import (  # noqa: E402 - needs torch
    TorchModel,
    open_model,
    save_model,
)
from slmops.workshop.training.fake_quant import open_assignment  # noqa: E402
from slmops.workshop.training.machine import open_machine  # noqa: E402

MakeJob = Callable[..., Job]


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> TorchModel:
    machine = open_machine("fp32", threads=1)
    return open_model(tiny_model, tmp_path / "checkpoint", machine)


def assignment(model: Path, kind: str) -> bytes:
    names = [t.name for t in read_header(model).tensors if len(t.shape) > 1]
    return json.dumps({"types": dict.fromkeys(names, kind)}).encode()


def test_a_model_that_was_not_trained_is_written_as_it_was(
    model: TorchModel, tiny_model: Path, tmp_path: Path
) -> None:
    save_model(model, tmp_path / "same.gguf")
    assert (tmp_path / "same.gguf").read_bytes() == tiny_model.read_bytes()


def test_a_gemma_is_written_as_it_was_but_for_the_last_bit_of_norms(
    tmp_path: Path,
) -> None:
    source = write_tiny_gemma(tmp_path / "gemma.gguf")
    machine = open_machine("fp32", threads=1)
    model = open_model(source, tmp_path / "gemma", machine)
    save_model(model, tmp_path / "same.gguf")
    before, after = read_header(source), read_header(tmp_path / "same.gguf")
    assert after.metadata == before.metadata
    for old, new in zip(before.tensors, after.tensors, strict=True):
        raw, written = stored_bytes(before, old), stored_bytes(after, new)
        if old.kind == "F32":
            expected = np.frombuffer(raw, np.float32)
            assert np.allclose(np.frombuffer(written, np.float32), expected, rtol=1e-6)
        else:
            assert raw == written, old.name


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL"])
def test_weights_are_rounded_as_the_quantizer_rounds_them(
    kind: str, model: TorchModel, tiny_model: Path, tmp_path: Path
) -> None:
    fake = open_assignment(model, assignment(tiny_model, kind), "assignment")
    with fake.rounded():
        # Half precision would round again; the file keeps F32 for what is compared.
        held = {n: p.detach().clone() for n, p in model.causal.named_parameters()}
    down = held["model.layers.1.mlp.down_proj.weight"].numpy()
    query = held["model.layers.0.self_attn.q_proj.weight"].numpy()
    expected = tmp_path / "quantized.gguf"
    with expected.open("wb") as sink:
        quantize_gguf(tiny_model, kind, sink)
    header = read_header(expected)
    tensors = {t.name: t for t in header.tensors}
    for name, values in (
        ("blk.1.ffn_down.weight", down),
        ("blk.0.attn_q.weight", query),
    ):
        entry = tensors[name]
        if entry.kind != kind:
            continue
        stored = decode_rows(stored_bytes(header, entry), kind, entry.rows, entry.width)
        assert np.array_equal(
            stored[np.lexsort(stored.T)], values[np.lexsort(values.T)]
        )
    assert any(t.kind == kind for t in header.tensors)


def test_weights_come_back_exactly(model: TorchModel, tiny_model: Path) -> None:
    before = {n: p.detach().clone() for n, p in model.causal.named_parameters()}
    fake = open_assignment(model, assignment(tiny_model, "Q4_0"), "assignment")
    with pytest.raises(KeyError), fake.rounded():
        changed = dict(model.causal.named_parameters())
        name = "model.layers.0.mlp.up_proj.weight"
        assert not torch.equal(changed[name], before[name])
        raise KeyError
    for name, parameter in model.causal.named_parameters():
        assert torch.equal(parameter, before[name])


@pytest.mark.parametrize("kind", ["Q4_0", "IQ4_NL"])
def test_recovery_lowers_the_divergence_of_the_quantized_model(
    kind: str, tiny_model: Path, text: Path, tmp_path: Path, make_job: MakeJob
) -> None:
    types = tmp_path / "assignment.json"
    types.write_bytes(assignment(tiny_model, kind))
    inputs = {"model": tiny_model, "text": text, "assignment": types}
    outputs = recover.run(
        make_job(
            "recover",
            inputs,
            learning_rate=1e-3,
            window_tokens=64,
            batch_tokens=256,
            epochs=4,
        )
    )
    log = json.loads(outputs["log"].read_text())
    losses = [row["loss"] for row in log["evaluations"]]
    assert losses[0] > 0.005
    assert min(losses) < losses[0] * 0.75
    assert outputs["model"].read_bytes() != tiny_model.read_bytes()


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("[]", "must hold"),
        ('{"types": {}}', "must hold"),
        (
            '{"types": {"blk.9.attn_q.weight": "Q4_0"}}',
            "no tensor 'blk.9.attn_q.weight'",
        ),
        ('{"types": {"blk.0.attn_q.weight": "Q9_9"}}', "'Q9_9' is no type"),
        ('{"types": {"blk.0.attn_q.weight": "Q4_K"}}', "multiple of 256, got 64"),
        ('{"types": {"blk.0.attn_q.weight": "F16"}}', "no tensor is quantized"),
    ],
)
def test_an_assignment_that_does_not_fit_is_refused(
    document: str, message: str, model: TorchModel
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        open_assignment(model, document.encode(), "assignment")
