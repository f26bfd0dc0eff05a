"""Two builds in one workspace take turns, however the first one ends."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from slmops.registry.workspace import Workspace
from slmops.workshop.build_lock import build_lock
from slmops.workshop.progress import silent

HOLDER = """
import sys, time
from pathlib import Path
from slmops.registry.workspace import Workspace
from slmops.workshop.build_lock import build_lock
with build_lock(Workspace(root=Path(sys.argv[1])), lambda *_: None):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another process that holds the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_build_waits_says_so_and_goes_on_when_the_first_is_killed(
    tmp_path: Path, holder: "subprocess.Popen[str]"
) -> None:
    waiting, said = threading.Event(), []

    def progress(what: str, _done: float, _total: float) -> None:
        said.append(what)
        waiting.set()

    entered = threading.Event()

    def build() -> None:
        with build_lock(Workspace(root=tmp_path), progress):
            entered.set()

    thread = threading.Thread(target=build)
    thread.start()
    assert waiting.wait(5)
    assert not entered.is_set()
    os.kill(holder.pid, signal.SIGKILL)
    assert entered.wait(5)
    thread.join(5)
    assert "another build runs in this workspace: waiting" in said


def test_builds_in_different_workspaces_do_not_wait(
    tmp_path: Path, holder: "subprocess.Popen[str]"
) -> None:
    assert holder.poll() is None
    with build_lock(Workspace(root=tmp_path / "other"), silent):
        pass


def test_the_lock_is_free_after_an_error(tmp_path: Path) -> None:
    workspace = Workspace(root=tmp_path)
    with pytest.raises(RuntimeError), build_lock(workspace, silent):
        raise RuntimeError
    with build_lock(workspace, silent):
        pass
