"""What the endpoint keeps between itself and the model's process."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from slmops.runtimes.base import WorkerSettings
from slmops.runtimes.worker import Worker, start_worker
from slmops.testing.endpoint_in_process import LocalEndpoint, local_endpoint
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
