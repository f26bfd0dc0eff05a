"""What the loop takes from a control plane, and what it keeps until it was received."""

import json

import pytest

from slmops.agent.journal import Journal
from slmops.agent.telemetry import Answered
from slmops.registry.envelope import seal
from slmops.registry.keys import SigningKey
from slmops.testing.agent_in_process import NOTHING_NEW, AgentInProcess
from slmops.testing.raw_server import Reply, answer, raw

pytestmark = pytest.mark.slow  # real processes


@pytest.mark.parametrize("name", ["replay", "other device", "stranger", "garbage"])
def test_an_assignment_that_is_none_of_ours_changes_nothing(
    device: AgentInProcess, name: str
) -> None:
    device.assign(1, 5)
    device.steps()
    known = device.journal.assignment()
    if name == "replay":
        device.assign(2, 5)
    elif name == "other device":
        device.assign(2, 6, device="till-2")
    elif name == "stranger":
        stranger = SigningKey.create(device.folder / "stranger.key")
        device.bring(seal(b"{}", stranger))
    else:
        device.bring("garbage")
    device.clock.advance(60)
    device.steps(5)
    assert device.journal.assignment() == known
    assert device.serves() == "sample-1"


def test_a_lost_journal_does_not_let_an_old_assignment_back_in(
    device: AgentInProcess,
) -> None:
    device.assign(2, 7)
    device.steps()
    old = device.assign(1, 6)
    device.journal.close()
    (device.folder / "journal.db").unlink()
    device.journal = Journal.open(device.folder / "journal.db", now=device.clock.now())
    device.restart()
    device.bring(old)
    device.steps(5)
    assert device.journal.assignment() is None
    assert device.syncs()[-1]["assignment"] == 7


def test_reports_wait_while_the_control_plane_fails_ever_more_seldom(
    device: AgentInProcess,
) -> None:
    device.telemetry.answered("sample-1", Answered(output_tokens=3))
    device.sync_reply = answer(503, b"{}")
    waits = []
    for _ in range(9):
        device.loop.sync()
        waits.append(device.loop._next_sync - device.clock.monotonic())
        device.clock.advance(waits[-1])
    for wait, longest in zip(waits, (1, 2, 4, 8, 16, 32, 60, 60, 60), strict=True):
        assert longest / 2 <= wait <= longest
    (waiting,) = device.journal.reports_to_send(most=9)
    assert waiting.output_tokens == 3
    device.sync_reply = NOTHING_NEW
    device.loop.sync()
    assert device.journal.reports_to_send(most=9) == ()
    assert device.loop._next_sync - device.clock.monotonic() == 30.0
    sent = [sync["reports"] for sync in device.syncs()]
    assert sent[0] == sent[-1]


@pytest.mark.parametrize(
    "reply",
    [
        answer(200, b"{}"),
        answer(200, b"<html>Log in</html>", kind="text/html"),
        answer(401, b"{}"),
        answer(404, b"{}"),
        raw(b""),
    ],
    ids=["json", "portal", "401", "404", "nothing"],
)
def test_an_answer_of_somebody_else_acknowledges_no_report(
    device: AgentInProcess, reply: Reply
) -> None:
    device.telemetry.failed("sample-1")
    device.sync_reply = reply
    device.loop.sync()
    assert len(device.journal.reports_to_send(most=9)) == 1


@pytest.mark.parametrize(
    ("message", "left"),
    [
        ("/v1/sync: reports[1].requests must be in 0..9, got -1", [0, 2]),
        ("reports[0].sequence must be in 5..9, got 1", [1, 2]),
        ("reports must be at most 2, got 3", []),
        ("reports[7].requests must be in 0..9, got -1", [0, 1, 2]),
        ("key of label 'reports[1]' must have at most 9 characters", [0, 1, 2]),
        ("labels must be at most 2, got 3", [0, 1, 2]),
        ("/v1/sync: body must be at most 9 bytes", [0, 1, 2]),
        ("", [0, 1, 2]),
    ],
)
def test_only_the_reports_that_the_control_plane_refuses_are_dropped(
    device: AgentInProcess, message: str, left: list[int]
) -> None:
    for version in range(3):
        device.telemetry.failed(f"sample-{version}")
    error = {"error": {"code": "invalid_input", "message": message}}
    device.sync_reply = answer(422, json.dumps(error).encode())
    device.loop.sync()
    waiting = device.journal.reports_to_send(most=9)
    assert [report.release for report in waiting] == [f"sample-{n}" for n in left]


def test_the_disk_is_read_anew_for_every_sync(device: AgentInProcess) -> None:
    device.loop.sync()
    device.disk_mib = 3
    device.loop.sync()
    facts = [sync["facts"] for sync in device.syncs()]
    assert [each["disk_mib"] for each in facts if isinstance(each, dict)] == [100, 3]
