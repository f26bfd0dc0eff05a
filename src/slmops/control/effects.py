"""A decided step as what is written for it: members, assignments, verdicts, notes."""

from collections.abc import Sequence
from dataclasses import replace

from slmops.control.commit_parts import failed, silenced, stays, unwell
from slmops.control.evidence import Evidence
from slmops.control.records import AuditEntry, Commit, Placed
from slmops.control.releases import KnownReleases
from slmops.control.retirement import REASON
from slmops.control.store import Store
from slmops.control.ways_back import NEWER_HAS_IT, way_back
from slmops.domain.errors import NotFoundError
from slmops.domain.members import Member, may_run_release
from slmops.domain.rollout import Rollout, Step
from slmops.domain.sync import Assignment, Installed


class Effects:
    """Makes commits of steps; reads what that takes, writes nothing."""

    def __init__(self, store: Store, releases: KnownReleases) -> None:
        self._store = store
        self._releases = releases
        self.evidence = Evidence(store)

    def commit_of(
        self,
        before: Rollout,
        placed: Sequence[Placed],
        step: Step,
        now: float,
        *,
        reverting: bool,
    ) -> Commit | None:
        """Turn a step into what is written for it; None when nothing is.

        Args:
            before: the rollout as it was read.
            placed: its members.
            step: what was decided.
            now: Unix time, seconds.
            reverting: bring back whoever has the release or may still get it.
        """
        evaluations = self.evidence.new(before, placed, step, now)
        by_device = {one.member.device: one for one in placed}
        offered, targets = self.offers(step, by_device, now)
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

    def offers(
        self, step: Step, by_device: dict[str, Placed], now: float
    ) -> tuple[list[Placed], list[Assignment]]:
        """Return members as offered, and the assignments that offer them the release."""
        if not step.offer:
            return [], []
        records = {record.id: record for record in self._store.devices()}
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
        release, digest = self._releases.load(rollout.release)
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
            revert=rollout.reverts is not None,
        )

    def _reverts(
        self, step: Step, placed: Sequence[Placed], now: float
    ) -> tuple[list[Assignment], list[AuditEntry]]:
        """Bring back whoever has the release or may still get it."""
        back, notes = [], []
        rollout = step.rollout
        told = frozenset(self._store.going_back(rollout.id))
        stuck = dict.fromkeys(self._store.moved_on(rollout.id), NEWER_HAS_IT)
        stuck |= dict.fromkeys(self._retired(), REASON)
        records = {record.id: record for record in self._store.devices()}
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
        _, digest = self._releases.load(target.release)
        return replace(
            self._target(rollout, member, now),
            release=target.release,
            release_digest=digest,
            variant=target.variant,
            revert=True,
        )

    def _retired(self) -> frozenset[str]:
        return retired_devices(self._store)


def retired_devices(store: Store) -> frozenset[str]:
    """Return the devices that the operator took out of the fleet."""
    return frozenset(
        record.id for record in store.devices() if record.retired_at is not None
    )
