"""The rollout engine: read a snapshot, let the domain decide, commit, next.

Every decision is the pure `advance` of `slmops.domain.rollout`; here is only the shell.
A pass commits with the revision it read, so two engines never both act on one state.
Assignments are rows of that same commit: whatever is killed when, a device has one
target per sequence number and nothing decided is lost.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

from slmops.control.commit_parts import (
    failed,
    silenced,
    stays,
    unwell,
    with_audit,
)
from slmops.control.evidence import Evidence
from slmops.control.membership import membership, why_nobody
from slmops.control.records import (
    AuditEntry,
    Commit,
    Placed,
    StoredRollout,
)
from slmops.control.releases import KnownReleases
from slmops.control.retirement import REASON, leave_out_retired
from slmops.control.start_rules import (
    require_no_downgrade,
    require_reachable_deadline,
)
from slmops.control.store import Store
from slmops.control.ways_back import (
    NEWER_HAS_IT,
    require_no_newer_running,
    way_back,
)
from slmops.domain.blueprint import OnHalt
from slmops.domain.command import Command, apply_command
from slmops.domain.errors import ConflictError, NotFoundError
from slmops.domain.ids import Digest
from slmops.domain.members import Member, may_run_release
from slmops.domain.release import Release
from slmops.domain.rollout import (
    ENDED,
    Rollout,
    RolloutState,
    Step,
    advance,
    late_joiner_wave,
)
from slmops.domain.sync import Assignment, Installed

_ATTEMPTS = 5


class Engine:
    """Moves rollouts. Not for use from two threads at once."""

    def __init__(self, store: Store, releases: KnownReleases, *, poll_s: float) -> None:
        self.store = store
        self._poll_s = poll_s
        self.releases = releases
        self._evidence = Evidence(store)
        self._devices_changed = True
        self._heard: dict[str, float] = {}
        self._listening_since: float | None = None

    def heard(self, device: str, now: float) -> None:
        """Note that a device was heard of: the store learns of it only later."""
        self._heard[device] = now

    def devices_changed(self) -> None:
        """Look for devices that no rollout knows in the next pass."""
        self._devices_changed = True

    def start(
        self,
        release: Release,
        digest: Digest,
        now: float,
        *,
        allow_downgrade: bool = False,
    ) -> Rollout:
        """Start bringing a release to the fleet.

        Args:
            release: from `KnownReleases.load_verified`, which hashes artefacts: do that
                where it holds nobody up.
            digest: of its document.
            now: Unix time, seconds.
            allow_downgrade: a release newer than this one may have been rolled out.

        Raises:
            ConflictError: the product has an active rollout, no device fits, or it is a
                downgrade that is not allowed.
            InvalidInputError: no device could meet its deadline.
        """
        label, policy = release.label, release.blueprint.rollout
        require_reachable_deadline(label, policy, poll_s=self._poll_s)
        require_no_downgrade(release, self.store.rollouts(), allowed=allow_downgrade)
        self.store.note_release(label, digest, now=now)
        placed, left_out = membership(release, self.store.devices(), salt=digest)
        if not placed:
            raise ConflictError(
                f"release {label} reaches no device: {why_nobody(left_out)}"
            )
        rollout = Rollout(
            id="r-0",
            release=label,
            policy=policy,
            classes=tuple(sorted({one.member.device_class for one in placed})),
            waves=len(policy.waves),
            allow_downgrade=allow_downgrade,
            phase_at=now,
        )
        started = StoredRollout(rollout=rollout, product=release.name, created_at=now)
        created = self.store.create_rollout(started, placed, left_out)
        self._log(now, "operator", "rollout.start", created.id, f"release {label}")
        return created

    def pause(self, rollout: str, reason: str, now: float) -> Rollout:
        """Offer nothing more until resumed; what was offered goes on."""
        return self._command(rollout, Command.PAUSE, now, reason=reason)

    def resume(self, rollout: str, now: float) -> Rollout:
        """Go on after a pause."""
        return self._command(rollout, Command.RESUME, now)

    def abort(self, rollout: str, keep: bool, now: float) -> Rollout:
        """End it; `keep` leaves devices on the release, else they go back."""
        command = Command.ABORT_KEEP if keep else Command.ABORT_REVERT
        return self._command(rollout, command, now)

    def retire(self, device: str, now: float) -> bool:
        """Take a device out of the fleet; running rollouts settle it in the next pass.

        Raises:
            NotFoundError: no such device.
        """
        retired = self.store.retire(device, now=now)
        self.devices_changed()
        return retired

    def run_pass(self, now: float) -> bool:
        """Take one step of every rollout that has one; True when anything changed."""
        changed = False
        if self._listening_since is None:
            self._listening_since = now
        looking, self._devices_changed = self._devices_changed, False
        for stored in self._current():
            try:
                if looking:
                    changed |= self._leave_out_retired(stored, now)
                    stored = self.store.rollout(stored.rollout.id)
                    changed |= self._let_join(stored, now)
                    stored = self.store.rollout(stored.rollout.id)
                changed |= self._step(stored, now)
            except ConflictError:
                # Somebody else moved it: the next pass sees the truth.
                self._devices_changed = changed = True
        return changed

    def _current(self) -> list[StoredRollout]:
        """Return each product's newest finished rollout, and its active one.

        In this order: a device new to both is sent to the active one's release last.
        """
        wanted = []
        newest_first = sorted(self.store.rollouts(), key=lambda one: one.product)
        for _, group in groupby(newest_first, key=lambda one: one.product):
            rollouts = list(group)
            done = [one for one in rollouts if one.rollout.state is RolloutState.DONE]
            wanted += done[:1]
            wanted += [one for one in rollouts if one.rollout.state not in ENDED]
        return wanted

    def _step(self, stored: StoredRollout, now: float) -> bool:
        if stored.rollout.state in ENDED:
            return False
        placed = self.store.members(stored.rollout.id)
        release, _ = self.releases.load(stored.rollout.release)
        members = [self._as_heard(one.member) for one in placed]
        step = advance(
            stored.rollout,
            members,
            now,
            max_paired_loss=release.blueprint.golden.max_paired_loss,
            budgets={one.name: one.budget for one in release.classes},
            listening_since=self._listening_since or 0.0,
        )
        halted = step.rollout.state is RolloutState.HALTED
        reverting = halted and stored.rollout.policy.on_halt is OnHalt.REVERT
        commit = self._commit_of(stored.rollout, placed, step, now, reverting=reverting)
        if commit is None:
            return False
        if step.rollout.state is not stored.rollout.state:
            action = f"rollout.{step.rollout.state.value}"
            commit = with_audit(commit, "engine", action, step.rollout.reason)
            # A finished rollout takes in the devices that came too late for it.
            self._devices_changed = True
        self.store.commit(commit)
        self._evidence.keep(commit.evaluations)
        return True

    def _as_heard(self, member: Member) -> Member:
        heard = max(member.seen_at or 0.0, self._heard.get(member.device, 0.0))
        return replace(member, seen_at=heard or None)

    def _command(
        self, rollout: str, command: Command, now: float, *, reason: str = ""
    ) -> Rollout:
        for attempt in range(_ATTEMPTS):
            stored = self.store.rollout(rollout)
            placed = self.store.members(rollout)
            members = [one.member for one in placed]
            if command is Command.ABORT_REVERT:
                require_no_newer_running(stored, self.store.rollouts())
            step = apply_command(stored.rollout, members, command, reason=reason)
            reverting = command is Command.ABORT_REVERT
            commit = self._commit_of(
                stored.rollout, placed, step, now, reverting=reverting
            )
            if commit is None:
                return stored.rollout
            action = f"rollout.{command.value}"
            try:
                return self.store.commit(with_audit(commit, "operator", action, reason))
            except ConflictError:
                if attempt + 1 == _ATTEMPTS:
                    raise
        raise AssertionError("unreachable: the loop returns or raises")

    def _commit_of(
        self,
        before: Rollout,
        placed: Sequence[Placed],
        step: Step,
        now: float,
        *,
        reverting: bool,
    ) -> Commit | None:
        """Turn a step into what is written for it; None when nothing is."""
        evaluations = self._evidence.new(before, placed, step, now)
        by_device = {one.member.device: one for one in placed}
        offered, targets = self._offers(step, by_device, now)
        silent = [
            silenced(by_device[device], before.policy.deadline_s)
            for device in step.silent
        ]
        sick = [
            failed(by_device[device], reason) for device, reason in step.unwell.items()
        ]
        back, notes = self._reverts(step, placed, now) if reverting else ([], [])
        judged = (*offered, *silent, *sick)
        if step.rollout == before and not (judged or evaluations or back):
            return None
        return Commit(
            rollout=step.rollout,
            at=now,
            members=judged,
            assignments=(*targets, *back),
            evaluations=evaluations,
            audit=(*notes, *(unwell(one, before, now) for one in sick)),
        )

    def _offers(
        self, step: Step, by_device: dict[str, Placed], now: float
    ) -> tuple[list[Placed], list[Assignment]]:
        if not step.offer:
            return [], []
        records = {record.id: record for record in self.store.devices()}
        offered, targets = [], []
        for device in step.offer:
            placed = by_device[device]
            offered.append(
                Placed(
                    member=replace(placed.member, offered_at=now),
                    before=records[device].status.active,
                )
            )
            targets.append(self._target(step.rollout, placed.member, now))
        return offered, targets

    def _target(self, rollout: Rollout, member: Member, now: float) -> Assignment:
        release, digest = self.releases.load(rollout.release)
        return Assignment(
            device=member.device,
            sequence=0,  # given by the store
            rollout=rollout.id,
            release=release.label,
            release_digest=digest,
            variant=release.variant_for(member.device_class).digest,
            device_class=member.device_class,
            probation_s=rollout.policy.probation_s,
            issued_at=now,
            allow_downgrade=rollout.allow_downgrade,
        )

    def _reverts(
        self, step: Step, placed: Sequence[Placed], now: float
    ) -> tuple[list[Assignment], list[AuditEntry]]:
        """Bring back whoever has the release or may still get it."""
        back, notes = [], []
        rollout = step.rollout
        told = frozenset(self.store.going_back(rollout.id))
        stuck = dict.fromkeys(self.store.moved_on(rollout.id), NEWER_HAS_IT)
        stuck |= dict.fromkeys(self._retired(), REASON)
        records = {record.id: record for record in self.store.devices()}
        for one in placed:
            device = one.member.device
            if not may_run_release(one.member) or device in told:
                continue
            if device in stuck:
                notes.append(stays(rollout, device, stuck[device], now))
                continue
            try:
                target = way_back(rollout, one, records[device].status)
                back.append(self._revert_to(target, rollout, one.member, now))
            except NotFoundError as error:
                notes.append(stays(rollout, device, str(error), now))
        return back, notes

    def _revert_to(
        self, target: Installed, rollout: Rollout, member: Member, now: float
    ) -> Assignment:
        _, digest = self.releases.load(target.release)
        return replace(
            self._target(rollout, member, now),
            release=target.release,
            release_digest=digest,
            variant=target.variant,
            revert=True,
        )

    def _leave_out_retired(self, stored: StoredRollout, now: float) -> bool:
        """Settle devices that were retired while the rollout runs."""
        if stored.rollout.state in ENDED:
            return False
        placed = self.store.members(stored.rollout.id)
        commit = leave_out_retired(stored.rollout, placed, self._retired(), now)
        if commit is None:
            return False
        self.store.commit(commit)
        return True

    def _retired(self) -> frozenset[str]:
        return frozenset(
            record.id
            for record in self.store.devices()
            if record.retired_at is not None
        )

    def _let_join(self, stored: StoredRollout, now: float) -> bool:
        """Take in devices that enrolled, or got a class, after membership froze."""
        rollout = stored.rollout
        wave = late_joiner_wave(rollout)
        at_once = rollout.state is RolloutState.DONE
        if wave is None and not at_once:
            return False
        release, digest = self.releases.load(rollout.release)
        known = {one.member.device for one in self.store.members(rollout.id)}
        new = [record for record in self.store.devices() if record.id not in known]
        placed, _ = membership(release, new, salt=digest)
        last = rollout.waves - 1
        joining = {
            one.member.device: replace(one, member=replace(one.member, wave=last))
            for one in placed
            if one.member.device_class in rollout.classes or at_once
        }
        if not joining:
            return False
        step = Step(rollout=rollout, offer=tuple(joining) if at_once else ())
        offered, targets = self._offers(step, joining, now)
        self.store.commit(
            Commit(
                rollout=rollout,
                at=now,
                members=tuple(offered or joining.values()),
                assignments=tuple(targets),
            )
        )
        return True

    def _log(
        self, now: float, actor: str, action: str, subject: str, detail: str
    ) -> None:
        self.store.append_audit(
            AuditEntry(
                at=now, actor=actor, action=action, subject=subject, detail=detail
            )
        )
