"""An agent's endpoint fed with what no honest client sends: refused, and serving."""

from collections.abc import Iterator

import httpx
import pytest

from slmops.testing.malformed_http import MALFORMED, send_malformed
from slmops.testing.stage import Stage, echo_artefact, stage, wait_until

pytestmark = pytest.mark.slow

BODIES: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"{'model': 'sample'}",
    "null": b"null",
    "a number": b"1e999999",
    "a list for ever": b"[" * 500_000,
    "objects for ever": b'{"messages":' * 80_000,
    "no UTF-8": b'{"prompt": "\xff"}',
    "UTF-16": '{"prompt": "x"}'.encode("utf-16"),
    "a lone surrogate": b'{"model": "sample", "prompt": "\\ud800"}',
    "zero bytes": bytes(1000),
    "no messages": b'{"model": "sample"}',
    "messages of numbers": b'{"model": "sample", "messages": [1, 2]}',
    "messages without end": b'{"model": "sample", "messages": ['
    + b'{"role": "user", "content": "x"},' * 20_000,
    "a prompt of objects": b'{"model": "sample", "prompt": [{"a": 1}]}',
    "too large": b'{"model": "sample", "prompt": "' + b"x" * 2_000_000 + b'"}',
}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with stage(tmp_path_factory.mktemp("bad")) as built:
        yield serving(built)


def serving(built: Stage) -> str:
    built.publish(1, echo_artefact())
    built.serve()
    state = built.enrol("till-1")
    built.start_agent(state)
    built.roll_out("sample-1")
    wait_until(lambda: built.serving(state) == "sample-1", "sample-1")
    return built.endpoint(state)


def answers(url: str) -> bool:
    body = {"model": "sample", "messages": [{"role": "user", "content": "Hello?"}]}
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=20)
    return answer.status_code == 200 and bool(answer.json()["choices"])


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_no_body_stops_it_from_answering(url: str, path: str) -> None:
    for name, body in BODIES.items():
        headers = {"Content-Type": "application/json"}
        answer = httpx.post(url + path, content=body, headers=headers, timeout=20)
        assert 400 <= answer.status_code < 500, (name, answer.text[:200])
        assert answer.json()["error"]["message"], name
    assert answers(url)


@pytest.mark.parametrize("case", MALFORMED)
def test_no_bytes_on_the_socket_stop_it_from_answering(url: str, case: str) -> None:
    status = send_malformed(url, case)
    assert status is None or 400 <= status < 500
    assert answers(url)
