"""Tiny models and examples to train on, and jobs in folders of their own."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from slmops.testing.tiny_gguf import write_tiny_llama
from slmops.workshop.jobs.job import Job, Report, Value, unheard

MakeJob = Callable[..., Job]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two layers."""
    return write_tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf")


@pytest.fixture
def make_job(tmp_path: Path) -> MakeJob:
    """Make a job in the folder called `name`; again with one name is a resumed run."""

    def make(
        name: str,
        inputs: Mapping[str, Path],
        report: Report = unheard,
        seed: int = 1,
        **parameters: Value,
    ) -> Job:
        output = tmp_path / name / "output"
        output.mkdir(parents=True, exist_ok=True)
        return Job(
            inputs=inputs,
            parameters={"precision": "fp32", **parameters},
            output=output,
            state=tmp_path / name / "state",
            seed=seed,
            report=report,
        )

    return make


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    """40 examples whose answer follows from the prompt."""
    rows = [
        {"prompt": f"count {n}", "completion": "even" if n % 2 == 0 else "odd"}
        for n in range(40)
    ]
    path = tmp_path / "examples.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A text of some thousand tokens."""
    path = tmp_path / "text.txt"
    path.write_text("the rain is on the hill and the mill is in the street. " * 60)
    return path
