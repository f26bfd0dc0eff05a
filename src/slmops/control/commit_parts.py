"""Parts of a commit: members as the engine judged them, and notes for the audit log."""

from dataclasses import replace

from slmops.control.records import AuditEntry, Commit, Placed
from slmops.domain.members import Outcome
from slmops.domain.rollout import Rollout


def stays(rollout: Rollout, device: str, why: str, now: float) -> AuditEntry:
    """Note a device that keeps the release although others go back."""
    return AuditEntry(
        at=now,
        actor="engine",
        action="device.stays",
        subject=device,
        detail=f"{rollout.id}: {why}",
    )


def silenced(placed: Placed, deadline_s: float) -> Placed:
    """Return the member as one that was not heard of in time."""
    reason = (
        f"not heard of for {deadline_s:g} s since it committed"
        if placed.member.outcome is Outcome.SUCCEEDED
        else f"no outcome within {deadline_s:g} s of its offer"
    )
    member = replace(placed.member, outcome=Outcome.SILENT, reason=reason)
    return replace(placed, member=member)


def failed(placed: Placed, reason: str) -> Placed:
    """Return the member as one that failed after it committed."""
    member = replace(placed.member, outcome=Outcome.FAILED, reason=reason)
    return replace(placed, member=member)


def unwell(placed: Placed, rollout: Rollout, now: float) -> AuditEntry:
    """Note why a device failed after it committed."""
    return AuditEntry(
        at=now,
        actor="engine",
        action="device.unwell",
        subject=placed.member.device,
        detail=f"{rollout.id}: {placed.member.reason}",
    )


def with_audit(commit: Commit, actor: str, action: str, detail: str) -> Commit:
    """Return the commit with a note about its rollout."""
    entry = AuditEntry(
        at=commit.at,
        actor=actor,
        action=action,
        subject=commit.rollout.id,
        detail=detail,
    )
    return replace(commit, audit=(*commit.audit, entry))
