"""Agents on file systems that are read-only, or full in the middle of a trial."""

import contextlib
import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from slmops.agent.enrolment import Enrolment, enrol_device
from slmops.agent.slots import SlotStore
from slmops.testing.raw_server import RawServer, answer
from slmops.testing.sample_deployment import sample_deployment
from slmops.testing.stage import QUICK, echo_artefact, free_port, stage, wait_until
from slmops.testing.tether import tethered

MOUNT, UMOUNT = shutil.which("mount") or "", shutil.which("umount") or ""
pytestmark = pytest.mark.slow

ENROLLED = answer(
    body=b'{"device": "till-1", "director_key": "%s", "root": "r"}' % (b"ab" * 32)
)


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """Mount a file system in memory."""
    if os.geteuid() != 0 or not (MOUNT and UMOUNT):
        pytest.skip("mounting takes root, mount and umount")
    folder.mkdir(parents=True, exist_ok=True)
    command = [MOUNT, "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"cannot mount here: {done.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run([UMOUNT, "--lazy", str(folder)], check=True)


def remount(folder: Path, how: str) -> None:
    subprocess.run([MOUNT, "-o", f"remount,{how}", str(folder)], check=True)


def with_a_model(state: Path) -> None:
    with RawServer(replies=[ENROLLED]) as server:
        enrol_device(state, Enrolment(server=server.url, token="x", labels={}))
    slots = SlotStore(state)
    content = echo_artefact()
    variant = slots.blobs.put_bytes(content)
    slots.activate(sample_deployment(variant, len(content)))


@contextlib.contextmanager
def agent(state: Path, port: int) -> Iterator["subprocess.Popen[bytes]"]:
    command = [
        *(sys.executable, "-m", "slmops", "agent", "run"),
        *("--state", str(state), "--port", str(port)),
    ]
    process = subprocess.Popen(tethered(command), stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=20)


def healthy(url: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"{url}/healthz", timeout=5).status_code == 200
    return False


@pytest.mark.parametrize("ran_before", [False, True])
def test_a_read_only_file_system_serves_what_is_installed_and_says_so(
    tmp_path: Path, ran_before: bool
) -> None:
    url = f"http://127.0.0.1:{(port := free_port())}"
    with small_disk(tmp_path / "state", "8m") as state:
        with_a_model(state)
        if ran_before:
            with agent(state, port):
                wait_until(lambda: healthy(url), "the first agent")
        remount(state, "ro")
        with agent(state, port) as process:
            wait_until(lambda: healthy(url), "an agent on a read-only disk")
            body = {"messages": [{"role": "user", "content": "Hi"}]}
            answered = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=10)
            assert answered.status_code == 200
            updates = httpx.get(f"{url}/healthz").json()["updates"]
            assert updates.startswith("stopped: journal")
            # The lock holds there too.
            second = subprocess.run(
                [
                    *(sys.executable, "-m", "slmops", "agent", "run"),
                    *("--state", str(state), "--port", "0"),
                ],
                capture_output=True,
                check=False,
                timeout=30,
            )
            assert second.returncode == 4, second.stderr
            shown = subprocess.run(
                [
                    *(sys.executable, "-m", "slmops", "agent", "status"),
                    *("--state", str(state)),
                ],
                capture_output=True,
                check=True,
                timeout=30,
            )
            assert b"sample-1" in shown.stdout
        assert process.returncode == 0


def fill(folder: Path) -> Path:
    """Write until nothing is left; return the file to remove."""
    path = folder / "somebody-s-log"
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError as error:
                assert error.errno == errno.ENOSPC
    return path


def test_a_disk_that_fills_up_in_probation_stops_nothing_for_longer_than_it_is_full(
    tmp_path: Path,
) -> None:
    policy = replace(QUICK, probation_s=8.0)
    with (
        small_disk(tmp_path / "stage" / "till-1", "24m") as disk,
        stage(tmp_path / "stage", policy=policy) as built,
    ):
        built.publish(1, echo_artefact())
        built.serve()
        state = built.enrol("till-1")
        config = state / "config.json"
        config.write_text(
            config.read_text().replace(
                '"disk_reserve_mib": 64', '"disk_reserve_mib": 1'
            )
        )
        assert state == disk
        built.start_agent(state)

        def progress() -> str:
            said = built.status(state)["installation"]
            return str(said["state"]) if said else "none"

        def health() -> dict[str, str]:
            answered = httpx.get(f"{built.endpoint(state)}/healthz", timeout=5)
            return dict(answered.json())

        built.roll_out("sample-1")
        wait_until(lambda: progress() == "probation", "probation")
        wait_until(lambda: built.serving(state) == "sample-1", "sample-1")
        hog = fill(disk)
        # Longer than the soak: the loop has to write, and cannot.
        wait_until(lambda: "stopped" in health().get("updates", ""), "a full disk")
        assert built.serving(state) == "sample-1"
        hog.unlink()
        wait_until(lambda: "updates" not in health(), "a loop that goes on")
        wait_until(lambda: progress() == "committed", "the end of the trial")
        # It syncs again: the next release comes through.
        built.publish(2, echo_artefact(logprob=-0.11))
        built.roll_out("sample-2")
        wait_until(lambda: built.serving(state) == "sample-2", "sample-2")
        assert built.status(state)["quarantined"] == []
