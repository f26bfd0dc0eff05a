"""The installation as journaled: follows the table, counts, and always ends."""

from dataclasses import replace

import pytest

from slmops.agent.records import Installation, after, failed, resumed
from slmops.domain.errors import ConflictError
from slmops.domain.ids import Digest
from slmops.domain.installation import ENDED, MAX_ENTRIES, TRANSITIONS, Event, State
from slmops.domain.sync import TrialResult
from slmops.testing.sample_deployment import sample_deployment
from slmops.wire import codec

GOOD_WAY = (
    (Event.OFFER, State.OFFERED),
    (Event.ACCEPT, State.WAITING),
    (Event.READY, State.DOWNLOADING),
    (Event.FETCHED, State.VERIFIED),
    (Event.PREPARED, State.STAGED),
    (Event.ACTIVATED, State.SWITCHED),
    (Event.SERVING, State.PROBATION),
    (Event.PROVED, State.COMMITTED),
    (Event.CLOSE, State.IDLE),
)


def installation(state: State = State.IDLE, reason: str = "") -> Installation:
    return Installation(assignment=1, state=state, entered_at=0.0, reason=reason)


def test_the_good_way_leads_through_every_state_and_counts_each_once() -> None:
    now = installation()
    for number, (event, state) in enumerate(GOOD_WAY):
        now = after(now, event, now=float(number))
        assert (now.state, now.entered_at) == (state, float(number))
    assert set(now.entries.values()) == {1}


def test_an_event_that_the_state_does_not_know_is_a_bug() -> None:
    with pytest.raises(ConflictError, match="no event proved in state idle"):
        after(installation(), Event.PROVED, now=0.0)


@pytest.mark.parametrize("state", sorted({state for state, _ in TRANSITIONS}))
def test_resuming_again_and_again_ends_every_installation(state: State) -> None:
    most = MAX_ENTRIES.get(state)
    if most is None or most > 1000:
        return  # outcomes, and waiting, which is no failure
    now = installation(state, reason="it hung")
    for _ in range(most):
        now = resumed(now, now=1.0)
        assert now.state is state
    now = resumed(now, now=2.0)
    assert now.state is State.ROLLED_BACK
    assert f"state {state} was entered {most + 1} times" in now.reason
    assert "last: it hung" in now.reason
    # Power cuts are no fault of the variant's, in whatever state they come.
    assert not now.variant_at_fault


def test_waiting_and_downloading_in_turns_ends_too() -> None:
    now = installation(State.WAITING)
    rounds = 0
    while now.state not in ENDED:
        now = after(now, Event.READY, now=0.0)
        if now.state in ENDED:
            break
        now = after(now, Event.DEFER, now=0.0)
        rounds += 1
    assert now.state is State.ROLLED_BACK
    assert rounds == MAX_ENTRIES[State.DOWNLOADING]


def test_a_reason_stays_with_failures_and_deferrals_and_goes_with_progress() -> None:
    waits = installation(State.WAITING, reason="waiting for disk")
    assert after(waits, Event.DEFER, now=0.0).reason == "waiting for disk"
    assert after(waits, Event.READY, now=0.0).reason == ""
    fails = failed(installation(State.PROBATION), "too slow", variant_at_fault=True)
    ended = after(fails, Event.FAIL, now=0.0)
    assert (ended.state, ended.reason) == (State.ROLLED_BACK, "too slow")
    assert ended.variant_at_fault
    assert after(ended, Event.CLOSE, now=0.0).reason == ""


def test_the_report_says_what_the_journal_says() -> None:
    report = installation(State.ROLLED_BACK, reason="why").report()
    assert (report.assignment, report.state, report.reason) == (
        1,
        State.ROLLED_BACK,
        "why",
    )


def test_an_installation_and_a_deployment_survive_being_written() -> None:
    digest = Digest("sha256:" + "ab" * 32)
    target = replace(
        sample_deployment(digest, 1),
        context_tokens=64,
        memory_limit_mib=None,
        expected_peak_mib=1.0,
    )
    one = resumed(Installation(assignment=1, state=State.STAGED, entered_at=1.5), now=2)
    for document in (one, target):
        raw = codec.encode_json(document)
        assert codec.decode_json(raw, type(document), where="x") == document
    assert (target.installed.release, target.installed.variant) == ("sample-1", digest)


def test_a_report_cuts_reasons_to_what_the_control_plane_takes() -> None:
    trial = TrialResult(passed=False, reason="T" * 5000)
    told = replace(installation(reason="R" * 5000), trial=trial).report()
    assert told.trial is not None
    assert (len(told.reason), len(told.trial.reason)) == (1000, 1000)
