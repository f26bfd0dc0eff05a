"""Start-up failures are told apart, with real child processes."""

import ctypes
import json
import math
import time
from pathlib import Path

import pytest

from slmops.domain.errors import (
    InvalidInputError,
    NotFoundError,
    OverBudgetError,
    UnavailableError,
)
from slmops.runtimes.address import open_client
from slmops.runtimes.base import WorkerSettings
from slmops.runtimes.echo_answer import Question, answer_tokens, literal_of, token_bytes
from slmops.runtimes.llamacpp_scorer import check_defaults
from slmops.runtimes.worker import start_worker


def echo(folder: Path, **fields: object) -> Path:
    path = folder / "model.echo"
    path.write_text(json.dumps({"echo": 1, **fields}))
    return path


def test_a_missing_artefact_or_runtime_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="does not exist"):
        start_worker("echo", tmp_path / "none", WorkerSettings())
    with pytest.raises(NotFoundError, match="unknown"):
        start_worker("nope", echo(tmp_path), WorkerSettings())


def test_a_refused_artefact_is_invalid_and_says_why(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"model\.echo: refused"):
        start_worker("echo", echo(tmp_path, refuse=True), WorkerSettings())


def test_a_crash_while_loading_is_invalid_and_names_the_signal(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="SIGABRT"):
        start_worker("echo", echo(tmp_path, crash_at_start=True), WorkerSettings())


def test_a_child_that_is_not_ready_in_time_is_killed(tmp_path: Path) -> None:
    begin = time.monotonic()
    with pytest.raises(UnavailableError, match=r"not ready after 0\.4 s"):
        start_worker(
            "echo",
            echo(tmp_path, start_delay_ms=60_000),
            WorkerSettings(start_timeout_s=0.4),
        )
    assert time.monotonic() - begin < 5


def test_a_child_over_its_memory_limit_is_over_budget(tmp_path: Path) -> None:
    with pytest.raises(OverBudgetError, match="limit of 64 MiB"):
        start_worker(
            "echo", echo(tmp_path, hold_mib=512), WorkerSettings(memory_limit_mib=64)
        )


def test_the_peak_counts_from_its_reset(tmp_path: Path) -> None:
    with start_worker("echo", echo(tmp_path), WorkerSettings()) as worker:
        if not worker.reset_peak():
            pytest.skip("this system does not reset the peak")
        memory = worker.memory()
        assert memory.peak_rss_mib == pytest.approx(memory.rss_mib, abs=4)


def test_echo_tokens_join_to_the_text_and_agree_with_a_forced_answer() -> None:
    question = Question(prompt="p", said="Hi 🙂", forced="You said: Hi 🙂")
    tokens = answer_tokens(question, None, -0.1)
    assert b"".join(token.raw for token in tokens).decode() == "You said: Hi 🙂"
    assert {token.logprob for token in tokens} == {-0.1}
    strange = Question(prompt="p", said="Hi", forced="Zebra")
    assert answer_tokens(strange, None, -0.1)[0].logprob < -5
    assert literal_of('root ::= "a\\"b"') == 'a"b'
    assert b"".join(token_bytes("naïve\n\t🙂 12")).decode() == "naïve\n\t🙂 12"


def test_a_structure_with_other_defaults_is_refused() -> None:
    class Drifted(ctypes.Structure):
        _fields_ = (("n_ctx", ctypes.c_int32),)

    check_defaults(Drifted(n_ctx=512), {"n_ctx": 512})
    with pytest.raises(UnavailableError, match="n_ctx must default to 512, got 7"):
        check_defaults(Drifted(n_ctx=7), {"n_ctx": 512})


@pytest.mark.slow
def test_scorer_is_prefix_stable_sane_and_agrees_with_the_server(
    smollm2_gguf: Path,
) -> None:
    import numpy as np

    from slmops.runtimes.base import load_runtime

    settings = WorkerSettings(context_tokens=256)
    text = (
        "The history of the city begins with a small settlement on the river. Traders"
        " came from the north every spring, and over the years the market grew into a"
        " town with two schools, a hospital and a railway station."
    )
    scorer = load_runtime("llamacpp").open_scorer(smollm2_gguf, settings)
    try:
        tokens = scorer.tokenize(text)
        logits = scorer.logits(tokens)
        assert np.array_equal(scorer.logits(tokens[:9]), logits[:9])
        with pytest.raises(InvalidInputError):
            scorer.logits([])
        with pytest.raises(InvalidInputError):
            scorer.logits([scorer.vocabulary])
    finally:
        scorer.close()
    logprobs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    rows = range(len(tokens) - 1)
    mean = sum(float(logprobs[row, tokens[row + 1]]) for row in rows) / len(rows)
    assert 5 < math.exp(-mean) < 60
    with start_worker("llamacpp", smollm2_gguf, settings) as worker:
        body = {"prompt": tokens, "n_predict": 1, "temperature": 0, "n_probs": 10}
        with open_client(worker.address, timeout_s=60) as client:
            answer = client.post("/completion", json=body).json()
    listed = answer["completion_probabilities"][0]["top_logprobs"]
    gaps = [item["logprob"] - float(logprobs[-1, item["id"]]) for item in listed]
    # The server normalizes in float32, off by the same for all; the logits agree.
    assert max(gaps) - min(gaps) < 1e-4
    assert max(abs(gap) for gap in gaps) < 3e-3
