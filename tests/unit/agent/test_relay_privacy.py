"""What the endpoint keeps between itself and the model's process."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from slmops.runtimes.base import WorkerSettings
from slmops.runtimes.worker import Worker, start_worker
from slmops.testing.endpoint_in_process import LocalEndpoint, local_endpoint
from slmops.testing.raw_server import RawServer, answer, head, raw
from slmops.testing.stage import echo_artefact

CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[LocalEndpoint]:
    with local_endpoint() as running:
        yield running


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    artefact: Path = tmp_path_factory.mktemp("echo") / "model.json"
    artefact.write_bytes(echo_artefact())
    settings = WorkerSettings(context_tokens=64)
    with start_worker("echo", artefact, settings) as worker:
        yield worker


@pytest.mark.parametrize("stream", [False, True])
def test_the_endpoint_answers_without_a_key_and_the_process_behind_it_does_not(
    endpoint: LocalEndpoint, worker: Worker, stream: bool
) -> None:
    body = {**BODY, "stream": stream}
    endpoint.serve(worker.address)
    answered = httpx.post(endpoint.url + CHAT, json=body, timeout=10)
    assert answered.status_code == 200
    assert "choices" in answered.text
    assert worker.api_key
    assert worker.api_key not in answered.text + str(answered.headers)
    past_it = httpx.post(worker.url + CHAT, json=body, timeout=10)
    assert past_it.status_code == 401


def test_a_process_that_refuses_the_agent_s_key_is_a_failure_of_ours_not_of_the_client(
    endpoint: LocalEndpoint, worker: Worker
) -> None:
    endpoint.serve(worker.url)
    endpoint.reports()
    answered = httpx.post(endpoint.url + CHAT, json=BODY, timeout=10)
    assert answered.status_code == 503
    (report,) = endpoint.reports()
    assert report.failures == 1


USAGE = {
    "prompt_tokens": 9,
    "completion_tokens": 2,
    "total_tokens": 11,
    "prompt_tokens_details": {"cached_tokens": 7},
}


def test_nobody_learns_how_much_of_a_prompt_was_cached_for_somebody_else(
    endpoint: LocalEndpoint,
) -> None:
    message = {"message": {"role": "assistant", "content": "Hello"}, "index": 0}
    tree = {"choices": [message], "usage": USAGE, "timings": {"cache_n": 7}}
    chunk = {"choices": [], "usage": USAGE, "timings": {"cache_n": 7}}
    last = b"data: " + json.dumps(chunk).encode() + b"\n\ndata: [DONE]\n\n"
    streamed = {**BODY, "stream": True, "stream_options": {"include_usage": True}}
    for reply, body in (
        (answer(200, json.dumps(tree).encode()), BODY),
        (raw(head(kind="text/event-stream") + last), streamed),
    ):
        with RawServer(replies=[reply]) as runtime:
            endpoint.serve(runtime.url)
            answered = httpx.post(endpoint.url + CHAT, json=body, timeout=10)
        assert '"total_tokens":11' in answered.text.replace(" ", "")
        assert "cache" not in answered.text
        assert "details" not in answered.text
