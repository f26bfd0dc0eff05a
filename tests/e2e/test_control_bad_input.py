"""A control plane process fed with what no honest client sends: refused, and up."""

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from slmops.testing.live_control import LiveControl, live_control
from slmops.wire import codec

pytestmark = pytest.mark.slow

_MIB = 1 << 20
_LARGEST_GROWTH_MIB = 64


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveControl]:
    with live_control(tmp_path_factory.mktemp("live"), releases=1) as running:
        yield running


BODIES: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"{'a': 1}",
    "half a document": b'{"token": "x", "facts": {"memory_mib": 1',
    "null": b"null",
    "a list": b"[]",
    "a text": b'"x"',
    "a number beyond all": b"1e999999",
    "an integer of a megabyte": b"[" + b"9" * (_MIB - 10) + b"]",
    "nested for ever": b"[" * 500_000,
    "objects for ever": b'{"facts":' * 100_000,
    "no UTF-8": b'{"token": "\xff\xfe"}',
    "a lone surrogate": b'{"token": "\\ud800"}',
    "zero bytes": bytes(1000),
    "UTF-16": '{"token": "x"}'.encode("utf-16"),
    "keys of a thousand": codec.encode_json({str(n): n for n in range(1000)}),
    "a megabyte too much": b" " * (_MIB + 1),
}

POSTS = (
    "/v1/enrol",
    "/v1/session",
    "/v1/sync",
    "/v1/rollouts",
    "/v1/rollouts/r-1/abort",
)


def test_no_body_brings_it_down_or_leaves_a_trace(live: LiveControl) -> None:
    device = live.enrol("till-1")
    assert device.sync(live.http) == 304
    before = (everything(live), resident_mib(live))
    for body in BODIES.values():
        for path in POSTS:
            headers = device.headers() if path == "/v1/sync" else {}
            answer = live.http.post(path, content=body, headers=headers)
            assert answer.status_code in {403, 422, 503}, (path, answer.text)
            assert answer.json()["error"]["message"]
    assert everything(live) == before[0]
    growth = resident_mib(live) - before[1]
    assert growth < _LARGEST_GROWTH_MIB, f"{growth:.0f} MiB more"
    assert device.sync(live.http) in {304, 503}


RAW: dict[str, bytes] = {
    "nothing at all": b"",
    "random": bytes(range(256)) * 16,
    "TLS": bytes.fromhex("16030100c8010000c40303") + bytes(200),
    "no method": b"\r\n\r\n\r\n",
    "half a request": b"POST /v1/sync HTTP/1.1\r\nHost: a\r\nContent-Length: 50\r\n\r\n{",
    "header without end": b"GET / HTTP/1.1\r\nX: " + b"a" * 200_000,
    "two lengths": b"POST /v1/enrol HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n"
    b"Content-Length: 3\r\n\r\n{}",
    "length and chunks": b"POST /v1/enrol HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "negative length": b"POST /v1/enrol HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
    "chunk beyond all": b"POST /v1/enrol HTTP/1.1\r\nHost: a\r\n"
    b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
    "another protocol": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
}


@pytest.mark.parametrize("case", RAW)
def test_no_bytes_on_the_socket_bring_it_down(live: LiveControl, case: str) -> None:
    before = everything(live)
    with socket.create_connection(("127.0.0.1", live.control.port), timeout=5) as raw:
        try:
            raw.sendall(RAW[case])
            raw.shutdown(socket.SHUT_WR)
            answer = raw.recv(65_536)
        except OSError:
            answer = b""
    assert not answer or answer.split(b" ")[1][:1] in {b"4", b"3"}, answer[:100]
    assert live.http.get("/healthz").json()["status"] == "ok"
    assert everything(live) == before


def running(live: LiveControl) -> "subprocess.Popen[bytes]":
    assert live.control.process is not None
    assert live.control.process.poll() is None
    return live.control.process


def resident_mib(live: LiveControl) -> float:
    pages = Path(f"/proc/{running(live).pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE") / _MIB


def everything(live: LiveControl) -> list[object]:
    """Return all it tells of its state, but not when it last saw a device."""
    running(live)
    devices = live.http.get("/v1/devices").json()["devices"]
    for device in devices:
        device.pop("seen_at")
    parts = ("rollouts", "audit", "releases")
    return [devices, *(live.http.get(f"/v1/{part}").json() for part in parts)]
