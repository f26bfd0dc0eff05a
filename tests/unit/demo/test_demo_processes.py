"""Commands and servers that the demo runs, as real processes."""

import sys
from pathlib import Path

import pytest

from slmops.demo.processes import Processes, wait_for
from slmops.domain.errors import UnavailableError
from slmops.registry.workspace import Workspace


@pytest.fixture
def processes(tmp_path: Path) -> Processes:
    return Processes(
        folder=tmp_path,
        workspace=Workspace(root=tmp_path / ".slmops"),
        logs=tmp_path / "logs",
        out=sys.stdout,
    )


def test_a_command_s_document_comes_back(processes: Processes) -> None:
    assert processes.run_json("release", "list") == {"releases": []}


def test_a_failed_command_is_an_error_in_its_own_words(processes: Processes) -> None:
    with pytest.raises(UnavailableError, match="not published"):
        processes.run_json("release", "show", "assistant-1")


def test_a_shown_command_that_fails_ends_the_story(processes: Processes) -> None:
    with pytest.raises(UnavailableError, match=r"plan nothing\.yaml` ended with 3"):
        processes.show("plan", "nothing.yaml")


def test_a_server_that_ends_by_itself_is_noticed(processes: Processes) -> None:
    processes.start("broken", "agent", "run", "--state", "nowhere")
    wait_for("the end", lambda: processes.died() == ["broken"], timeout_s=20)
    assert "no enrolled device" in (processes.logs / "broken.log").read_text()


def test_stopping_ends_every_server(processes: Processes) -> None:
    process = processes.start("control", "serve", "--port", "0")
    log = processes.logs / "control.log"
    wait_for("start", lambda: "Dashboard" in log.read_text(), timeout_s=20)
    assert processes.process_ids() == [process.pid]
    processes.stop_all()
    assert process.returncode is not None
    assert processes.process_ids() == []
