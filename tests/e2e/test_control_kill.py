"""The control plane as a real process: killed in mid-rollout, ended by SIGTERM."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from slmops.control.store_sql import open_sqlite_store
from slmops.domain.blueprint import WavePlan
from slmops.domain.device import DeviceFacts
from slmops.domain.installation import State
from slmops.testing.control_in_process import QUICK_POLICY, quick_release
from slmops.testing.control_process import ControlProcess
from slmops.testing.sample_release import publish_sample
from slmops.testing.scripted_device import ScriptedDevice

pytestmark = pytest.mark.slow

_POLICY = replace(
    QUICK_POLICY, waves=(WavePlan(count=2), WavePlan(count=4), WavePlan(share=1.0))
)
_DEVICES = 12
_KILLS = 6


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ControlProcess]:
    publish_sample(tmp_path, [quick_release(policy=_POLICY)], now=time.time())
    server = ControlProcess(workspace=tmp_path)
    server.start()
    yield server
    server.kill_if_running()


def live_on(device: ScriptedDevice, url: str, end: threading.Event) -> None:
    """Sync until told to stop, through every outage."""
    with httpx.Client(base_url=url, timeout=10) as http:
        while not end.is_set():
            try:
                device.sync(http)
            except httpx.HTTPError:
                time.sleep(0.02)
            time.sleep(0.03)


def enrol_fleet(server: ControlProcess) -> list[ScriptedDevice]:
    fleet = []
    with server.operator() as operator:
        for index in range(_DEVICES):
            token = operator.post("/v1/tokens").json()["token"]
            facts = DeviceFacts(
                memory_mib=(512, 4096)[index % 2],
                disk_mib=4000,
                cpu_count=1,
                architecture="x86_64",
            )
            device = ScriptedDevice(
                name=f"d{index:02}",
                facts=facts,
                steps=(State.DOWNLOADING, State.VERIFIED, State.PROBATION),
            )
            device.enrol(operator, token)
            fleet.append(device)
    return fleet


def rollout_of(server: ControlProcess) -> Any:  # noqa: ANN401
    with server.operator() as operator:
        return operator.get("/v1/rollouts/r-1").json()


def test_kills_in_mid_rollout_lose_nothing_acknowledged_and_give_nobody_two_targets(
    server: ControlProcess,
) -> None:
    fleet = enrol_fleet(server)
    with server.operator() as operator:
        operator.post("/v1/rollouts", json={"release": "sample-1"}).raise_for_status()
    end = threading.Event()
    threads = [
        threading.Thread(target=live_on, args=(device, server.url, end))
        for device in fleet
    ]
    for thread in threads:
        thread.start()
    verdicts: list[Any] = []
    states: list[str] = []
    for kill in range(_KILLS):
        time.sleep(0.15 + 0.05 * kill)
        now = rollout_of(server)
        states.append(now["state"])
        seen = now["evaluations"]
        assert seen[: len(verdicts)] == verdicts, "a verdict that was shown is gone"
        verdicts = seen
        server.end(signal.SIGKILL)
        server.start()
    deadline = time.monotonic() + 60
    while rollout_of(server)["state"] == "running" and time.monotonic() < deadline:
        time.sleep(0.1)
    end.set()
    for thread in threads:
        thread.join()
    ended = rollout_of(server)
    assert ended["state"] == "done", ended
    assert states[:2] == ["running", "running"], "killed too late to prove anything"
    assert ended["evaluations"][: len(verdicts)] == verdicts
    server.end(signal.SIGKILL)
    check_nothing_is_lost(server, fleet)


def check_nothing_is_lost(server: ControlProcess, fleet: list[ScriptedDevice]) -> None:
    store = open_sqlite_store(server.workspace / "control" / "control.db")
    for device in fleet:
        stored = [json.loads(raw)["sequence"] for raw in store.reports(device.name)]
        assert set(device.acknowledged) <= set(stored)
        assert len(stored) == len(set(stored))
        # `targets` itself refuses a second target for a known sequence.
        assigned = {one.sequence: one for one in store.assignments(device.name)}
        assert device.targets == assigned
        assert len(assigned) == 1
    store.close()


def test_sigterm_ends_it_within_a_second_with_live_streams_open(
    server: ControlProcess,
) -> None:
    with (
        server.operator() as operator,
        operator.stream("GET", "/v1/events") as first,
        operator.stream("GET", "/v1/events") as second,
    ):
        for stream in (first, second):
            assert stream.status_code == 200
            assert next(line for line in stream.iter_lines() if "data:" in line)
        begun = time.monotonic()
        assert server.end(signal.SIGTERM) == 0
        assert time.monotonic() - begun < 1.0
    # Nothing is half-done: it starts again at once.
    server.start()
    assert httpx.get(f"{server.url}/healthz").status_code == 200


def test_the_command_line_talks_to_it(server: ControlProcess) -> None:
    environment = {
        **os.environ,
        "SLMOPS_SERVER": server.url,
        "SLMOPS_WORKSPACE": str(server.workspace),
    }

    def slmops(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "slmops", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    assert slmops("rollout", "start", "sample-1").returncode == 4
    fleet = enrol_fleet(server)
    assert fleet[0].name in slmops("device", "list").stdout
    explained = slmops("device", "explain", fleet[0].name).stdout
    assert "is of class small in sample-1" in explained
    started = slmops("rollout", "start", "sample-1", "--json")
    assert json.loads(started.stdout)["id"] == "r-1"
    assert "r-1 sample-1 running" in slmops("rollout", "status").stdout
    assert "paused" in slmops("rollout", "pause", "r-1", "--reason", "tea").stdout
    assert "running" in slmops("rollout", "resume", "r-1").stdout
    aborted = slmops("rollout", "abort", "r-1", "--keep")
    assert "r-1 sample-1 aborted" in aborted.stdout
    watched = slmops("rollout", "status", "--watch")
    assert (watched.returncode, "aborted" in watched.stdout) == (0, True)
    assert slmops("device", "show", "nobody").returncode == 3
