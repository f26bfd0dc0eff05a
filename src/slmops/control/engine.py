"""The rollout engine: read a snapshot, let the domain decide, commit, next.

Every decision is the pure `advance` of `slmops.domain.rollout`; here is only the shell.
A pass commits with the revision it read, so two engines never both act on one state.
Assignments are rows of that same commit: whatever is killed when, a device has one
target per sequence number and nothing decided is lost.
"""

from dataclasses import replace
from itertools import groupby

from slmops.control.commit_parts import (
    with_audit,
)
from slmops.control.effects import Effects, retired_devices
from slmops.control.membership import membership
from slmops.control.records import (
    AuditEntry,
    Commit,
    StoredRollout,
)
from slmops.control.releases import KnownReleases
from slmops.control.retirement import leave_out_retired
from slmops.control.starting import (
    Planned,
    StartOrder,
    failed_variants,
    plan_revert,
    plan_start,
    require_may_start,
)
from slmops.control.store import Store
from slmops.control.ways_back import (
    require_no_newer_running,
)
from slmops.domain.blueprint import OnHalt
from slmops.domain.command import Command, apply_command
from slmops.domain.errors import ConflictError
from slmops.domain.gate import Verdict
from slmops.domain.ids import Digest
from slmops.domain.members import Member
from slmops.domain.release import Release
from slmops.domain.rollout import (
    ENDED,
    Rollout,
    RolloutState,
    Step,
    advance,
    late_joiner_wave,
)

_ATTEMPTS = 5
_ORDINARY = StartOrder()


class Engine:
    """Moves rollouts. Not for use from two threads at once."""

    def __init__(self, store: Store, releases: KnownReleases, *, poll_s: float) -> None:
        self.store = store
        self._poll_s = poll_s
        self.releases = releases
        self._effects = Effects(store, releases)
        self._devices_changed = True
        self._heard: dict[str, float] = {}
        self._listening_since: float | None = None

    def heard(self, device: str, now: float) -> None:
        """Note that a device was heard of: the store learns of it only later."""
        self._heard[device] = now

    def devices_changed(self) -> None:
        """Look for devices that no rollout knows in the next pass."""
        self._devices_changed = True

    def preview(self, release: Release, digest: Digest, order: StartOrder) -> Planned:
        """Return what `start` would make; raises as it does."""
        require_may_start(
            release,
            order,
            self.store.rollouts(),
            self._quarantined(release.name),
            poll_s=self._poll_s,
        )
        return plan_start(release, digest, order, self.store.devices())

    def start(
        self,
        release: Release,
        digest: Digest,
        now: float,
        order: StartOrder = _ORDINARY,
    ) -> Rollout:
        """Start bringing a release to the fleet.

        Args:
            release: from `KnownReleases.load_verified`, which hashes artefacts: do that
                where it holds nobody up.
            digest: of its document.
            now: Unix time, seconds.
            order: who starts it, and what they allow.

        Raises:
            ConflictError: the product has an active rollout, no device fits, a class has
                no lab device, or it is a downgrade or holds a quarantined variant and
                that is not allowed.
            InvalidInputError: no device could meet its deadline.
        """
        planned = self.preview(release, digest, order)
        self.store.note_release(release.label, digest, now=now)
        return self._create(planned, release.name, now, f"release {release.label}")

    def revert(self, rollout: str, by: str, now: float) -> Rollout:
        """Start a rollout that brings a finished one's devices back.

        Raises:
            ConflictError: it is not done, the product has an active rollout, or nobody
                can go back.
        """
        stored = self.store.rollout(rollout)
        placed = self.store.members(rollout)
        planned = plan_revert(stored, placed, self.store.devices(), by=by)
        detail = f"back to {planned.rollout.release} after {rollout}"
        return self._create(planned, stored.product, now, detail)

    def _create(
        self, planned: Planned, product: str, now: float, detail: str
    ) -> Rollout:
        rollout = replace(planned.rollout, phase_at=now)
        started = StoredRollout(rollout=rollout, product=product, created_at=now)
        created = self.store.create_rollout(started, planned.placed, planned.left_out)
        self._log(now, rollout.started_by, "rollout.start", created.id, detail)
        return created

    def _quarantined(self, product: str) -> dict[tuple[str, Digest], str]:
        """Return the variants that made a rollout of the product halt."""
        found: dict[tuple[str, Digest], str] = {}
        for stored in self.store.rollouts():
            rollout = stored.rollout
            if stored.product != product or not self._was_halted(rollout):
                continue
            release, _ = self.releases.load(rollout.release)
            found |= failed_variants(stored, self.store.members(rollout.id), release)
        return found

    def _was_halted(self, rollout: Rollout) -> bool:
        if rollout.state not in {RolloutState.HALTED, RolloutState.ABORTED}:
            return False
        verdicts = self.store.evaluations(rollout.id)
        return any(one.result.verdict is Verdict.FAIL for one in verdicts)

    def command(
        self, rollout: str, command: Command, now: float, *, by: str, reason: str = ""
    ) -> Rollout:
        """Carry out an operator's command.

        Raises:
            ConflictError: not allowed in this state; the message says what is.
            NotFoundError: no such rollout.
        """
        for attempt in range(_ATTEMPTS):
            stored = self.store.rollout(rollout)
            placed = self.store.members(rollout)
            members = [one.member for one in placed]
            reverting = command is Command.ABORT_REVERT
            if reverting:
                require_no_newer_running(stored, self.store.rollouts())
            step = apply_command(stored.rollout, members, command, by=by, reason=reason)
            commit = self._effects.commit_of(
                stored.rollout, placed, step, now, reverting=reverting
            )
            if commit is None:
                return stored.rollout
            noted = with_audit(commit, by, f"rollout.{command.value}", reason)
            try:
                return self.store.commit(noted)
            except ConflictError:
                if attempt + 1 == _ATTEMPTS:
                    raise
        raise AssertionError("unreachable: the loop returns or raises")

    def stop_everything(self, reason: str, now: float, *, by: str) -> list[Rollout]:
        """End every rollout that has not ended, and bring its devices back.

        A device that is away learns of it first of all: its newest assignment is the one
        it gets when it returns.
        """
        going = [one.rollout for one in self.store.rollouts()]
        return [
            self.command(one.id, Command.ABORT_REVERT, now, by=by, reason=reason)
            for one in going
            if one.state not in ENDED
        ]

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
        commit = self._effects.commit_of(
            stored.rollout, placed, step, now, reverting=reverting
        )
        if commit is None:
            return False
        if step.rollout.state is not stored.rollout.state:
            action = f"rollout.{step.rollout.state.value}"
            commit = with_audit(commit, "engine", action, step.rollout.reason)
            # A finished rollout takes in the devices that came too late for it.
            self._devices_changed = True
        self.store.commit(commit)
        self._effects.evidence.keep(commit.evaluations)
        return True

    def _as_heard(self, member: Member) -> Member:
        heard = max(member.seen_at or 0.0, self._heard.get(member.device, 0.0))
        return replace(member, seen_at=heard or None)

    def _leave_out_retired(self, stored: StoredRollout, now: float) -> bool:
        """Settle devices that were retired while the rollout runs."""
        if stored.rollout.state in ENDED:
            return False
        placed = self.store.members(stored.rollout.id)
        commit = leave_out_retired(
            stored.rollout, placed, retired_devices(self.store), now
        )
        if commit is None:
            return False
        self.store.commit(commit)
        return True

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
        offered, targets = self._effects.offers(step, joining, now)
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
