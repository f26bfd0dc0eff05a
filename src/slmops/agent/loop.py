"""The agent's loop: sync when due, take one step of the installation, early return.

Reconciles: each step reads the journal and the slots and does one thing. A crash
between any two lines is answered by `resume` at the next start.
"""

import contextlib
import logging
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from slmops.agent.actions import Actions
from slmops.agent.clock import Backoff, Clock
from slmops.agent.journal import Journal, JournaledAssignment
from slmops.agent.link import Link
from slmops.agent.models import Models
from slmops.agent.offers import Offers
from slmops.agent.probe import with_disk
from slmops.agent.records import Installation, Slots, after, failed, resumed
from slmops.agent.slots import SlotStore
from slmops.agent.telemetry import Telemetry
from slmops.domain.device import DeviceFacts
from slmops.domain.errors import InvalidInputError, SlmopsError, UntrustedError
from slmops.domain.ids import Digest
from slmops.domain.installation import ENDED, Event, State
from slmops.domain.sync import (
    MAX_QUARANTINED_SENT,
    Assignment,
    Report,
    SyncRequest,
)

_MAX_REPORTS_SENT = 50
_LONGEST_STEP_S = 1.0
_DEFAULT_POLL_S = 30.0
_UNDECIDED = frozenset({State.SWITCHED, State.PROBATION})
"""The pointer names a model that has not proved itself yet."""
_REPORT = re.compile(r"(?:/\S+: )*reports\b(?:\[(\d{1,9})\])?")
"""How a refusal begins that is about reports, or about one of them."""
_log = logging.getLogger("slmops.agent")


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """What the device says about itself."""

    facts: DeviceFacts
    """Read at the agent's start; the disk again at every sync."""
    labels: Mapping[str, str]
    """Set by its owner."""


@dataclass(kw_only=True, slots=True)
class AgentLoop:
    """Brings what is installed to what is assigned."""

    identity: Identity
    journal: Journal
    slots: SlotStore
    models: Models
    actions: Actions
    offers: Offers
    link: Link
    telemetry: Telemetry
    clock: Clock
    sync_backoff: Backoff
    error_backoff: Backoff
    window_s: float
    stop: threading.Event
    disk_mib: Callable[[], int]
    """Reads what models may take of the disk now."""
    trouble: str | None = None
    """Why the last step failed: a disk that refuses, mostly; None while all is well."""
    _next_sync: float = 0.0
    _window_ends: float = 0.0
    _known: JournaledAssignment | None = None
    _assignment: Assignment | None = field(default=None)

    def resume(self) -> str | None:
        """Find out what was going on, and serve at once what can be trusted.

        While a trial was not decided, that is the old model: the trial starts the new
        one again. Returns what had to be mended, or None.
        """
        self.slots.remove_leftovers()
        slots, mended = self._healed()
        installation = self.journal.installation()
        undecided = installation is not None and installation.state in _UNDECIDED
        first = slots.previous if undecided else slots.active
        if first is not None:
            self.models.want(first)
        if installation is not None and installation.state is not State.IDLE:
            self._enter(resumed(installation, now=self.clock.now()))
        elif slots.active is not None:
            # A power cut may have brought back what the last installation removed.
            with contextlib.suppress(OSError):
                self.actions.downloads.discard_all()
                self.slots.collect_garbage()
        return mended

    def run(self) -> None:
        """Step until `stop` is set: the loop thread's main work."""
        while not self.stop.is_set():
            self.stop.wait(min(self.tried_step(), _LONGEST_STEP_S * 60))

    def tried_step(self) -> float:
        """Step, and outlive whatever goes wrong; return how long to wait, seconds."""
        try:
            wait_s = self.step()
        except SlmopsError as error:
            self.trouble = str(error)
            _log.warning("loop: %s", error)
            return self.error_backoff.failed()
        except OSError as error:
            # Full or read-only: it passes, and says nothing about what is installed.
            self.trouble = f"disk: {error.strerror or error}"
            _log.warning("loop: %s", self.trouble)
            return self.error_backoff.failed()
        except Exception as error:  # noqa: BLE001 - serving must go on whatever happens
            self.trouble = f"{type(error).__name__}: {error}"
            _log.exception("loop: unexpected error")
            self._count_crash()
            return self.error_backoff.failed()
        self.error_backoff.succeeded()
        self.trouble = None
        return wait_s

    def step(self) -> float:
        """Do what is due; return how long nothing will be, seconds."""
        now = self.clock.monotonic()
        if now >= self._window_ends:
            self._close_windows()
            self._window_ends = now + self.window_s
        if now >= self._next_sync:
            self.sync()
        wait_s = self._advance()
        left = min(self._next_sync, self._window_ends) - self.clock.monotonic()
        return max(min(wait_s, left), 0.0)

    def sync_is_due(self) -> bool:
        """Tell whether a long action should let the loop sync."""
        return self.stop.is_set() or self.clock.monotonic() >= self._next_sync

    def sync(self) -> None:
        """Exchange with the control plane once; failures only delay the next time."""
        self._close_windows()
        reports = self.journal.reports_to_send(most=_MAX_REPORTS_SENT)
        try:
            outcome = self.link.sync(self._request(reports))
        except SlmopsError as error:
            wait_s = self.sync_backoff.failed()
            if self.sync_backoff.failures == 1:
                _log.warning("sync: %s", error)
            if isinstance(error, InvalidInputError):
                # One bad report must not stop all others for ever.
                self.journal.forget_reports(_refused_reports(str(error), reports))
        else:
            self.sync_backoff.succeeded()
            self.journal.forget_reports(reports)
            wait_s = (
                _DEFAULT_POLL_S if outcome.next_poll_s is None else outcome.next_poll_s
            )
            if outcome.envelope is not None:
                self._take(outcome.envelope)
        self._next_sync = self.clock.monotonic() + wait_s

    # Assignments.

    def _take(self, envelope: str) -> None:
        """Journal a new assignment, if it is one."""
        try:
            assignment = self.offers.read(envelope)
        except UntrustedError as error:
            _log.error("assignment refused: %s", error)
            return
        newest = self._newest_sequence()
        if assignment.sequence <= newest:
            _log.error(
                "assignment %d refused: a replay, %d is known",
                assignment.sequence,
                newest,
            )
            return
        self.journal.save_assignment(
            JournaledAssignment(sequence=assignment.sequence, envelope=envelope)
        )
        _log.info("assignment %d: run %s", assignment.sequence, assignment.release)

    def _newest_sequence(self) -> int:
        """Return the newest sequence known; the slots remember when a journal is lost.

        What a director signed whose key was taken away counts for nothing: it may have
        used up all numbers.
        """
        known = self.journal.assignment()
        if known is not None:
            return known.sequence if self.offers.holds(known.envelope) else 0
        active = self._read_slots().active
        return active.assignment if active is not None else 0

    def _current_assignment(self) -> Assignment | None:
        known = self.journal.assignment()
        if known is None:
            return None
        if known != self._known:
            try:
                self._assignment = self.offers.read(known.envelope)
            except UntrustedError as error:
                _log.error("journaled assignment refused: %s", error)
                self._assignment = None
            self._known = known
        return self._assignment

    # The installation.

    def _advance(self) -> float:
        installation = self.journal.installation()
        if installation is None or installation.state is State.IDLE:
            return self._consider_offer(installation)
        superseded = self._superseded(installation)
        if superseded is not None:
            self._enter(after(superseded, Event.FAIL, now=self.clock.now()))
            return 0.0
        finding = self.actions.perform(installation)
        if finding.event is Event.FAIL and self.stop.is_set():
            # The agent's own end stops the model's process: no verdict on anything. The
            # next start does the action again.
            return 0.0
        if finding.event is None:
            return finding.wait_s
        self._enter(after(finding.installation, finding.event, now=self.clock.now()))
        if finding.event is Event.CLOSE:
            self._next_sync = self.clock.monotonic()
        return finding.wait_s

    def _superseded(self, installation: Installation) -> Installation | None:
        """A newer assignment ends an installation that is not decided."""
        known = self.journal.assignment()
        if installation.state in ENDED or known is None:
            return None
        if known.sequence <= installation.assignment:
            return None
        return failed(installation, f"superseded by assignment {known.sequence}")

    def _consider_offer(self, before: Installation | None) -> float:
        mended = self._mend_serving()
        if mended is not None:
            _log.warning("slots: %s", mended)
        assignment = self._current_assignment()
        if assignment is None or not self._wants(assignment):
            return _LONGEST_STEP_S
        idle = Installation(
            assignment=assignment.sequence,
            state=State.IDLE,
            entered_at=before.entered_at if before is not None else 0.0,
        )
        self._enter(after(idle, Event.OFFER, now=self.clock.now()))
        return 0.0

    def _wants(self, assignment: Assignment) -> bool:
        active = self._read_slots().active
        if active is not None and (active.release, active.variant) == (
            assignment.release,
            assignment.variant,
        ):
            return False
        if any(
            entry.variant == assignment.variant for entry in self.journal.quarantined()
        ):
            return False
        outcome = self.journal.outcome_of(assignment.sequence)
        return outcome is None or outcome.state is not State.ROLLED_BACK

    def _enter(self, installation: Installation) -> None:
        self.journal.enter(installation)
        said = f": {installation.reason}" if installation.reason else ""
        _log.info(
            "installation %d is %s%s", installation.assignment, installation.state, said
        )

    def _count_crash(self) -> None:
        """An action that fails in an unforeseen way counts as entered again: it ends."""
        try:
            installation = self.journal.installation()
            if installation is None or installation.state in {State.IDLE, *ENDED}:
                return
            known = replace(installation, reason="unexpected error; see the log")
            self._enter(resumed(known, now=self.clock.now()))
        except SlmopsError as error:
            _log.warning("loop: %s", error)

    # Slots.

    def _read_slots(self) -> Slots:
        """Read the pointer; fall back on the journal's copy when it is damaged."""
        try:
            return self.slots.read()
        except InvalidInputError as error:
            copy = self.journal.slots_copy() or Slots()
            _log.error("slots: %s; the journal's copy is used", error)
            self.slots.write(copy)
            return copy

    def _healed(self) -> tuple[Slots, str | None]:
        self._read_slots()
        slots, mended = self.slots.heal()
        if slots.active is not None:
            self.journal.save_slots_copy(slots)
        return slots, mended

    def _mend_serving(self) -> str | None:
        """Fall back when the serving artefact was found damaged at a restart of its child."""
        if not self.models.artefact_lost:
            return None
        self.models.artefact_lost = False
        slots, mended = self._healed()
        if mended is None:
            return None
        if slots.active is not None:
            self.models.want(slots.active)
        else:
            self.models.serve_none(
                "the model on this device is damaged; it is fetched anew"
            )
        return mended

    # Sync.

    def _close_windows(self) -> None:
        serving = self.models.serving
        if serving is not None:
            peak = serving.peak_rss_mib()
            if peak is not None:
                self.telemetry.used_memory(serving.deployment.release, peak)
        self.telemetry.close_windows(
            lambda: self.journal.next_report_sequence(now=self.clock.now()),
            self.journal.add_report,
        )

    def _request(self, reports: tuple[Report, ...]) -> SyncRequest:
        slots = self._read_slots()
        installation = self.journal.installation()
        if installation is None or installation.state is State.IDLE:
            installation = self.journal.last_outcome()
        with contextlib.suppress(OSError):
            facts = with_disk(self.identity.facts, self.disk_mib())
            self.identity = replace(self.identity, facts=facts)
        return SyncRequest(
            facts=self.identity.facts,
            labels=self.identity.labels,
            assignment=self._newest_sequence(),
            active=slots.active.installed if slots.active else None,
            previous=slots.previous.installed if slots.previous else None,
            quarantined=self._quarantined(),
            installation=installation.report() if installation else None,
            reports=reports,
        )

    def _quarantined(self) -> tuple[Digest, ...]:
        entries = sorted(self.journal.quarantined(), key=lambda entry: entry.at)
        return tuple(entry.variant for entry in entries[-MAX_QUARANTINED_SENT:])


def _refused_reports(message: str, sent: tuple[Report, ...]) -> tuple[Report, ...]:
    """Return the reports that a refusal names; none when it is about something else."""
    named = _REPORT.match(message)
    if named is None:
        return ()
    if named[1] is None:
        return sent
    index = int(named[1])
    return sent[index : index + 1]
