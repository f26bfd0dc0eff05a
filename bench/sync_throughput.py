"""Syncs a second and their latency at 1,000 devices, against a bare Starlette app.

    python bench/sync_throughput.py [--seconds 4] [--rounds 3] [--json FILE]

Both servers run as a process of their own under uvicorn; rounds are interleaved. The
client shares the machine, so compare ratios, not absolute figures. `unchanged` is the
common sync, where nothing is new and nothing is written; `report` carries one new report,
which is on the disk before the answer.
"""

import argparse
import asyncio
import json
import multiprocessing
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from slmops.control.app import create_app
from slmops.control.auth import hash_token
from slmops.control.plane import Plane
from slmops.control.records import DeviceRecord
from slmops.control.settings import ControlSettings
from slmops.domain.device import DeviceFacts
from slmops.domain.sync import Report, SyncRequest
from slmops.registry.workspace import Workspace
from slmops.wire import codec

DEVICES = 1_000
CONNECTIONS = 32
FACTS = DeviceFacts(memory_mib=512, disk_mib=900, cpu_count=1, architecture="x86_64")


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """What one round saw."""

    per_s: float
    """Answers a second."""
    p50_ms: float
    """Median latency."""
    p99_ms: float
    """99th percentile."""


async def _bare(request: Request) -> Response:
    await request.body()
    return Response(status_code=304)


def _serve(app: Starlette, listener: socket.socket) -> None:
    config = uvicorn.Config(app, log_level="error", access_log=False)
    uvicorn.Server(config).run(sockets=[listener])


def _serve_bare(listener: socket.socket) -> None:
    _serve(Starlette(routes=[Route("/v1/sync", _bare, methods=["POST"])]), listener)


def _serve_control(listener: socket.socket) -> None:
    with tempfile.TemporaryDirectory() as folder:
        settings = ControlSettings(
            workspace=Workspace(root=Path(folder)),
            device_burst=10**9,
            device_rate_per_s=1e9,
            device_news_burst_bytes=10**12,
        )
        app = create_app(settings)
        plane: Plane = app.state.plane
        for index in range(DEVICES):
            name = f"device-{index}"
            plane.store.add_enrolment_token(name, expires_at=1e12)
            record = DeviceRecord(
                id=name, public_key="ab" * 32, enrolled_at=0.0, facts=FACTS
            )
            plane.store.enrol(record, token_hash=name, now=0.0)
            plane.store.open_session(
                name, counter=1, token_hash=hash_token(name), expires_at=1e12
            )
        _serve(app, listener)


def _start(target: Callable[[socket.socket], None]) -> tuple[int, Callable[[], None]]:
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    process = multiprocessing.get_context("fork").Process(
        target=target, args=(listener,), daemon=True
    )
    process.start()

    def stop() -> None:
        process.terminate()
        process.join()
        listener.close()

    return listener.getsockname()[1], stop


def _message(device: str, sequence: int | None) -> bytes:
    reports = (
        ()
        if sequence is None
        else (Report(sequence=sequence, started_at=0, ended_at=1, release=None),)
    )
    body = codec.encode_json(SyncRequest(facts=FACTS, reports=reports))
    head = (
        f"POST /v1/sync HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {device}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def _client(
    port: int, message: Callable[[], bytes], end: float, latencies: list[float]
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while time.perf_counter() < end:
        begun = time.perf_counter()
        writer.write(message())
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 304"), head
        latencies.append(time.perf_counter() - begun)
    writer.close()


async def _load(port: int, message: Callable[[], bytes], seconds: float) -> Load:
    latencies: list[float] = []
    end = time.perf_counter() + seconds
    await asyncio.gather(
        *(_client(port, message, end, latencies) for _ in range(CONNECTIONS))
    )
    cuts = statistics.quantiles(latencies, n=100)
    return Load(
        per_s=len(latencies) / seconds,
        p50_ms=1000 * statistics.median(latencies),
        p99_ms=1000 * cuts[98],
    )


def _messages(with_report: bool) -> Callable[[], bytes]:
    number = 0
    fixed = [_message(f"device-{index}", None) for index in range(DEVICES)]

    def following() -> bytes:
        nonlocal number
        number += 1
        if not with_report:
            return fixed[number % DEVICES]
        return _message(f"device-{number % DEVICES}", 1 + number // DEVICES)

    return following


def _median(rounds: list[Load]) -> Load:
    return Load(
        per_s=statistics.median(one.per_s for one in rounds),
        p50_ms=statistics.median(one.p50_ms for one in rounds),
        p99_ms=statistics.median(one.p99_ms for one in rounds),
    )


def main() -> None:
    """Measure, print one table, write one JSON."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seconds", type=float, default=4.0)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--json", type=Path)
    chosen = options.parse_args()
    bare_port, stop_bare = _start(_serve_bare)
    control_port, stop_control = _start(_serve_control)
    cases = {
        "bare Starlette": (bare_port, _messages(False)),
        "control, unchanged": (control_port, _messages(False)),
        "control, report": (control_port, _messages(True)),
    }
    seen: dict[str, list[Load]] = {name: [] for name in cases}
    for port, message in cases.values():
        asyncio.run(_load(port, message, 0.5))
    for _ in range(chosen.rounds):
        for name, (port, message) in cases.items():
            seen[name].append(asyncio.run(_load(port, message, chosen.seconds)))
    stop_bare()
    stop_control()
    results = {name: _median(rounds) for name, rounds in seen.items()}
    bare = results["bare Starlette"].per_s
    print(f"{'':20} {'sync/s':>8} {'ratio':>7} {'p50 ms':>8} {'p99 ms':>8}")
    for name, load in results.items():
        print(
            f"{name:20} {load.per_s:8.0f} {load.per_s / bare:7.2f}"
            f" {load.p50_ms:8.1f} {load.p99_ms:8.1f}"
        )
    if chosen.json is not None:
        chosen.json.write_text(
            json.dumps(codec.to_plain(results), indent=2), encoding="utf-8"
        )


if __name__ == "__main__":
    main()
