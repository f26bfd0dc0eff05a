"""The type of the cache and the draft reach llama.cpp, in the server and the scorer."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slmops.domain.errors import InvalidInputError
from slmops.domain.runtime_settings import KV_CACHE_BYTES
from slmops.runtimes.address import open_client
from slmops.runtimes.base import WorkerSettings, load_runtime
from slmops.runtimes.worker import start_worker
from slmops.testing.tiny_gguf import write_tiny_llama

pytestmark = pytest.mark.slow

TOKENS = [1, *range(40, 140)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    # Heads of 32: a block of a cache in few bits.
    return write_tiny_llama(folder / "tiny.gguf", width=128, feed_forward=256)


def completed(artefact: Path, settings: WorkerSettings) -> dict[str, Any]:
    body = {"prompt": "one two", "max_tokens": 24, "temperature": 0, "ignore_eos": True}
    with (
        start_worker("llamacpp", artefact, settings) as worker,
        open_client(worker.address) as client,
    ):
        answer = client.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


@pytest.mark.parametrize("kv_cache", ["k-q8_0", "q4_0"])
def test_a_worker_answers_with_a_cache_of_few_bits(tiny: Path, kv_cache: str) -> None:
    answer = completed(tiny, WorkerSettings(context_tokens=256, kv_cache=kv_cache))
    assert answer["usage"]["completion_tokens"] == 24


def test_fewer_bits_in_the_cache_move_the_scores_further(tiny: Path) -> None:
    def scores(kv_cache: str) -> Any:  # noqa: ANN401 - an array
        settings = WorkerSettings(context_tokens=128, kv_cache=kv_cache)
        scorer = load_runtime("llamacpp").open_scorer(tiny, settings)
        found = scorer.logits(TOKENS)
        scorer.close()
        return found

    exact = scores("f16")
    off = {
        kind: float(np.abs(scores(kind) - exact).mean())
        for kind in KV_CACHE_BYTES
        if kind != "f16"
    }
    assert 0 < off["k-q8_0"] < off["k-q4_0"]
    assert 0 < off["q8_0"] < off["q4_0"]


def test_a_draft_that_is_the_model_itself_is_accepted(tiny: Path) -> None:
    settings = WorkerSettings(context_tokens=256, draft=str(tiny), draft_tokens=4)
    timings = completed(tiny, settings)["timings"]
    assert timings["draft_n"] > 0
    assert timings["draft_n_accepted"] > timings["draft_n"] / 2


def test_a_draft_with_another_vocabulary_is_refused(tiny: Path, tmp_path: Path) -> None:
    other = write_tiny_llama(tmp_path / "other.gguf", width=128, vocabulary=900)
    settings = WorkerSettings(context_tokens=256, draft=str(other))
    with pytest.raises(InvalidInputError):
        completed(tiny, settings)


def test_a_draft_that_is_no_model_is_refused(tiny: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(b"no model")
    with pytest.raises(InvalidInputError, match=r"other\.gguf"):
        completed(tiny, WorkerSettings(context_tokens=256, draft=str(other)))
