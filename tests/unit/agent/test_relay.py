"""The endpoint in front of runtimes that break, lie, hang and go, over real sockets."""

import json
import socket
import threading
import time
from collections.abc import Iterator

import httpx
import pytest

from slmops.agent.endpoint import EndpointLimits
from slmops.testing.endpoint_in_process import LocalEndpoint, local_endpoint
from slmops.testing.raw_server import (
    RawServer,
    Received,
    Reply,
    answer,
    drip,
    head,
    raw,
    silent,
)
from slmops.testing.stage import wait_until

CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "Hi"}]}
SSE = "text/event-stream"


def completion(text: str = "Hello", **other: object) -> dict[str, object]:
    return {
        "id": "x",
        "object": "chat.completion",
        "model": "/secret/path.gguf",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8},
        "timings": {"prompt_ms": 120.0, "predicted_per_second": 40.0},
        **other,
    }


def whole(tree: object, status: int = 200) -> Reply:
    return answer(status, json.dumps(tree).encode())


def event(tree: object) -> bytes:
    return b"data: " + json.dumps(tree).encode() + b"\n\n"


def piece(text: str) -> bytes:
    return event({"model": "m", "choices": [{"index": 0, "delta": {"content": text}}]})


USAGE = event(
    {
        "choices": [],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
        "timings": {"predicted_per_second": 30.0},
    }
)
DONE = b"data: [DONE]\n\n"


@pytest.fixture
def runtime() -> Iterator[RawServer]:
    with RawServer(replies=[whole(completion())]) as server:
        yield server


@pytest.fixture(scope="module")
def running() -> Iterator[LocalEndpoint]:
    with local_endpoint(EndpointLimits(answer_s=0.5, body_s=0.5)) as running:
        yield running


@pytest.fixture
def endpoint(running: LocalEndpoint, runtime: RawServer) -> LocalEndpoint:
    running.serve(runtime.url)
    running.reports()
    return running


def ask(endpoint: LocalEndpoint, path: str = CHAT, **more: object) -> httpx.Response:
    return httpx.post(endpoint.url + path, json={**BODY, **more}, timeout=10)


def is_openai_error(answer: httpx.Response, status: int) -> bool:
    error = answer.json()["error"]
    return answer.status_code == status and set(error) == {
        *("message", "type", "param", "code")
    }


def events_of(answer: httpx.Response) -> list[str]:
    lines = answer.text.split("\n\n")
    assert lines[-1] == ""
    return [line.removeprefix("data: ") for line in lines[:-1]]


def test_an_answer_carries_the_release_s_name_and_no_runtime_s_figures(
    endpoint: LocalEndpoint,
) -> None:
    tree = ask(endpoint).json()
    assert tree["model"] == "sample-1"
    assert "timings" not in tree
    assert tree["usage"]["completion_tokens"] == 5
    (report,) = endpoint.reports()
    assert (report.requests, report.failures, report.output_tokens) == (1, 0, 5)
    assert sum(report.first_token_ms) == 1
    assert sum(report.decode_tokens_per_s) == 1


def test_a_stream_ends_with_done_and_hides_usage_from_those_who_did_not_ask(
    endpoint: LocalEndpoint, runtime: RawServer
) -> None:
    stream = raw(head(kind=SSE) + piece("Hel") + piece("lo") + USAGE + DONE)
    runtime.replies = [stream]
    plain = events_of(ask(endpoint, stream=True))
    asking = events_of(
        ask(endpoint, stream=True, stream_options={"include_usage": True})
    )
    assert [json.loads(each)["model"] for each in plain[:-1]] == ["sample-1"] * 2
    assert plain[-1] == asking[-1] == "[DONE]"
    assert json.loads(asking[-2])["usage"]["completion_tokens"] == 2
    assert "usage" not in "".join(plain)
    assert "timings" not in "".join(plain + asking)


def test_events_cut_anywhere_by_the_network_are_put_together(
    endpoint: LocalEndpoint, runtime: RawServer
) -> None:
    content = piece("grün") + piece("🙂") + USAGE + DONE

    def byte_by_byte(connection: socket.socket, _: Received) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(head(kind=SSE))
        for byte in content:
            connection.sendall(bytes([byte]))
            time.sleep(0.0002)

    runtime.replies = [byte_by_byte]
    events = events_of(ask(endpoint, stream=True))
    texts = [json.loads(each)["choices"][0]["delta"]["content"] for each in events[:-1]]
    assert texts == ["grün", "🙂"]


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


def test_odd_but_harmless_fields_do_not_break_an_answer(
    endpoint: LocalEndpoint, runtime: RawServer
) -> None:
    runtime.replies = [
        whole(completion(timings="fast", usage="much", choices=3, __verbose={"a": 1})),
        raw(
            head(kind=SSE)
            + b": a comment\n\n\n\nid: 4\n\n"
            + event({"choices": [3], "usage": {"completion_tokens": -4}})
            + event({"choices": "none", "timings": {"predicted_per_second": "x"}})
            + DONE
        ),
    ]
    tree = ask(endpoint).json()
    assert "__verbose" not in tree
    assert events_of(ask(endpoint, stream=True))[-1] == "[DONE]"
    (report,) = endpoint.reports()
    assert (report.requests, report.failures, report.output_tokens) == (2, 0, 0)


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


def test_a_client_that_leaves_ends_the_runtime_s_work_and_is_no_failure(
    endpoint: LocalEndpoint, runtime: RawServer
) -> None:
    left = threading.Event()

    def generate(connection: socket.socket, _: Received) -> None:
        connection.sendall(head(kind=SSE))
        try:
            while True:
                connection.sendall(piece("word "))
                time.sleep(0.01)
        except OSError:
            left.set()

    runtime.replies = [generate]
    body = {**BODY, "stream": True}
    with httpx.stream("POST", endpoint.url + CHAT, json=body) as answer:
        next(answer.iter_bytes())
    assert left.wait(5)
    assert endpoint.reports() == ()


def test_a_client_that_leaves_before_the_answer_ends_the_work_too(
    endpoint: LocalEndpoint, runtime: RawServer
) -> None:
    left = threading.Event()

    def think(connection: socket.socket, _: Received) -> None:
        if connection.recv(1) == b"":
            left.set()

    runtime.replies = [think]
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(endpoint.url + CHAT, json=BODY, timeout=0.1)
    assert left.wait(5)


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


def test_connections_to_the_runtime_are_never_used_twice(
    endpoint: LocalEndpoint, runtime: RawServer
) -> None:
    for _ in range(3):
        ask(endpoint)
    assert len(runtime.received) == 3  # this server takes one request a connection


def test_too_many_requests_at_once_are_refused_in_openais_form(
    runtime: RawServer,
) -> None:
    release = threading.Event()

    def slow(connection: socket.socket, request: Received) -> None:
        release.wait(5)
        whole(completion())(connection, request)

    runtime.replies = [slow]
    with local_endpoint(EndpointLimits(in_flight=2)) as endpoint:
        endpoint.serve(runtime.url)
        statuses: list[int] = []
        threads = [
            threading.Thread(target=lambda: statuses.append(ask(endpoint).status_code))
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(runtime.received) == 2, "two requests", timeout_s=5)
        assert is_openai_error(ask(endpoint), 429)
        release.set()
        for thread in threads:
            thread.join(5)
        assert statuses == [200, 200]


def test_a_body_that_does_not_arrive_is_refused(endpoint: LocalEndpoint) -> None:
    host, _, port = endpoint.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=5) as client:
        client.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
        )
        assert client.recv(65_536).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize("length", [b"9" * 20, b"9" * 5000, b"-1", b"x"])
def test_a_nonsensical_length_is_refused_and_the_endpoint_stays(
    endpoint: LocalEndpoint, length: bytes
) -> None:
    host, _, port = endpoint.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=5) as client:
        client.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            b"Content-Type: application/json\r\nContent-Length: "
            + length
            + b"\r\n\r\n{}"
        )
        assert client.recv(65_536)[:10] in (b"HTTP/1.1 4", b"")
    assert ask(endpoint).status_code == 200
