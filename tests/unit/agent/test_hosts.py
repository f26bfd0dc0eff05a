"""Host names of requests, over real sockets."""

import socket
from collections.abc import Iterator

import httpx
import pytest

from slmops.testing.endpoint_in_process import LocalEndpoint, local_endpoint


@pytest.fixture(scope="module")
def endpoint() -> Iterator[LocalEndpoint]:
    allowed = ("127.0.0.1", "localhost", "::1", "Till.Local")
    with local_endpoint(allowed_hosts=allowed) as running:
        yield running


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.0.0.1:8765", "localhost", "LocalHost:80", "till.local"),
        *("[::1]", "[::1]:8765", "[0:0:0:0:0:0:0:1]:8765"),
    ],
)
def test_its_own_names_are_answered_with_and_without_port(
    endpoint: LocalEndpoint, host: str
) -> None:
    answer = httpx.get(f"{endpoint.url}/v1/models", headers={"Host": host})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:8765", "127.0.0.1.evil.example", "127.0.0.2"),
        *("[::2]", "::1", "[::1", "[::1]x", "[::1]:", "[localhost]", "[127.0.0.1]"),
        *("localhost:80:80", "localhost:x", "localhost@evil", "", "*"),
    ],
)
def test_other_names_are_refused_in_openais_form(
    endpoint: LocalEndpoint, host: str
) -> None:
    for path in ("/v1/models", "/healthz", "/v1/chat/completions"):
        answer = httpx.get(f"{endpoint.url}{path}", headers={"Host": host})
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["code"] == "host_not_allowed"


def test_two_host_headers_are_none(endpoint: LocalEndpoint) -> None:
    place = endpoint.url.removeprefix("http://").rpartition(":")
    with socket.create_connection((place[0], int(place[2])), timeout=5) as connection:
        connection.sendall(
            b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n"
            b"Connection: close\r\n\r\n"
        )
        assert connection.recv(64).startswith(b"HTTP/1.1 400")


def test_a_star_answers_to_everybody() -> None:
    with local_endpoint(allowed_hosts=("*",)) as endpoint:
        for host in ("evil.example", "::1"):
            answer = httpx.get(f"{endpoint.url}/v1/models", headers={"Host": host})
            assert answer.status_code == 200
