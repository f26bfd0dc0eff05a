"""Clients that leave, stall, or are too many, over real sockets."""

import socket
import threading
import time

import httpx
import pytest

from slmops.agent.endpoint import EndpointLimits
from slmops.testing.endpoint_in_process import LocalEndpoint, local_endpoint
from slmops.testing.raw_server import (
    RawServer,
    Received,
    head,
)
from slmops.testing.runtime_replies import (
    BODY,
    CHAT,
    SSE,
    ask,
    completion,
    is_openai_error,
    piece,
    whole,
)
from slmops.testing.stage import wait_until


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
