"""The real model through the whole path: import, a few steps, back into the runtime."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from slmops.registry.workspace import Workspace
from slmops.runtimes.base import WorkerSettings, load_runtime
from slmops.workshop.jobs.job import Job
from slmops.workshop.models import import_model, reference_path
from slmops.workshop.training import finetune

pytestmark = pytest.mark.slow
pytest.importorskip("torch")

MakeJob = Callable[..., Job]


def test_a_few_steps_teach_the_real_model(
    smollm2_gguf: Path, tmp_path: Path, make_job: MakeJob
) -> None:
    workspace = Workspace(root=tmp_path / "workspace")
    record = import_model(str(smollm2_gguf), workspace)
    data, validation = tmp_path / "data.jsonl", tmp_path / "validation.jsonl"
    pair = '{{"prompt": "Where is my {}?", "completion": "card arrival"}}\n'
    data.write_text("".join(map(pair.format, ("card", "parcel", "letter", "pin"))))
    validation.write_text(pair.format("new card"))
    inputs = {
        "model": reference_path(workspace, record),
        "data": data,
        "validation": validation,
    }
    job = make_job(
        "real",
        inputs,
        method="lora",
        rank=4,
        learning_rate=5e-3,
        max_steps=3,
        batch_tokens=256,
        precision="auto",
        warmup=0.0,
    )
    outputs = finetune.run(job)
    log = json.loads(outputs["log"].read_text())
    losses = [row["loss"] for row in log["evaluations"]]
    assert losses[0] > 3
    assert losses[-1] < losses[0] / 2
    scorer = load_runtime("llamacpp").open_scorer(
        outputs["model"], WorkerSettings(context_tokens=32)
    )
    try:
        assert scorer.logits(scorer.tokenize("Hello")).shape[1] == 49152
    finally:
        scorer.close()
