"""Fine-tuning learns, resumes to the bit after a kill, and stops when it gets worse."""

import importlib.util
import json
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from slmops.domain.errors import InvalidInputError
from slmops.testing.tiny_gguf import stored_bytes
from slmops.workshop.adapters import merge_adapter
from slmops.workshop.gguf_file import read_header
from slmops.workshop.jobs.job import Job
from slmops.workshop.quantize import decode_rows
from slmops.workshop.training import finetune

pytest.importorskip("torch")

MakeJob = Callable[..., Job]

FULL = {"method": "full", "learning_rate": 3e-3, "batch_tokens": 200}


def losses(path: Path) -> list[float]:
    return [row["loss"] for row in json.loads(path.read_text())["evaluations"]]


def test_full_training_lowers_the_held_out_loss(
    tiny_model: Path, examples: Path, make_job: MakeJob
) -> None:
    job = make_job("full", {"model": tiny_model, "data": examples}, **FULL, epochs=6)
    outputs = finetune.run(job)
    found = losses(outputs["log"])
    assert min(found) < found[0] / 4
    before, after = read_header(tiny_model), read_header(outputs["model"])
    assert after.metadata == before.metadata
    assert [(t.name, t.kind, t.shape) for t in after.tensors] == [
        (t.name, t.kind, t.shape) for t in before.tensors
    ]
    log = json.loads(outputs["log"].read_text())
    assert log["trained_parameters"] == log["parameters"]
    assert (log["examples"], log["held_out_examples"]) == (36, 4)


def test_adapters_are_merged_and_written(
    tiny_model: Path, examples: Path, tmp_path: Path, make_job: MakeJob
) -> None:
    job = make_job(
        "lora",
        {"model": tiny_model, "data": examples},
        method="lora",
        rank=4,
        learning_rate=1e-2,
        batch_tokens=200,
        accumulation=2,
        gradient_checkpointing=True,
    )
    outputs = finetune.run(job)
    found = losses(outputs["log"])
    assert min(found) < found[0] / 2
    with tarfile.open(outputs["peft"]) as archive:
        archive.extractall(tmp_path / "peft", filter="data")
        assert archive.getnames() == [
            "adapter_config.json",
            "adapter_model.safetensors",
        ]
        assert all(entry.isfile() and entry.mtime == 0 for entry in archive)
    before, after = read_header(tiny_model), read_header(outputs["model"])
    changed = {
        old.name
        for old, new in zip(before.tensors, after.tensors, strict=True)
        if stored_bytes(before, old) != stored_bytes(after, new)
    }
    parts = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up")
    assert changed == {
        f"blk.{layer}.{part}.weight"
        for layer in (0, 1)
        for part in (*parts, "ffn_down")
    }

    # The same merge by other code, from the adapter's files.
    again = tmp_path / "again.gguf"
    with again.open("wb") as sink:
        merge_adapter(tiny_model, tmp_path / "peft", sink)
    other = read_header(again)
    for one, two in zip(after.tensors, other.tensors, strict=True):
        values, expected = (
            decode_rows(stored_bytes(h, t), t.kind, t.rows, t.width)
            for h, t in ((after, one), (other, two))
        )
        assert np.allclose(values, expected, atol=1e-3)
    names = {tensor.name for tensor in read_header(outputs["adapter"]).tensors}
    assert {f"{name}.lora_a" for name in changed} <= names


def test_an_adapter_alone_leaves_no_model(
    tiny_model: Path, examples: Path, make_job: MakeJob
) -> None:
    job = make_job(
        "adapter", {"model": tiny_model, "data": examples}, merge=False, max_steps=2
    )
    assert set(finetune.run(job)) == {"adapter", "peft", "log"}


class StoppedError(Exception):
    """What a build's stop looks like to a job."""


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_stopped_run_goes_on_to_the_same_bits(
    method: str, tiny_model: Path, examples: Path, make_job: MakeJob
) -> None:
    inputs = {"model": tiny_model, "data": examples}
    options = {
        "method": method,
        "learning_rate": 3e-3,
        "batch_tokens": 200,
        "checkpoint_seconds": 0.0,
        "evaluate_every": 4,
        "dropout": 0.1,
    }
    whole = finetune.run(make_job("whole", inputs, **options))

    def stop(done: float, total: float) -> None:
        if done == 7:
            raise StoppedError

    with pytest.raises(StoppedError):
        finetune.run(make_job("cut", inputs, stop, **options))
    steps: list[float] = []
    resumed = finetune.run(
        make_job("cut", inputs, lambda done, total: steps.append(done), **options)
    )
    assert steps[0] == 8
    assert resumed["model"].read_bytes() == whole["model"].read_bytes()


_CHILD = """
import sys
from pathlib import Path
from slmops.workshop.jobs.job import Job
from slmops.workshop.training import finetune
model, data, folder = map(Path, sys.argv[1:])
(folder / "output").mkdir(parents=True, exist_ok=True)
finetune.run(Job(
    inputs={"model": model, "data": data},
    parameters={"method": "full", "learning_rate": 3e-3, "batch_tokens": 200,
        "max_steps": 40, "patience": 0, "precision": "fp32", "checkpoint_seconds": 0.0},
    output=folder / "output", state=folder / "state", seed=1,
    report=lambda done, total: print(int(done), flush=True),
))
"""


@pytest.mark.slow
def test_a_killed_process_goes_on_to_the_same_bits(
    tiny_model: Path, examples: Path, tmp_path: Path, make_job: MakeJob
) -> None:
    command = [sys.executable, "-c", _CHILD, str(tiny_model), str(examples)]
    killed = tmp_path / "killed"
    whole = finetune.run(
        make_job(
            "whole",
            {"model": tiny_model, "data": examples},
            **FULL,
            max_steps=40,
            patience=0,
        )
    )
    with subprocess.Popen([*command, str(killed)], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        while child.stdout.readline() not in {b"25\n", b""}:
            pass
        time.sleep(0.01)  # into a step, or into writing its checkpoint
        child.send_signal(signal.SIGKILL)
    again = subprocess.run([*command, str(killed)], check=True, capture_output=True)
    assert int(again.stdout.split()[0]) > 20
    resumed = killed / "output" / "model.gguf"
    assert resumed.read_bytes() == whole["model"].read_bytes()


def test_a_damaged_checkpoint_starts_over(
    tiny_model: Path, examples: Path, make_job: MakeJob
) -> None:
    inputs = {"model": tiny_model, "data": examples}
    options = FULL | {"max_steps": 6, "checkpoint_seconds": 0.0}
    whole = finetune.run(make_job("whole", inputs, **options))
    job = make_job("damaged", inputs, **options)
    finetune.run(job)
    checkpoint = job.state / "training" / "training.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    assert finetune.run(job)["model"].read_bytes() == whole["model"].read_bytes()


def test_training_stops_when_held_out_loss_grows(
    tiny_model: Path, tmp_path: Path, make_job: MakeJob
) -> None:
    data, validation = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    pair = '{{"prompt": "say {}", "completion": "{}"}}\n'
    data.write_text("".join(pair.format(n, "always this") for n in range(12)))
    validation.write_text("".join(pair.format(-n, "0 9 8 7 6") for n in range(1, 5)))
    job = make_job(
        "early",
        {"model": tiny_model, "data": data, "validation": validation},
        **FULL,
        epochs=30,
        patience=2,
    )
    log = json.loads(finetune.run(job)["log"].read_text())
    assert log["stopped_early"]
    assert len(log["steps"]) < log["planned_steps"]
    best = min(log["evaluations"], key=lambda row: row["loss"])
    assert best["step"] == log["best_step"]
    assert log["evaluations"][-1]["loss"] > best["loss"]


def test_leakage_is_refused_before_training(
    tiny_model: Path, examples: Path, tmp_path: Path, make_job: MakeJob
) -> None:
    validation = tmp_path / "validation.jsonl"
    validation.write_text('{"prompt": "COUNT 3 ", "completion": "odd"}\n')
    inputs = {"model": tiny_model, "data": examples, "validation": validation}
    with pytest.raises(
        InvalidInputError, match=r"examples.jsonl:4: .*validation.jsonl:1"
    ):
        finetune.run(make_job("leak", inputs))


def test_a_rate_that_diverges_is_an_error(
    tiny_model: Path, examples: Path, make_job: MakeJob
) -> None:
    job = make_job(
        "diverge",
        {"model": tiny_model, "data": examples},
        method="full",
        learning_rate=1e30,
        schedule="constant",
    )
    with pytest.raises(InvalidInputError, match="not finite"):
        finetune.run(job)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"learning_rat": 1.0}, "did you mean 'learning_rate'"),
        ({"rank": 0}, "rank must be 1 to 1024, got 0"),
        ({"method": "qlora"}, "method must be one of lora, full, got 'qlora'"),
        ({"epochs": "3"}, "epochs must be int, got '3'"),
        ({"method": "full", "merge": False}, "merge must be true"),
        ({"schedule": "up"}, "schedule must be one of"),
    ],
)
def test_wrong_parameters_are_refused(
    parameters: dict[str, str | int | float],
    message: str,
    tiny_model: Path,
    examples: Path,
    make_job: MakeJob,
) -> None:
    job = make_job("wrong", {"model": tiny_model, "data": examples}, **parameters)
    with pytest.raises(InvalidInputError, match=message):
        finetune.run(job)


def test_a_stop_is_noticed_while_it_measures(
    tiny_model: Path, examples: Path, make_job: MakeJob
) -> None:
    def stop(done: float, total: float) -> None:
        raise StoppedError

    job = make_job("stop", {"model": tiny_model, "data": examples}, stop)
    with pytest.raises(StoppedError):
        finetune.run(job)
    assert not (job.state / "training" / "best.safetensors").exists()


def test_without_torch_the_extra_is_named(
    tiny_model: Path,
    examples: Path,
    make_job: MakeJob,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    job = make_job("none", {"model": tiny_model, "data": examples})
    with pytest.raises(InvalidInputError, match=r"needs torch, .*\[train\]"):
        finetune.run(job)
