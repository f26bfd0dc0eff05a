"""Tiny models for structural edits: real files that llama.cpp loads."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from slmops.runtimes.base import Scorer, WorkerSettings, load_runtime
from slmops.testing.structure_samples import (
    OpenScorer,
    RunJob,
    run_here,
    write_tiny_bpe,
)
from slmops.workshop.jobs.job import JobFunction, Value


@pytest.fixture
def run_job(tmp_path: Path) -> RunJob:
    """Run a job function here, in a folder of its own."""
    count = 0

    def run(
        function: JobFunction, inputs: Mapping[str, Path], **parameters: Value
    ) -> Mapping[str, Path]:
        nonlocal count
        count += 1
        return run_here(tmp_path / f"job-{count}", function, inputs, parameters)

    return run


@pytest.fixture
def open_scorer() -> Iterator[OpenScorer]:
    """Open models in the runtime; all are closed at the end."""
    opened: list[Scorer] = []

    def open_one(path: Path) -> Scorer:
        settings = WorkerSettings(context_tokens=256)
        opened.append(load_runtime("llamacpp").open_scorer(path, settings))
        return opened[-1]

    yield open_one
    for scorer in opened:
        scorer.close()


@pytest.fixture(scope="session")
def bpe_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of 448 tokens; see `write_tiny_bpe`."""
    return write_tiny_bpe(tmp_path_factory.mktemp("bpe") / "bpe.gguf")
