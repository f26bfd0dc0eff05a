"""What is done in each state of an installation; every action is safe to repeat.

An action does its work and says what it found out as an event of
`slmops.domain.installation`; the table there decides where that leads. Nothing here
writes a state: the loop does, before the next action.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from slmops.agent import trial
from slmops.agent.clock import Clock
from slmops.agent.download import Downloads, Wanted
from slmops.agent.journal import Journal, Quarantined
from slmops.agent.models import Child, Models
from slmops.agent.offers import Offers, require_no_downgrade
from slmops.agent.records import Deployment, Installation, TrialPlan, failed
from slmops.agent.slots import SlotStore
from slmops.agent.telemetry import Telemetry
from slmops.domain.errors import (
    InvalidInputError,
    NotFoundError,
    OverBudgetError,
    SlmopsError,
    UnavailableError,
    UntrustedError,
)
from slmops.domain.installation import Event, State
from slmops.domain.soak import LiveCounts

_MOST_SPOILED = 3
_OF_THE_MODEL = (InvalidInputError, OverBudgetError)
"""It does not load, crashes, or needs too much memory. A missing engine, a process
that somebody killed and bytes that rotted on the disk are not the variant's fault."""
_END_S = 2.0
_SOON_S = 0.2
_RETRY_S = 5.0
_WAIT_S = 30.0
_OLD_MODEL_S = 60.0
_log = logging.getLogger("slmops.agent")


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What an action found out."""

    installation: Installation
    """With what is new in it; its state is unchanged."""
    event: Event | None = None
    """None: nothing decided yet, ask again."""
    wait_s: float = 0.0
    """When to ask again, seconds."""


@dataclass(kw_only=True, slots=True)
class Actions:
    """The actions and what they act on."""

    journal: Journal
    slots: SlotStore
    models: Models
    downloads: Downloads
    offers: Offers
    telemetry: Telemetry
    clock: Clock
    memory_mib: int
    """The owner's limit: two models at once must fit into it."""
    obstacle: Callable[[int], str | None]
    """Says what stands against downloading so many bytes now: disk, battery."""
    pause: Callable[[], bool]
    """Says that a download should pause, because the loop has other things to do."""
    _trial: Child | None = None
    _promoted_at: float | None = None
    _promoted_counts: LiveCounts = field(default_factory=LiveCounts)

    def perform(self, installation: Installation) -> Finding:
        """Do the action of the installation's state."""
        action = _ACTIONS[installation.state]
        return action(self, installation)

    def offered(self, now: Installation) -> Finding:
        """Check signatures, both signers, and whether it fits."""
        known = self.journal.assignment()
        if known is None:
            return _fail(now, "the assignment is no longer journaled")
        try:
            assignment = self.offers.read(known.envelope)
            slots = self.slots.read()
            require_no_downgrade(assignment, slots)
            deployment, plan = self.offers.check(assignment, slots=slots)
            # The check learns who directs now: a key that was taken away since counts
            # for nothing.
            self.offers.read(known.envelope)
        except UnavailableError as error:
            return self._later(now, str(error), wait_s=_RETRY_S)
        except (NotFoundError, UntrustedError) as error:
            return self._doubted(now, error)
        except SlmopsError as error:
            return _fail(now, f"offer refused: {error}")
        if deployment.variant in self._quarantined():
            return _fail(now, f"variant {deployment.variant[:19]}… is quarantined here")
        return Finding(
            installation=replace(
                now, target=deployment, plan=plan, spoiled_downloads=0
            ),
            event=Event.ACCEPT,
        )

    def _doubted(self, now: Installation, error: SlmopsError) -> Finding:
        """Ask again a few times: one answer of a proxy must not refuse it for good."""
        again = replace(now, spoiled_downloads=now.spoiled_downloads + 1)
        if again.spoiled_downloads >= _MOST_SPOILED:
            return _fail(again, f"offer refused: {error}")
        return self._later(again, f"offer doubted: {error}", wait_s=_RETRY_S)

    def waiting(self, now: Installation) -> Finding:
        """Wait until disk and battery allow it."""
        wanted = _wanted(_target(now))
        obstacle = self.obstacle(sum(map(self.downloads.missing_bytes, wanted)))
        if obstacle is not None:
            return self._later(now, obstacle, wait_s=_WAIT_S)
        return Finding(installation=now, event=Event.READY)

    def downloading(self, now: Installation) -> Finding:
        """Fetch for a while; verify once all bytes are here."""
        wanted = _wanted(_target(now))
        before = self.downloads.received_bytes
        try:
            missing = [each for each in wanted if not self.downloads.finish(each)]
            if not missing:
                return Finding(installation=now, event=Event.FETCHED)
            self.downloads.fetch(missing[0], pause=self.pause)
        except UntrustedError as error:
            return _spoiled(self._counted(now, before), str(error))
        except UnavailableError as error:
            return self._later(self._counted(now, before), str(error), wait_s=_RETRY_S)
        except OSError as error:
            reason = f"disk: {error.strerror or error}"
            more = replace(self._counted(now, before), reason=reason)
            return Finding(installation=more, event=Event.DEFER, wait_s=_WAIT_S)
        more = replace(self._counted(now, before), reason="")
        self.journal.note(more)
        return Finding(installation=more)

    def _counted(self, now: Installation, before: int) -> Installation:
        """Add what arrived, also when the connection broke after it."""
        more = self.downloads.received_bytes - before
        return replace(now, bytes_downloaded=now.bytes_downloaded + more)

    def verified(self, now: Installation) -> Finding:
        """Verify once more what is on the disk; take the old model's golden scores."""
        target, plan = _target(now), _plan(now)
        try:
            self.slots.verified(target)
        except (NotFoundError, UntrustedError) as error:
            return _fail(now, str(error))
        if self._old_is_loading(now):
            return Finding(installation=now, wait_s=_SOON_S)
        scores = None
        if not plan.revert:
            scores = trial.baseline(self.models.serving, plan.golden)
        return Finding(installation=replace(now, baseline=scores), event=Event.PREPARED)

    def staged(self, now: Installation) -> Finding:
        """Point at the new slot."""
        self.journal.save_slots_copy(self.slots.activate(_target(now)))
        return Finding(installation=now, event=Event.ACTIVATED)

    def switched(self, now: Installation) -> Finding:
        """Start the new model: beside the old one where both fit, after it otherwise."""
        try:
            self._ensure_trial(_target(now))
        except SlmopsError as error:
            return _fail(
                now,
                f"the new model does not start: {error}",
                variant_at_fault=isinstance(error, _OF_THE_MODEL),
            )
        return Finding(installation=now, event=Event.SERVING)

    def probation(self, now: Installation) -> Finding:
        """Golden prompts first, then live traffic for the soak."""
        target, plan = _target(now), _plan(now)
        try:
            child = self._ensure_trial(target)
            result = now.trial or trial.golden_trial(child, plan, now.baseline)
        except SlmopsError as error:
            return _fail(
                now, f"trial: {error}", variant_at_fault=self._crashed_or_refused(error)
            )
        if now.trial is None:
            now = replace(now, trial=result)
            self.journal.note(now)
        if not result.passed:
            at_fault = trial.variant_at_fault(plan, result)
            return _fail(now, result.reason, variant_at_fault=at_fault)
        return self._soak(now, child, plan)

    def committed(self, now: Installation) -> Finding:
        """Record the outcome; forget what is no longer needed."""
        if self._trial is not None and self.models.serving is not self._trial:
            self._promote(self._trial)
        self._trial, self._promoted_at = None, None
        self._end(now)
        return Finding(installation=now, event=Event.CLOSE)

    def rolled_back(self, now: Installation) -> Finding:
        """Return to the old model; never try this variant again if it is to blame."""
        target = now.target
        if target is not None:
            slots = self.slots.roll_back(target)
            self.journal.save_slots_copy(slots)
            self._serve_again(target, slots.active)
            held = slots.active is not None and slots.active.variant == target.variant
            if now.variant_at_fault and not held:
                self.journal.quarantine(
                    Quarantined(
                        variant=target.variant,
                        release=target.release,
                        reason=now.reason,
                        at=self.clock.now(),
                    )
                )
        self._end(now)
        return Finding(installation=now, event=Event.CLOSE)

    # Parts of actions.

    def _soak(self, now: Installation, child: Child, plan: TrialPlan) -> Finding:
        release = child.deployment.release
        if self._promoted_at is None:
            self._promote(child)
        begun = self._promoted_at or 0.0
        counts = self.telemetry.live(release).since(self._promoted_counts)
        serving = self.models.serving
        if serving is None or not serving.worker.alive():
            if not counts.restarts:
                # The supervisor sees its death in a moment and counts it.
                return Finding(installation=now, wait_s=_SOON_S)
            peak = None
        else:
            peak = serving.peak_rss_mib()
        problem = trial.soak_problem(plan, counts, peak)
        if problem is not None:
            result = (
                replace(now.trial, passed=False, reason=problem) if now.trial else None
            )
            at_fault = trial.soak_blames(plan, counts, peak)
            return _fail(replace(now, trial=result), problem, variant_at_fault=at_fault)
        left = plan.probation_s - (self.clock.monotonic() - begun)
        if left > 0:
            return Finding(installation=now, wait_s=min(left, _SOON_S))
        return Finding(installation=now, event=Event.PROVED)

    def _promote(self, child: Child) -> None:
        self._promoted_counts = self.telemetry.live(child.deployment.release)
        self._promoted_at = self.clock.monotonic()
        before = self.models.promote(child)
        if before is not None:
            self.models.retire(before)

    def _ensure_trial(self, target: Deployment) -> Child:
        """Return the running child of the new model; start it when there is none."""
        if self._trial is not None and self._trial.deployment == target:
            child = self._trial
            # Once promoted, the supervisor looks after it and counts its deaths.
            if child.worker.alive() or self._promoted_at is not None:
                return child
            crashed, reason = child.worker.await_end(), child.worker.exit_reason()
            self._trial = None
            self.models.stop(child)
            kind = InvalidInputError if crashed else UnavailableError
            raise kind(f"its process ended before the trial did ({reason})")
        overlap = self._fits_beside(target)
        if not overlap:
            self.models.make_room()
        self._promoted_at = None
        self._trial = self.models.start(target)
        if not overlap:
            self._promote(self._trial)
        return self._trial

    def _crashed_or_refused(self, error: SlmopsError) -> bool:
        """Tell whether a broken trial is the model's fault: it crashed, or said no.

        Somebody who kills it, and a device too busy to answer, are not.
        """
        if isinstance(error, UnavailableError) and self._trial is not None:
            return self._trial.worker.await_end(_END_S)
        return isinstance(error, _OF_THE_MODEL)

    def _fits_beside(self, target: Deployment) -> bool:
        serving, wanted = self.models.serving, self.models.wanted
        if wanted is None:
            return True
        old_mib = serving.peak_rss_mib() if serving is not None else None
        if old_mib is None:
            old_mib = wanted.expected_peak_mib
        return old_mib + target.expected_peak_mib <= self.memory_mib

    def _old_is_loading(self, now: Installation) -> bool:
        """The baseline is worth waiting for, but not on a model that never comes up."""
        loading = self.models.serving is None and self.models.wanted is not None
        return loading and self.clock.now() - now.entered_at < _OLD_MODEL_S

    def _serve_again(self, target: Deployment, old: Deployment | None) -> None:
        """Leave the new model; serve the old one, requests waiting meanwhile."""
        child, self._trial, self._promoted_at = self._trial, None, None
        serving = self.models.serving
        if child is not None and child is not serving:
            self.models.stop(child)
        if serving is not None and serving.deployment != target:
            return
        if old is None:
            self.models.serve_none(
                f"{target.release} was rolled back; nothing else is here"
            )
            return
        if serving is not None:
            self.models.make_room()
        self.models.want(old)

    def _end(self, now: Installation) -> None:
        self.journal.close_outcome(now)
        self.downloads.discard_all()
        self.slots.collect_garbage()

    def _later(self, now: Installation, reason: str, *, wait_s: float) -> Finding:
        """Stay in the state; journal only what is new: it waits for days if need be."""
        later = replace(now, reason=reason)
        if later != self.journal.installation():
            _log.info("installation %s: %s", now.state, reason)
            self.journal.note(later)
        return Finding(installation=later, wait_s=wait_s)

    def _quarantined(self) -> frozenset[str]:
        return frozenset(entry.variant for entry in self.journal.quarantined())


_ACTIONS: dict[State, Callable[[Actions, Installation], Finding]] = {
    State.OFFERED: Actions.offered,
    State.WAITING: Actions.waiting,
    State.DOWNLOADING: Actions.downloading,
    State.VERIFIED: Actions.verified,
    State.STAGED: Actions.staged,
    State.SWITCHED: Actions.switched,
    State.PROBATION: Actions.probation,
    State.COMMITTED: Actions.committed,
    State.ROLLED_BACK: Actions.rolled_back,
}


def _fail(now: Installation, reason: str, *, variant_at_fault: bool = False) -> Finding:
    return Finding(
        installation=failed(now, reason, variant_at_fault=variant_at_fault),
        event=Event.FAIL,
    )


def _spoiled(now: Installation, reason: str) -> Finding:
    """Wrong bytes: begin anew a few times, because a proxy may be to blame."""
    spoiled = replace(now, reason=reason, spoiled_downloads=now.spoiled_downloads + 1)
    if spoiled.spoiled_downloads >= _MOST_SPOILED:
        return _fail(spoiled, f"{reason}, {spoiled.spoiled_downloads} times")
    return Finding(installation=spoiled, event=Event.DEFER)


def _wanted(target: Deployment) -> tuple[Wanted, ...]:
    return tuple(
        Wanted(digest=digest, length=length) for digest, length in target.artefacts
    )


def _target(now: Installation) -> Deployment:
    assert now.target is not None, f"{now.state} without a target"  # noqa: S101 - table
    return now.target


def _plan(now: Installation) -> TrialPlan:
    assert now.plan is not None, f"{now.state} without a plan"  # noqa: S101 - table
    return now.plan
