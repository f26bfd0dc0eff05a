"""A control plane process fed with what no honest client sends: refused, and up."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from slmops.testing.live_control import LiveControl, live_control
from slmops.testing.malformed_http import MALFORMED, send_malformed
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


@pytest.mark.parametrize("case", MALFORMED)
def test_no_bytes_on_the_socket_bring_it_down(live: LiveControl, case: str) -> None:
    before = everything(live)
    status = send_malformed(live.control.url, case)
    assert status is None or 400 <= status < 500
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
