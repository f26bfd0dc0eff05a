"""Log-probabilities of the older completions route, read by the real `openai` client."""

import math
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from slmops.runtimes.base import WorkerSettings
from slmops.runtimes.worker import start_worker
from slmops.testing.endpoint_in_process import local_endpoint
from slmops.testing.stage import echo_artefact

PROMPT = "one two three"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    artefact: Path = tmp_path_factory.mktemp("echo") / "model.json"
    artefact.write_bytes(echo_artefact())
    with (
        start_worker("echo", artefact, WorkerSettings(context_tokens=256)) as worker,
        local_endpoint() as endpoint,
        openai.OpenAI(
            base_url=f"{endpoint.url}/v1", api_key="local", max_retries=0
        ) as client,
    ):
        endpoint.serve(worker.address)
        yield client


@pytest.mark.parametrize("listed", [0, 1, 3])
def test_a_whole_answer_has_parallel_lists(client: openai.OpenAI, listed: int) -> None:
    choice = client.completions.create(
        model="sample", prompt=PROMPT, max_tokens=5, logprobs=listed
    ).choices[0]
    found = choice.logprobs
    assert found is not None
    assert found.tokens
    assert found.token_logprobs
    assert found.text_offset
    assert "".join(found.tokens) == choice.text
    assert all(logprob <= 0 for logprob in found.token_logprobs)
    for token, offset in zip(found.tokens, found.text_offset, strict=True):
        assert choice.text[offset : offset + len(token)] == token
    if not listed:
        assert found.top_logprobs is None
        return
    assert found.top_logprobs is not None
    for token, logprob, top in zip(
        found.tokens, found.token_logprobs, found.top_logprobs, strict=True
    ):
        assert listed <= len(top) <= listed + 1
        assert math.isclose(top[token], logprob)


def test_a_stream_has_the_same_lists_in_pieces(client: openai.OpenAI) -> None:
    whole = client.completions.create(
        model="sample", prompt=PROMPT, max_tokens=5, logprobs=2
    ).choices[0]
    pieces = [
        chunk.choices[0]
        for chunk in client.completions.create(
            model="sample", prompt=PROMPT, max_tokens=5, logprobs=2, stream=True
        )
    ]
    parts = [piece.logprobs for piece in pieces if piece.logprobs is not None]
    assert whole.logprobs is not None
    assert len(parts) > 1
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        joined = [item for part in parts for item in getattr(part, name)]
        assert joined == getattr(whole.logprobs, name)


def test_who_did_not_ask_gets_none(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="sample", prompt=PROMPT, max_tokens=2)
    assert answer.choices[0].logprobs is None
