"""`slmops rollout` against a real control plane process and devices that obey a script."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from slmops.testing.live_control import LiveControl, Slmops
from slmops.testing.scripted_device import ScriptedDevice

pytestmark = pytest.mark.slow

_REASON = "golden prompt 0: |Δ log p| 7.8 > 0.25"


@pytest.fixture(scope="module")
def fleet(live: LiveControl) -> list[ScriptedDevice]:
    """Four devices that run sample-1; sample-2 fails on all of them."""
    devices = [
        live.enrol(f"till-{index}", bad_releases={"sample-2": _REASON})
        for index in range(4)
    ]
    answer = live.http.post("/v1/rollouts", json={"release": "sample-1"})
    path = f"/v1/rollouts/{answer.json()['id']}"
    with live.syncing(devices):
        wait_for(lambda: live.http.get(path).json()["state"] == "done")
    return devices


@dataclass(frozen=True, slots=True)
class Started:
    """A rollout under test."""

    id: str
    release: str


@pytest.fixture
def start(slmops: Slmops, live: LiveControl) -> Iterator[Callable[..., Started]]:
    """Start a rollout; whatever still runs at the end is aborted."""

    def call(release: str) -> Started:
        ran = slmops("rollout", "start", release, "--allow-downgrade", "--json")
        assert ran.code == 0, ran.err
        return Started(json.loads(ran.out)["id"], release)

    yield call
    for one in live.http.get("/v1/rollouts").json()["rollouts"]:
        if one["state"] in {"running", "paused"}:
            path = f"/v1/rollouts/{one['id']}/abort"
            live.http.post(path, json={"keep": True}).raise_for_status()


def test_before_any_rollout_the_next_step_is_said(slmops: Slmops) -> None:
    listed = slmops("rollout", "list")
    assert (listed.code, listed.out) == (0, "")
    assert "slmops rollout start" in listed.err
    assert json.loads(slmops("rollout", "list", "--json").out) == {"rollouts": []}
    assert slmops("rollout", "status").code == 3
    assert slmops("rollout", "status", "--watch").code == 3


def test_without_devices_there_is_nothing_to_start(slmops: Slmops) -> None:
    ran = slmops("rollout", "start", "sample-1")
    assert ran.code == 4
    assert "error [conflict]" in ran.err


@pytest.mark.parametrize(
    ("label", "code"), [("sample-99", 3), ("other-1", 3), ("", 3), ("../x", 3)]
)
def test_an_unknown_release_is_not_found(
    slmops: Slmops, label: str, code: int, fleet: list[ScriptedDevice]
) -> None:
    assert fleet
    assert slmops("rollout", "start", "--", label).code == code


def test_watch_follows_a_rollout_to_its_end(
    slmops: Slmops,
    live: LiveControl,
    fleet: list[ScriptedDevice],
    start: Callable[..., Started],
) -> None:
    begun = start("sample-9")
    with live.syncing(fleet):
        watched = slmops("rollout", "status", begun.id, "--watch")
    assert watched.code == 0
    assert f"{begun.id} sample-9 done: every wave passed" in watched.out
    lines = watched.err.splitlines()
    assert len(lines) == len(set(lines)), "a line per change, never the same twice"
    assert all(line.startswith(f"{begun.id} sample-9 ") for line in lines)
    assert all(device.active_release == "sample-9" for device in fleet)
    shown = slmops("rollout", "status")
    assert shown.out == watched.out, "the newest is shown by default"
    listed = slmops("rollout", "list")
    assert "every wave passed" in listed.out


def test_a_halt_is_watched_with_its_reason_and_the_devices_own(
    slmops: Slmops,
    live: LiveControl,
    fleet: list[ScriptedDevice],
    start: Callable[..., Started],
) -> None:
    before = [device.active_release for device in fleet]
    begun = start("sample-2")
    with live.syncing(fleet):
        watched = slmops("rollout", "status", "--watch", "--json")
    assert (watched.code, watched.err) == (0, "")
    tree = json.loads(watched.out)
    assert tree["state"] == "halted"
    assert _REASON in tree["reason"]
    shown = slmops("rollout", "status", begun.id).out
    assert "sample-2 halted" in shown
    assert f"✗ till-{tree['members'][0]['device'][-1]}: {_REASON}" in shown
    assert [device.active_release for device in fleet] == before
    for command in (["pause"], ["resume"]):
        ran = slmops("rollout", *command, begun.id)
        assert ran.code == 4
        assert "halted" in ran.err


def test_a_paused_rollout_offers_nothing_until_it_is_resumed(
    slmops: Slmops,
    live: LiveControl,
    fleet: list[ScriptedDevice],
    start: Callable[..., Started],
) -> None:
    begun = start("sample-3")
    paused = slmops("rollout", "pause", begun.id, "--reason", "shop hours")
    assert paused.code == 0
    assert f"{begun.id} sample-3 paused: shop hours" in paused.out
    assert slmops("rollout", "pause", begun.id).code == 4
    with live.syncing(fleet):
        time.sleep(1.5)
        tree = json.loads(slmops("rollout", "status", begun.id, "--json").out)
        assert (tree["state"], tree["wave"]) == ("paused", 0)
        resumed = slmops("rollout", "resume", begun.id)
        assert (resumed.code, "running" in resumed.out) == (0, True)
        assert slmops("rollout", "resume", begun.id).code == 4
        assert "done" in slmops("rollout", "status", begun.id, "--watch").out
    assert all(device.active_release == "sample-3" for device in fleet)


def committed(live: LiveControl, rollout: str) -> set[str]:
    """Whom the control plane knows to be on the release: a device knows it earlier."""
    members = live.http.get(f"/v1/rollouts/{rollout}").json()["members"]
    return {one["device"] for one in members if one["outcome"] == "succeeded"}


@pytest.mark.parametrize(
    ("release", "flag"), [("sample-4", "--keep"), ("sample-5", "--revert")]
)
def test_an_aborted_rollout_keeps_or_reverts(
    slmops: Slmops,
    live: LiveControl,
    fleet: list[ScriptedDevice],
    start: Callable[..., Started],
    release: str,
    flag: str,
) -> None:
    stays = flag == "--keep"
    before = {device.name: device.active_release for device in fleet}
    begun = start(release)
    first = [one for one in fleet if one.name in first_wave(live, begun.id)]
    # The second wave does not sync, so the rollout cannot end by itself.
    with live.syncing(first):
        wait_for(lambda: committed(live, begun.id) >= {one.name for one in first})
        aborted = slmops("rollout", "abort", begun.id, flag)
        assert aborted.code == 0, aborted.err
        assert f"{begun.id} {release} aborted" in aborted.out
        said = (
            r"device\(s\) \((.*)\) stay as they are: kept by the operator"
            if stays
            else r"device\(s\) \((.*)\) go back to what they ran before"
        )
        [names] = re.findall(said, aborted.out)
        # Wave 2 may have its offer already.
        assert {one.name for one in first} <= set(names.split(", "))
        if not stays:
            wait_for(lambda: all(one.active_release != release for one in first))
    for device in fleet:
        kept = stays and device in first
        assert device.active_release == (release if kept else before[device.name])
    assert slmops("rollout", "abort", begun.id, flag).code == 4


@pytest.mark.parametrize("flags", [(), ("--keep", "--revert")])
def test_an_abort_says_exactly_one_of_keep_and_revert(
    slmops: Slmops, flags: tuple[str, ...]
) -> None:
    ran = slmops("rollout", "abort", "r-1", *flags)
    assert (ran.code, "exactly one of --keep and --revert" in ran.err) == (2, True)


def first_wave(live: LiveControl, rollout: str) -> set[str]:
    members = live.http.get(f"/v1/rollouts/{rollout}").json()["members"]
    return {one["device"] for one in members if one["wave"] == 0}


def test_two_rollouts_at_once_are_a_conflict(
    slmops: Slmops, fleet: list[ScriptedDevice], start: Callable[..., Started]
) -> None:
    assert fleet
    begun = start("sample-6")
    ran = slmops("rollout", "start", "sample-7", "--allow-downgrade")
    assert ran.code == 4
    assert begun.id in ran.err


def test_an_older_release_than_the_newest_one_needs_a_word(
    slmops: Slmops, fleet: list[ScriptedDevice], start: Callable[..., Started]
) -> None:
    assert fleet
    start("sample-9")
    ran = slmops("rollout", "start", "sample-1")
    assert ran.code == 4
    assert "a downgrade needs --allow-downgrade" in ran.err


@pytest.mark.parametrize("command", ["status", "pause", "resume", "abort"])
def test_an_unknown_rollout_exits_with_3(slmops: Slmops, command: str) -> None:
    flags = ("--keep",) if command == "abort" else ()
    ran = slmops("rollout", command, "r-999", *flags)
    assert (ran.code, "r-999" in ran.err) == (3, True)


@pytest.mark.parametrize("rollout", ["../devices", "r-1?x=1", "r-1/pause", "r-1#a"])
def test_what_cannot_be_an_id_is_refused_before_it_is_sent(
    slmops: Slmops, rollout: str
) -> None:
    for command in (["status"], ["pause"], ["resume"], ["abort", "--keep"]):
        ran = slmops("rollout", *command, rollout)
        assert (ran.code, "rollout must be 1 to 64 of" in ran.err) == (2, True)


def watch(live: LiveControl, rollout: str, *, stderr: int) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", "slmops", "rollout", "status", rollout, "--watch"],
        env={
            **os.environ,
            "SLMOPS_WORKSPACE": str(live.control.workspace),
            "SLMOPS_SERVER": live.control.url,
            "TERM": "xterm",
            "COLUMNS": "100",
        },
        stdout=subprocess.PIPE,
        stderr=stderr,
    )


def test_on_a_terminal_the_picture_moves_and_ctrl_c_only_stops_looking(
    slmops: Slmops, live: LiveControl, start: Callable[..., Started]
) -> None:
    begun = start("sample-7")
    ours, theirs = pty.openpty()
    process = watch(live, begun.id, stderr=theirs)
    os.close(theirs)
    seen = b""
    while b"sample-7 paused: for a look" not in seen:
        chunk = os.read(ours, 4096)
        assert chunk
        seen += chunk
        if b"sample-7 running" in seen:
            slmops("rollout", "pause", begun.id, "--reason", "for a look")
    drain = threading.Thread(target=_drain, args=(ours,))
    drain.start()
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=20)
    drain.join()
    os.close(ours)
    assert process.returncode == 130
    assert out == b""
    tree = json.loads(slmops("rollout", "status", begun.id, "--json").out)
    assert tree["state"] == "paused", "looking changes nothing"


def _drain(descriptor: int) -> None:
    try:
        while os.read(descriptor, 4096):
            pass
    except OSError:
        return


def test_watching_survives_a_restart_of_the_control_plane(
    slmops: Slmops,
    live: LiveControl,
    fleet: list[ScriptedDevice],
    start: Callable[..., Started],
) -> None:
    begun = start("sample-8")
    process = watch(live, begun.id, stderr=subprocess.PIPE)
    assert process.stderr is not None
    assert process.stderr.readline()
    live.control.end(signal.SIGKILL)
    time.sleep(1.0)
    assert process.poll() is None
    live.control.start()
    with live.syncing(fleet):
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "sample-8 done" in out.decode()


def wait_for(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)
