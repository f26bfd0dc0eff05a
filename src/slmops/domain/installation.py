"""Installation: one device changing its active variant, as a table.

The agent journals the state *before* it acts on it; every action is safe to repeat,
so after a crash the agent reads the state and does its action again. A pair that is
not in the table is a bug, not a situation.
"""

from enum import StrEnum

from slmops.domain.errors import ConflictError


class State(StrEnum):
    """Where an installation stands. Stored; never renamed or reused."""

    IDLE = "idle"
    OFFERED = "offered"
    WAITING = "waiting"
    DOWNLOADING = "downloading"
    VERIFIED = "verified"
    STAGED = "staged"
    SWITCHED = "switched"
    PROBATION = "probation"
    COMMITTED = "committed"
    ROLLED_BACK = "rolled_back"


class Event(StrEnum):
    """What an action found out."""

    OFFER = "offer"
    """A signed assignment names a target that is not active here."""
    ACCEPT = "accept"
    """Target is trusted, fits and is not quarantined."""
    DEFER = "defer"
    """Not now (window, battery, link, disk); a deferral is not a failure."""
    READY = "ready"
    """Nothing stands against starting now."""
    FETCHED = "fetched"
    """All bytes are here and have the promised digest."""
    PREPARED = "prepared"
    """The staged slot holds the verified artefact."""
    ACTIVATED = "activated"
    """The pointer names the new slot."""
    SERVING = "serving"
    """A child serves the new model and the trial may begin."""
    PROVED = "proved"
    """Golden prompts and soak passed."""
    FAIL = "fail"
    """The action failed for good; its reason is journaled."""
    CLOSE = "close"
    """The outcome was recorded; ready for the next."""


TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.IDLE, Event.OFFER): State.OFFERED,
    (State.OFFERED, Event.ACCEPT): State.WAITING,
    (State.OFFERED, Event.FAIL): State.ROLLED_BACK,
    (State.WAITING, Event.DEFER): State.WAITING,
    (State.WAITING, Event.READY): State.DOWNLOADING,
    (State.WAITING, Event.FAIL): State.ROLLED_BACK,
    (State.DOWNLOADING, Event.DEFER): State.WAITING,
    (State.DOWNLOADING, Event.FETCHED): State.VERIFIED,
    (State.DOWNLOADING, Event.FAIL): State.ROLLED_BACK,
    (State.VERIFIED, Event.PREPARED): State.STAGED,
    (State.VERIFIED, Event.FAIL): State.ROLLED_BACK,
    (State.STAGED, Event.ACTIVATED): State.SWITCHED,
    (State.STAGED, Event.FAIL): State.ROLLED_BACK,
    (State.SWITCHED, Event.SERVING): State.PROBATION,
    (State.SWITCHED, Event.FAIL): State.ROLLED_BACK,
    (State.PROBATION, Event.PROVED): State.COMMITTED,
    (State.PROBATION, Event.FAIL): State.ROLLED_BACK,
    (State.COMMITTED, Event.CLOSE): State.IDLE,
    (State.ROLLED_BACK, Event.CLOSE): State.IDLE,
}
"""The whole state machine, read top to bottom."""

MAX_ENTRIES: dict[State, int] = {
    State.OFFERED: 3,
    State.WAITING: 100_000,
    State.DOWNLOADING: 1_000,
    State.VERIFIED: 5,
    State.STAGED: 5,
    State.SWITCHED: 3,
    State.PROBATION: 3,
}
"""How often a state may be entered or resumed in one installation before it fails."""

ENDED = frozenset({State.COMMITTED, State.ROLLED_BACK})
"""Outcomes."""


def next_state(state: State, event: Event) -> State:
    """Look the pair up.

    Raises:
        ConflictError: the pair is not in the table: a bug in the caller.

    >>> next_state(State.PROBATION, Event.FAIL).value
    'rolled_back'
    """
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise ConflictError(
            f"installation: no event {event} in state {state}"
        ) from None
