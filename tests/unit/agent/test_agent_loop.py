"""The loop step by step: real parts, a simulated clock, a control plane of one socket."""

import threading
from pathlib import Path

import pytest

from slmops.domain.installation import State
from slmops.testing.agent_in_process import ARTEFACTS, AgentInProcess
from slmops.testing.stage import wait_until

pytestmark = pytest.mark.slow  # real processes


GOOD_WAY = [
    *(State.OFFERED, State.WAITING, State.DOWNLOADING, State.VERIFIED, State.STAGED),
    *(State.SWITCHED, State.PROBATION, State.COMMITTED, State.IDLE),
]


def test_an_assignment_is_installed_state_by_state(device: AgentInProcess) -> None:
    device.assign(1, 1)
    assert device.steps() == GOOD_WAY
    assert device.serves() == "sample-1"
    outcome = device.journal.last_outcome()
    assert outcome is not None
    assert outcome.trial is not None
    assert outcome.trial.passed
    assert outcome.bytes_downloaded == len(ARTEFACTS[1])
    # The outcome is reported at once, not at the next poll.
    device.loop.step()
    last = device.syncs()[-1]["installation"]
    assert isinstance(last, dict)
    assert last["state"] == "committed"


@pytest.mark.parametrize(
    "state",
    [State.DOWNLOADING, State.VERIFIED, State.STAGED, State.SWITCHED, State.PROBATION],
)
def test_a_restart_in_any_state_serves_the_proven_model_and_goes_on(
    device: AgentInProcess, state: State
) -> None:
    device.assign(1, 1)
    device.steps()
    device.assign(2, 2, probation_s=30.0)
    while device.state() is not state:
        device.loop.step()
        device.clock.advance(0.5)
    assert device.restart() is None
    wanted = device.models.wanted
    assert wanted is not None
    assert wanted.release == "sample-1"
    device.models._watch_once()
    assert device.serves() == "sample-1"
    device.steps(100)
    assert device.serves() == "sample-2"
    outcome = device.journal.last_outcome()
    assert outcome is not None
    assert (outcome.assignment, outcome.state) == (2, State.COMMITTED)


def test_a_newer_assignment_ends_an_undecided_installation(
    device: AgentInProcess,
) -> None:
    device.assign(1, 1)
    device.steps()
    device.obstacle = "waiting for disk"
    device.assign(2, 2)
    device.steps(10)
    assert device.state() is State.WAITING
    found = device.journal.installation()
    assert found is not None
    assert found.reason == "waiting for disk"
    device.clock.advance(60)
    device.assign(1, 3)
    device.steps(10)
    outcome = device.journal.outcome_of(2)
    assert outcome is not None
    assert outcome.reason == "superseded by assignment 3"
    assert device.serves() == "sample-1"


def test_where_two_models_do_not_fit_the_old_one_goes_first_and_comes_back(
    device: AgentInProcess,
) -> None:
    device.memory_mib = 241  # the card promises 240, and the old one takes some too
    device.build()
    device.assign(1, 1)
    device.steps()
    old = device.models.serving
    assert old is not None
    device.assign(3, 2)
    while device.state() is not State.PROBATION:
        device.loop.step()
        device.clock.advance(0.5)
    assert not old.worker.alive()
    assert device.serves() == "sample-3"  # nobody else can
    while device.state() is not State.IDLE:
        device.loop.step()
    assert device.models.gateway.holding  # requests wait for the old one
    device.clock.advance(1)
    device.models._watch_once()
    assert device.serves() == "sample-1"


def test_an_action_that_fails_in_an_unforeseen_way_ends_after_some_tries(
    device: AgentInProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    device.assign(1, 1)
    device.loop.step()

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Path, "replace", broken)  # the slot pointer cannot be written
    tries = 0
    while device.journal.last_outcome() is None:
        try:
            device.loop.step()
        except ZeroDivisionError:
            tries += 1
            device.loop._count_crash()
        device.clock.advance(1)
        assert tries < 50
        if device.state() is State.ROLLED_BACK:
            monkeypatch.undo()
    outcome = device.journal.last_outcome()
    assert outcome is not None
    assert "unexpected error" in outcome.reason


def test_the_agent_s_own_end_is_no_verdict_on_a_model(device: AgentInProcess) -> None:
    device.assign(1, 1)
    device.steps()
    device.assign(2, 2)
    while device.state() is not State.PROBATION:
        device.loop.step()
        device.clock.advance(0.5)
    trial = device.actions._trial
    assert trial is not None
    device.loop.stop.set()
    trial.worker.stop(1.0)
    device.loop.step()
    assert device.state() is State.PROBATION
    assert device.journal.quarantined() == ()
    device.restart()
    device.models._watch_once()
    device.steps()
    assert device.serves() == "sample-2"


def test_the_loop_s_thread_survives_errors_and_ends_when_told(
    device: AgentInProcess,
) -> None:
    device.client.close()  # every sync fails in an unforeseen way
    thread = threading.Thread(target=device.loop.run)
    thread.start()
    wait_until(
        lambda: device.loop.error_backoff.failures or device.loop.sync_backoff.failures,
        "a failure",
    )
    assert thread.is_alive()
    device.loop.stop.set()
    thread.join(5)
    assert not thread.is_alive()


def test_nothing_is_installed_without_an_assignment(device: AgentInProcess) -> None:
    device.steps(3)
    assert device.state() is None
    assert device.serves() is None
    assert "no model is installed" in device.models.gateway.reason
