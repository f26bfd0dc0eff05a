"""Status: what a device stands like, read beside a running agent or without one."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from slmops.agent.journal import Journal, Quarantined
from slmops.agent.machine import ENDPOINT, JOURNAL, EndpointPlace
from slmops.agent.records import Deployment, Installation
from slmops.agent.settings import AgentSettings
from slmops.agent.slots import POINTER, SlotStore
from slmops.agent.status import agent_status
from slmops.domain.errors import InvalidInputError
from slmops.domain.ids import Digest
from slmops.domain.installation import State
from slmops.testing.sample_deployment import sample_deployment
from slmops.wire import codec

SETTINGS = AgentSettings(
    server="http://127.0.0.1:8800", device="till-1", director_key="ab" * 32
)
DIGEST = Digest("sha256:" + "ab" * 32)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal.open(tmp_path / JOURNAL, now=1.0)
    yield journal
    journal.close()


def installation(state: State, assignment: int = 1) -> Installation:
    return Installation(
        assignment=assignment, state=state, entered_at=1.0, reason="why"
    )


def deployment(release: str) -> Deployment:
    return replace(
        sample_deployment(DIGEST, 1),
        release=release,
        context_tokens=64,
        memory_limit_mib=None,
        expected_peak_mib=1.0,
    )


def test_a_device_that_never_ran_has_nothing(tmp_path: Path) -> None:
    status = agent_status(tmp_path, SETTINGS)
    assert (status.device, status.server) == ("till-1", "http://127.0.0.1:8800")
    assert (status.active, status.previous, status.installation) == (None, None, None)
    assert status.endpoint is None
    assert status.quarantined == ()


def test_slots_installation_and_quarantine_are_shown(
    tmp_path: Path, journal: Journal
) -> None:
    slots = SlotStore(tmp_path)
    slots.activate(deployment("sample-1"))
    slots.activate(deployment("sample-2"))
    journal.enter(installation(State.PROBATION))
    journal.quarantine(
        Quarantined(variant=DIGEST, release="sample-3", reason="bad", at=1.0)
    )
    status = agent_status(tmp_path, SETTINGS)
    assert status.active is not None
    assert status.previous is not None
    assert (status.active.release, status.previous.release) == ("sample-2", "sample-1")
    assert status.installation is not None
    assert status.installation.state is State.PROBATION
    assert [entry.reason for entry in status.quarantined] == ["bad"]


def test_between_installations_the_last_outcome_is_shown(
    tmp_path: Path, journal: Journal
) -> None:
    journal.close_outcome(installation(State.ROLLED_BACK, assignment=4))
    journal.enter(installation(State.IDLE, assignment=4))
    status = agent_status(tmp_path, SETTINGS)
    assert status.installation is not None
    assert (status.installation.assignment, status.installation.state) == (
        4,
        State.ROLLED_BACK,
    )
    assert status.installation.reason == "why"


def place(folder: Path, pid: int) -> None:
    content = codec.encode_json(EndpointPlace(url="http://127.0.0.1:1", pid=pid))
    (folder / ENDPOINT).write_bytes(content)


def test_the_endpoint_is_shown_only_while_its_agent_lives(tmp_path: Path) -> None:
    place(tmp_path, os.getpid())
    assert agent_status(tmp_path, SETTINGS).endpoint == "http://127.0.0.1:1"
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
        place(tmp_path, ended.pid)
    assert agent_status(tmp_path, SETTINGS).endpoint is None
    for content in (b"", b"{}", b"\xff", b'{"url": 3, "pid": "x"}'):
        (tmp_path / ENDPOINT).write_bytes(content)
        assert agent_status(tmp_path, SETTINGS).endpoint is None


def test_damaged_files_are_said(tmp_path: Path) -> None:
    (tmp_path / JOURNAL).write_bytes(b"no database" * 100)
    SlotStore(tmp_path).activate(deployment("sample-1"))
    status = agent_status(tmp_path, SETTINGS)
    assert status.trouble is not None
    assert "journal" in status.trouble
    assert status.active is not None
    (tmp_path / POINTER).write_bytes(b"{")
    with pytest.raises(InvalidInputError, match="active"):
        agent_status(tmp_path, SETTINGS)
