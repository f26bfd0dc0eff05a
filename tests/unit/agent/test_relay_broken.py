"""The endpoint in front of runtimes that break, lie, hang and go, over real sockets."""

import json
import socket
import threading
import time

import pytest

from slmops.testing.endpoint_in_process import LocalEndpoint
from slmops.testing.raw_server import (
    RawServer,
    Received,
    answer,
    drip,
    head,
    raw,
    silent,
)
from slmops.testing.runtime_replies import (
    SSE,
    ask,
    completion,
    event,
    events_of,
    is_openai_error,
    piece,
    whole,
)

BROKEN = {
    "closed": raw(b""),
    "reset in the head": raw(b"HTTP/1.1 200"),
    "no http": raw(b"\x00\x01\x02\x03" * 100),
    "no json": answer(200, b"<html>"),
    "a list": answer(200, b"[]"),
    "cut": raw(head(200, length=10_000) + b'{"a": 1'),
    "500": whole({"error": {"message": "ggml_abort"}}, 500),
    "500 without words": answer(500, b"", kind="text/plain"),
    "silence": silent,
    "huge": drip(head(200), b" " * 1_000_000, pause_s=0),
    "not utf-8": answer(200, b'{"a": "\xff"}'),
}


BEFORE_A_STREAM = (
    *("closed", "reset in the head", "no http", "500", "500 without words", "silence"),
)
"""The others are seen only after a stream's head was sent."""


@pytest.mark.parametrize(
    ("name", "stream"),
    [(name, False) for name in BROKEN] + [(name, True) for name in BEFORE_A_STREAM],
)
def test_a_broken_runtime_is_a_503_in_openais_form_and_counts_as_failure(
    endpoint: LocalEndpoint, runtime: RawServer, name: str, stream: bool
) -> None:
    runtime.replies = [BROKEN[name], whole(completion())]
    answer = ask(endpoint, stream=stream)
    assert is_openai_error(answer, 503)
    assert answer.headers["retry-after"] == "1"
    assert answer.json()["error"]["code"] == "model_unavailable"
    (report,) = endpoint.reports()
    assert (report.release, report.requests, report.failures) == ("sample-1", 1, 1)
    assert ask(endpoint).status_code == 200


BROKEN_LATER = {
    "ends early": piece("Hel"),
    "error event": piece("Hel") + event({"error": {"message": "crash"}}),
    "old error event": piece("Hel") + b"error: crash\n\n",
    "no json": piece("Hel") + b"data: {\n\n",
    "no object": piece("Hel") + b"data: 3\n\n",
    "no event at all": b"",
}


@pytest.mark.parametrize("content", BROKEN_LATER.values(), ids=BROKEN_LATER)
def test_a_stream_that_breaks_off_says_so_inside_and_counts_as_failure(
    endpoint: LocalEndpoint, runtime: RawServer, content: bytes
) -> None:
    runtime.replies = [raw(head(kind=SSE) + content)]
    answer = ask(endpoint, stream=True)
    assert answer.status_code == 200
    events = events_of(answer)
    assert json.loads(events[-1])["error"]["code"] == "model_unavailable"
    assert "[DONE]" not in events
    (report,) = endpoint.reports()
    assert (report.requests, report.failures) == (1, 1)


def test_a_stream_that_hangs_is_ended_with_an_error(
    endpoint: LocalEndpoint, runtime: RawServer
) -> None:
    def hang(connection: socket.socket, _: Received) -> None:
        connection.sendall(head(kind=SSE) + piece("Hel"))
        connection.recv(1)

    runtime.replies = [hang]
    begin = time.monotonic()
    events = events_of(ask(endpoint, stream=True))
    assert endpoint.gateway.current is not None
    assert endpoint.gateway.current.suspected
    assert json.loads(events[-1])["error"]["code"] == "model_unavailable"
    assert time.monotonic() - begin < 3


def test_only_a_model_that_lets_an_answer_time_out_is_suspected_to_hang(
    endpoint: LocalEndpoint, runtime: RawServer
) -> None:
    upstream = endpoint.gateway.current
    assert upstream is not None
    runtime.replies = [whole(completion()), BROKEN["closed"], BROKEN["cut"]]
    suspicions = []
    for _ in range(3):
        ask(endpoint)
        suspicions.append(upstream.suspected)
    assert not any(suspicions)
    assert time.monotonic() - upstream.heard_at < 5
    for stream in (False, True):
        runtime.replies = [silent]
        assert ask(endpoint, stream=stream).status_code == 503
        assert upstream.suspected
        upstream.suspected = False


def test_an_event_without_end_does_not_fill_the_memory(
    endpoint: LocalEndpoint, runtime: RawServer
) -> None:
    runtime.replies = [drip(head(kind=SSE) + b"data: ", b"x" * 1_000_000, pause_s=0)]
    events = events_of(ask(endpoint, stream=True))
    assert json.loads(events[-1])["error"]["code"] == "model_unavailable"


@pytest.mark.parametrize("status", [400, 404, 422])
def test_a_runtime_s_refusal_is_passed_on_and_is_no_failure(
    endpoint: LocalEndpoint, runtime: RawServer, status: int
) -> None:
    runtime.replies = [whole({"error": {"message": "bad grammar"}}, status)]
    for stream in (False, True):
        answer = ask(endpoint, stream=stream)
        assert is_openai_error(answer, 400)
        assert "bad grammar" in answer.json()["error"]["message"]
    assert endpoint.reports() == ()


def test_an_old_model_s_failure_does_not_count_against_the_new_one(
    endpoint: LocalEndpoint, runtime: RawServer
) -> None:
    asked, go = threading.Event(), threading.Event()

    def die_later(_connection: socket.socket, _: Received) -> None:
        asked.set()
        go.wait(5)

    runtime.replies = [die_later]
    statuses = []
    thread = threading.Thread(target=lambda: statuses.append(ask(endpoint).status_code))
    with RawServer(replies=[whole(completion())]) as newer:
        thread.start()
        assert asked.wait(5)
        endpoint.serve(newer.url, release="sample-2")
        go.set()
        thread.join(5)
        assert ask(endpoint).status_code == 200
    assert statuses == [503]
    failures = {report.release: report.failures for report in endpoint.reports()}
    assert failures == {"sample-1": 1, "sample-2": 0}
