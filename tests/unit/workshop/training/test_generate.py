"""A teacher writes what a student can learn from, and nothing twice."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from slmops.domain.errors import InvalidInputError
from slmops.workshop.jobs.job import Job
from slmops.workshop.training import generate
from slmops.workshop.training.data import read_examples

pytestmark = pytest.mark.slow
pytest.importorskip("xllamacpp")

MakeJob = Callable[..., Job]


@pytest.fixture
def make(tmp_path: Path) -> MakeJob:
    def make(name: str, inputs: dict[str, Path], **parameters: int | float) -> Job:
        output = tmp_path / name / "output"
        output.mkdir(parents=True, exist_ok=True)
        return Job(
            inputs=inputs,
            parameters=parameters,
            output=output,
            state=tmp_path / name / "state",
            seed=3,
        )

    return make


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    rows = [
        {"prompt": "What is the capital of France? Answer with one word."},
        {"messages": [{"role": "user", "content": "Say the word yes and stop."}]},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_answers_are_examples_and_a_killed_run_goes_on(
    smollm2_gguf: Path, prompts: Path, make: MakeJob
) -> None:
    inputs = {"model": smollm2_gguf, "prompts": prompts}
    job = make("whole", inputs, max_tokens=60, context_tokens=256)
    outputs = generate.run(job)
    found = read_examples(outputs["data"])
    assert found[0].prompt[-1].content.startswith("What is the capital")
    assert "Paris" in found[0].answer
    log = json.loads(outputs["log"].read_text())
    assert log["prompts"] == 2
    assert log["answers"] + log["cut_off"] + log["unusable"] == 2
    cut = make("cut", inputs, max_tokens=60, context_tokens=256)
    cut.state.mkdir()
    lines = (job.state / "answers.jsonl").read_bytes().splitlines(keepends=True)
    (cut.state / "answers.jsonl").write_bytes(lines[0] + lines[1][:7])
    resumed = generate.run(cut)
    assert resumed["data"].read_bytes() == outputs["data"].read_bytes()


def test_answers_that_were_cut_off_are_left_out(
    smollm2_gguf: Path, prompts: Path, make: MakeJob
) -> None:
    inputs = {"model": smollm2_gguf, "prompts": prompts}
    job = make("short", inputs, max_tokens=1, context_tokens=256)
    with pytest.raises(InvalidInputError, match=r"none of 2 answers .* 2 were cut off"):
        generate.run(job)
