"""The adapter of a recipe's fine-tuning, taken out: for llama.cpp and for peft."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from slmops.domain.errors import ConflictError, InvalidInputError, NotFoundError
from slmops.domain.ids import Digest
from slmops.registry.blobs import BlobStore
from slmops.registry.workspace import Workspace
from slmops.runtimes.base import WorkerSettings
from slmops.runtimes.llamacpp_scorer import LlamaCppScorer
from slmops.testing.adapter_beside import load_beside
from slmops.testing.sample_build import sample_build
from slmops.testing.tiny_gguf import write_tiny_llama
from slmops.workshop.build_result import BuildResult
from slmops.workshop.built_adapters import (
    built_adapters,
    find_adapter,
    write_gguf_adapter,
    write_peft_adapter,
)
from slmops.workshop.jobs.job import Job
from slmops.workshop.steps import Step, StepRecord
from slmops.workshop.training import finetune

TOKENS = [1, *np.random.default_rng(5).integers(9, 290, 40).tolist()]


def step(
    kind: str, inputs: Mapping[str, Digest], outputs: Mapping[str, Digest]
) -> StepRecord:
    made = Step(kind=kind, tool="t", inputs=inputs, parameters={})
    return StepRecord(step=made, outputs=outputs, seconds=1)


def logits(model: Path, adapter: Path | None = None) -> npt.NDArray[np.float32]:
    scorer = LlamaCppScorer(model, WorkerSettings(context_tokens=64, threads=1))
    try:
        if adapter is not None:
            load_beside(scorer, adapter)
        return scorer.logits(TOKENS)
    finally:
        scorer.close()


def a_build(*tunings: StepRecord, artefact: StepRecord) -> BuildResult:
    sample = sample_build()
    first = replace(sample.candidates[0], digest=artefact.outputs["artefact"])
    return replace(
        sample,
        candidates=(first, *sample.candidates[1:]),
        provenance=(artefact, *tunings),
    )


def tuning(name: str, blobs: BlobStore, model: Digest, merged: Digest) -> StepRecord:
    files = {
        each: blobs.put_bytes(f"{each} {name}".encode()) for each in ("adapter", "peft")
    }
    data = blobs.put_bytes(f"data {name}".encode())
    return step("finetune", {"model": model, "data": data}, {"model": merged, **files})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")  # of peft, on transformers
def test_beside_the_base_it_answers_as_the_merged_model_in_both_forms(
    workspace: Workspace, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    model = write_tiny_llama(tmp_path / "tiny.gguf")
    examples = tmp_path / "examples.jsonl"
    rows = [
        {"prompt": f"count {n}", "completion": "even" if n % 2 == 0 else "odd"}
        for n in range(20)
    ]
    examples.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "out").mkdir()
    job = Job(
        inputs={"model": model, "data": examples},
        parameters={
            "precision": "fp32",
            "method": "lora",
            "rank": 4,
            "learning_rate": 2e-2,
            "batch_tokens": 200,
            "max_steps": 12,
        },
        output=tmp_path / "out",
        state=tmp_path / "state",
    )
    made = finetune.run(job)
    blobs = BlobStore(workspace.blobs)
    base, data = blobs.put_file(model), blobs.put_file(examples)
    outputs = {role: blobs.put_file(path) for role, path in made.items()}
    tuned = step("finetune", {"model": base, "data": data}, outputs)
    artefact = step(
        "quantize",
        {"model": outputs["model"]},
        {"artefact": blobs.put_bytes(b"artefact")},
    )
    found = find_adapter(a_build(tuned, artefact=artefact), "Q8_0")
    assert (found.base, found.merged) == (base, outputs["model"])

    write_gguf_adapter(found, blobs, tmp_path / "lora.gguf")
    plain, merged = logits(model), logits(blobs.path(found.merged))
    beside = logits(blobs.path(found.base), tmp_path / "lora.gguf")
    learned = np.abs(merged - plain).max()
    assert learned > 0.5
    assert np.abs(beside - merged).max() < 0.05 * learned

    write_peft_adapter(found, blobs, tmp_path / "peft")
    from slmops.workshop.hf_export import export_checkpoint

    export_checkpoint(model, tmp_path / "hf")
    causal = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    adapted = peft.PeftModel.from_pretrained(causal.float(), tmp_path / "peft")
    import torch

    with torch.no_grad():
        answered = adapted(torch.tensor([TOKENS])).logits[0].numpy()
    assert np.abs(answered - merged).max() < 0.05 * learned


def test_a_candidates_own_history_tells_which_adapter_is_meant(
    workspace: Workspace,
) -> None:
    blobs = BlobStore(workspace.blobs)
    base, one, two, pruned = (blobs.put_bytes(name.encode()) for name in "abcd")
    tuned, other = tuning("1", blobs, base, one), tuning("2", blobs, base, two)
    shallow = step("prune-depth", {"model": one}, {"model": pruned})
    made = {"artefact": blobs.put_bytes(b"artefact")}
    build = a_build(
        shallow, other, tuned, artefact=step("quantize", {"model": pruned}, made)
    )
    assert len(built_adapters(build)) == 2
    with pytest.raises(InvalidInputError, match="has 2 adapters"):
        find_adapter(build)
    assert find_adapter(build, "Q8_0").merged == one
    with pytest.raises(NotFoundError, match="candidate 'Q4_K_M' has no adapter"):
        find_adapter(build, "Q4_K_M")
    with pytest.raises(
        NotFoundError, match="'Q9' is not in this build; there are Q8_0"
    ):
        find_adapter(build, "Q9")


def test_nothing_is_overwritten_and_lost_bytes_are_named(
    workspace: Workspace, tmp_path: Path
) -> None:
    blobs = BlobStore(workspace.blobs)
    base, merged = blobs.put_bytes(b"a"), blobs.put_bytes(b"b")
    made = {"artefact": blobs.put_bytes(b"artefact")}
    artefact = step("quantize", {"model": merged}, made)
    found = find_adapter(a_build(tuning("1", blobs, base, merged), artefact=artefact))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    for write in (write_gguf_adapter, write_peft_adapter):
        with pytest.raises(ConflictError, match="exists already"):
            write(found, blobs, tmp_path / "mine")
    blobs.remove(found.gguf)
    with pytest.raises(NotFoundError, match="blob"):
        write_gguf_adapter(found, blobs, tmp_path / "new")


def test_a_build_that_tuned_nothing_says_what_would_leave_an_adapter() -> None:
    with pytest.raises(NotFoundError, match="finetune with method lora"):
        find_adapter(sample_build())
