"""What ends a trial, and what is held against a variant for good."""

import os
import signal

import pytest

from slmops.agent.models import Child
from slmops.agent.status import forgive
from slmops.domain.errors import InvalidInputError, NotFoundError
from slmops.domain.installation import State
from slmops.testing.agent_in_process import AgentInProcess
from slmops.testing.stage import wait_until

pytestmark = pytest.mark.slow  # real processes


def test_a_bad_update_rolls_back_is_quarantined_and_not_tried_again(
    device: AgentInProcess,
) -> None:
    device.assign(1, 1)
    device.steps()
    device.assign(3, 2)
    entered = device.steps()
    assert entered[-3:] == [State.PROBATION, State.ROLLED_BACK, State.IDLE]
    assert device.serves() == "sample-1"
    (quarantined,) = device.journal.quarantined()
    assert quarantined.release == "sample-3"
    assert "answers differ from the release card" in quarantined.reason
    # The same again, and the same with a new number: neither is tried.
    device.steps(5)
    device.assign(3, 3)
    device.steps(5)
    assert device.state() is State.IDLE
    assert len(device.journal.outcomes()) == 2


def test_a_death_under_live_traffic_in_the_soak_fails_the_trial(
    device: AgentInProcess,
) -> None:
    device.assign(1, 1)
    device.steps()
    device.assign(2, 2, probation_s=1000.0)
    device.steps(20)
    assert (device.state(), device.serves()) == (State.PROBATION, "sample-2")
    child = device.models.serving
    assert child is not None
    os.kill(child.worker.pid, signal.SIGKILL)
    wait_until(lambda: not child.worker.alive(), "its end")
    # Dead, but not yet counted by the supervisor: no verdict on a missing figure.
    device.loop.step()
    assert device.state() is State.PROBATION
    device.models._watch_once()
    device.steps(5)
    outcome = device.journal.last_outcome()
    assert outcome is not None
    assert outcome.state is State.ROLLED_BACK
    assert "ended 1 times under live traffic" in outcome.reason
    device.clock.advance(100)
    device.models._watch_once()
    assert device.serves() == "sample-1"


def test_failed_requests_in_the_soak_fail_the_trial(device: AgentInProcess) -> None:
    device.assign(1, 1, probation_s=1000.0)
    device.steps(20)
    for _ in range(3):
        device.telemetry.failed("sample-1")
    device.steps(5)
    outcome = device.journal.last_outcome()
    assert outcome is not None
    assert outcome.reason == "3 of 3 live requests failed"
    assert device.serves() is None
    assert "rolled back" in device.models.gateway.reason


def in_probation(device: AgentInProcess, version: int) -> Child:
    """Bring a second model so far that its trial is to begin; return its process."""
    device.assign(1, 1)
    device.steps()
    device.assign(version, 2)
    while device.state() is not State.PROBATION:
        device.loop.step()
        device.clock.advance(0.5)
    trial = device.actions._trial
    assert trial is not None
    return trial


@pytest.mark.parametrize(
    ("number", "blamed"),
    [(signal.SIGSEGV, True), (signal.SIGABRT, True), (signal.SIGKILL, False)],
)
def test_a_model_that_crashes_is_to_blame_and_one_that_somebody_killed_is_not(
    device: AgentInProcess, number: signal.Signals, blamed: bool
) -> None:
    child = in_probation(device, 2)
    os.kill(child.worker.pid, number)
    wait_until(lambda: not child.worker.alive(), "its end")
    device.steps()
    outcome = device.journal.outcome_of(2)
    assert outcome is not None
    assert outcome.state is State.ROLLED_BACK
    assert f"signal {number.name}" in outcome.reason
    assert bool(device.journal.quarantined()) == blamed
    assert device.serves() == "sample-1"


def test_power_cuts_in_probation_end_the_installation_and_not_the_variant(
    device: AgentInProcess,
) -> None:
    in_probation(device, 2)
    for _ in range(3):
        device.restart()
    device.models._watch_once()
    device.steps()
    outcome = device.journal.outcome_of(2)
    assert outcome is not None
    assert outcome.state is State.ROLLED_BACK
    assert "was entered" in outcome.reason
    assert device.journal.quarantined() == ()
    device.assign(2, 3)
    device.clock.advance(60)
    device.steps()
    assert device.serves() == "sample-2"


def test_a_forgiven_variant_is_tried_again_once_it_is_assigned_anew(
    device: AgentInProcess,
) -> None:
    in_probation(device, 3)
    device.steps()
    (entry,) = device.journal.quarantined()
    other = "sha256:" + "0" * 64
    for digest, error in ((other, NotFoundError), ("sha256:x", InvalidInputError)):
        with pytest.raises(error):
            forgive(device.folder, digest)
    assert forgive(device.folder, entry.variant) == (entry,)
    with pytest.raises(NotFoundError, match="nothing is in quarantine"):
        forgive(device.folder)
    device.clock.advance(60)
    device.loop.step()
    assert device.syncs()[-1]["quarantined"] == []
    assert device.state() is State.IDLE
    device.assign(3, 3)
    device.clock.advance(60)
    assert State.PROBATION in device.steps()
    assert [found.release for found in forgive(device.folder)] == ["sample-3"]
