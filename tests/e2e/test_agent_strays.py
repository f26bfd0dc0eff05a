"""No process outlives the one that started it, however that one ends."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from slmops.testing.stage import Stage, echo_artefact, stage, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]

_RUN = """
import json, sys, time
from pathlib import Path
from slmops.testing.stage import echo_artefact, stage, wait_until

with stage(Path(sys.argv[1])) as built:
    built.publish(1, echo_artefact())
    built.serve()
    state = built.enrol("till-1")
    crash = ["--at", "committed", "--phase", "after"]  # a process that is not there yet
    built.start_agent(state, crash=crash if sys.argv[2] == "crash" else ())
    built.roll_out("sample-1")
    wait_until(lambda: built.children("till-1"), "a model")
    pids = [built.process(name).pid for name in ("control", "till-1")]
    print(json.dumps(pids + built.children("till-1")), flush=True)
    time.sleep(60)
"""


def running(pid: int) -> bool:
    """Tell whether a process exists and is no zombie that nobody waited for."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in {"Z", "X"}


def wait_until_gone(pids: list[int]) -> None:
    wait_until(
        lambda: not any(running(pid) for pid in pids), f"{pids} gone", timeout_s=5
    )


@pytest.fixture
def built(tmp_path: Path) -> Iterator[Stage]:
    with stage(tmp_path) as built:
        yield built


def model_of(built: Stage, **artefact: object) -> tuple[Path, int]:
    """Return a device, and the process of its model once there is one."""
    built.publish(1, echo_artefact())
    built.publish(2, echo_artefact(**artefact), claims=echo_artefact())
    built.serve()
    state = built.enrol("till-1")
    built.start_agent(state)
    built.roll_out("sample-2")
    wait_until(lambda: built.children("till-1"), "a model's process")
    (model,) = built.children("till-1")
    return state, model


def test_a_model_ends_with_its_killed_agent(built: Stage) -> None:
    state, model = model_of(built, delay_ms=1)
    wait_until(lambda: built.serving(state), "serving")
    built.kill("till-1")
    wait_until_gone([model])


def test_a_model_that_still_loads_ends_with_its_killed_agent(built: Stage) -> None:
    state, model = model_of(built, start_delay_ms=30_000)
    built.kill("till-1")
    assert built.status(state)["installation"]["state"] == "switched"
    wait_until_gone([model])


def test_a_model_in_mid_answer_ends_with_its_killed_agent(built: Stage) -> None:
    state, model = model_of(built, delay_ms=200)
    wait_until(lambda: built.serving(state), "serving")
    begun = threading.Event()

    def ask() -> None:
        url = f"{built.endpoint(state)}/v1/chat/completions"
        turn = {"role": "user", "content": "word " * 60}
        body = {"messages": [turn], "stream": True}
        try:
            with httpx.stream("POST", url, json=body, timeout=20) as answer:
                for _ in answer.iter_bytes():
                    begun.set()
        except httpx.HTTPError:
            pass

    thread = threading.Thread(target=ask)
    thread.start()
    assert begun.wait(20)
    built.kill("till-1")
    wait_until_gone([model])
    thread.join(10)


@pytest.mark.parametrize("agent", ["normal", "crash"])
def test_control_plane_agent_and_model_end_with_a_killed_test_run(
    tmp_path: Path, agent: str
) -> None:
    run = subprocess.Popen(
        [sys.executable, "-c", _RUN, str(tmp_path), agent], stdout=subprocess.PIPE
    )
    try:
        assert run.stdout is not None
        pids = json.loads(run.stdout.readline())
        assert len(pids) == 3
        assert all(running(pid) for pid in pids)
        os.kill(run.pid, signal.SIGKILL)
        wait_until_gone(pids)
    finally:
        run.kill()
        run.wait()
        if run.stdout is not None:
            run.stdout.close()
