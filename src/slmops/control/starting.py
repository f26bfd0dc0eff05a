"""What a rollout would be if it started now: pure, so a preview shows what a start does."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from slmops.control.membership import membership, why_nobody
from slmops.control.records import DeviceRecord, LeftOut, Placed, StoredRollout
from slmops.control.start_rules import (
    require_lab,
    require_no_downgrade,
    require_reachable_deadline,
)
from slmops.domain.errors import ConflictError
from slmops.domain.ids import Digest
from slmops.domain.members import Outcome, may_run_release
from slmops.domain.release import Release
from slmops.domain.rollout import Rollout, RolloutState
from slmops.domain.sync import Installed
from slmops.domain.waves import Candidate, build_waves


@dataclass(frozen=True, kw_only=True, slots=True)
class StartOrder:
    """Who starts a rollout, and what they allow."""

    by: str = "operator"
    """Operator."""
    allow_downgrade: bool = False
    """A newer release may have been rolled out before."""
    despite_quarantine: bool = False
    """Variants may have failed in a rollout that halted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Planned:
    """A rollout that could start."""

    rollout: Rollout
    """Without an id yet."""
    placed: tuple[Placed, ...]
    """Its members, with their waves."""
    left_out: tuple[LeftOut, ...]
    """Devices that it does not reach, and why."""


def plan_start(
    release: Release,
    digest: Digest,
    order: StartOrder,
    devices: Sequence[DeviceRecord],
) -> Planned:
    """Deal a release to the fleet.

    Raises:
        ConflictError: no device fits, or a class has no lab device though it must.
    """
    placed, left_out = membership(release, devices, salt=digest)
    if not placed:
        raise ConflictError(
            f"release {release.label} reaches no device: {why_nobody(left_out)}"
        )
    lab = require_lab(release, [one.member for one in placed], devices)
    rollout = Rollout(
        id="r-0",
        release=release.label,
        policy=release.blueprint.rollout,
        classes=tuple(sorted({one.member.device_class for one in placed})),
        waves=len(release.blueprint.rollout.waves) + int(lab),
        allow_downgrade=order.allow_downgrade,
        lab=lab,
        state=_first_state(release),
        started_by=order.by,
    )
    return Planned(rollout=rollout, placed=tuple(placed), left_out=tuple(left_out))


def require_may_start(
    release: Release,
    order: StartOrder,
    rollouts: Sequence[StoredRollout],
    quarantined: Mapping[tuple[str, Digest], str],
    *,
    poll_s: float,
) -> None:
    """See that nothing speaks against starting.

    Raises:
        ConflictError: a downgrade, or a quarantined variant, that is not allowed.
        InvalidInputError: no device could meet its deadline.
    """
    policy = release.blueprint.rollout
    require_reachable_deadline(release.label, policy, poll_s=poll_s)
    require_no_downgrade(release, rollouts, allowed=order.allow_downgrade)
    if order.despite_quarantine:
        return
    for variant in release.variants:
        for name in variant.classes:
            where = quarantined.get((name, variant.digest))
            if where is not None:
                raise ConflictError(
                    f"release {release.label}: its variant for class {name}"
                    f" ({variant.digest[:19]}…) failed in rollout {where}, which halted;"
                    " build another one, or insist with --despite-quarantine"
                )


def failed_variants(
    stored: StoredRollout, placed: Iterable[Placed], release: Release
) -> dict[tuple[str, Digest], str]:
    """Return the variants that failed in a rollout that a gate halted.

    Returns:
        (class, digest of the artefact) → the rollout's id.
    """
    classes = {
        one.member.device_class
        for one in placed
        if one.member.outcome in {Outcome.FAILED, Outcome.SILENT}
    }
    return {
        (name, variant.digest): stored.rollout.id
        for variant in release.variants
        for name in variant.classes
        if name in classes
    }


def plan_revert(
    stored: StoredRollout,
    placed: Sequence[Placed],
    devices: Sequence[DeviceRecord],
    *,
    by: str,
) -> Planned:
    """Plan a rollout that brings a finished one's devices back, wave by wave.

    Its release is the one that most of them came from; whoever came from another one, or
    from none, is left out. Its waves and gates are the finished rollout's.

    Raises:
        ConflictError: the rollout is not done, or nobody can go back.
    """
    before = stored.rollout
    if before.state is not RolloutState.DONE:
        raise ConflictError(
            f"rollout {before.id} is {before.state}: only one that is done is reverted by"
            " a rollout; end this one with `slmops rollout abort --revert`"
        )
    ways, left_out = _ways_back(before, placed, {one.id: one for one in devices})
    if not ways:
        why = left_out[0].reason if left_out else "no device runs it"
        raise ConflictError(f"rollout {before.id} cannot be reverted: {why}")
    target = Counter(way.release for way in ways.values()).most_common(1)[0][0]
    for device, way in ways.items():
        if way.release != target:
            reason = f"came from {way.release}, this goes back to {target}"
            left_out.append(LeftOut(device=device, reason=reason))
    going = [
        one
        for one in placed
        if one.member.device in ways and ways[one.member.device].release == target
    ]
    waves = build_waves(
        [
            Candidate(
                device=one.member.device,
                device_class=one.member.device_class,
                site=one.member.site,
            )
            for one in going
        ],
        before.policy,
        salt=f"revert:{before.id}",
    )
    rollout = Rollout(
        id="r-0",
        release=target,
        policy=before.policy,
        classes=tuple(sorted({one.member.device_class for one in going})),
        waves=len(before.policy.waves),
        allow_downgrade=True,
        reverts=before.id,
        started_by=by,
        state=RolloutState.DRAFT if before.policy.approvals else RolloutState.RUNNING,
    )
    members = tuple(_anew(one, waves[one.member.device]) for one in going)
    return Planned(rollout=rollout, placed=members, left_out=tuple(left_out))


def _first_state(release: Release) -> RolloutState:
    wanted = release.blueprint.rollout.approvals
    return RolloutState.DRAFT if wanted else RolloutState.RUNNING


def _ways_back(
    before: Rollout, placed: Sequence[Placed], devices: Mapping[str, DeviceRecord]
) -> tuple[dict[str, Installed], list[LeftOut]]:
    ways, left_out = {}, []
    for one in placed:
        name = one.member.device
        record = devices.get(name)
        if record is None or record.retired_at is not None:
            continue
        active = record.status.active
        runs_it = active is not None and active.release == before.release
        if not runs_it or not may_run_release(one.member):
            continue
        # What was noted at the offer: the slot beside may hold what came later.
        if one.before is not None and one.before.release != before.release:
            ways[name] = one.before
        else:
            reason = "nothing to go back to: it ran no other release before"
            left_out.append(LeftOut(device=name, reason=reason))
    return ways, left_out


def _anew(one: Placed, wave: int) -> Placed:
    member = replace(
        one.member,
        wave=wave,
        offered_at=None,
        outcome=Outcome.PENDING,
        reason="",
        paired_loss=None,
        live=None,
    )
    return Placed(member=member)
