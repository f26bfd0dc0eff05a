"""A rollout's devices: what became of each, and what all of them show. Pure."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from slmops.domain.device import Budget
from slmops.domain.gate import ClassCount
from slmops.domain.soak import LiveCounts, live_problem

_SHOWN_REASONS = 3


class Outcome(StrEnum):
    """What became of one device's installation in this rollout. Stored; never renamed."""

    PENDING = "pending"
    """Not offered, or offered and still working inside its deadline."""
    SUCCEEDED = "succeeded"
    """Committed, and well since."""
    FAILED = "failed"
    """Rolled back, or committed and then unhealthy. Final."""
    SILENT = "silent"
    """No outcome by the deadline, or not heard of for as long since: counts as failed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """One device of a rollout, as last reported."""

    device: str
    """Device id."""
    device_class: str
    """Class at the time membership froze."""
    wave: int
    """Index of its wave, 0-based; never changes once its wave has begun."""
    offered_at: float | None = None
    """When its assignment was made, Unix seconds; None before."""
    outcome: Outcome = Outcome.PENDING
    """As reported; `advance` turns late PENDING into SILENT."""
    reason: str = ""
    """The device's own reason for a failure."""
    paired_loss: float | None = None
    """From its trial: loss of mean log p against the replaced model, nats a token."""
    live: LiveCounts | None = None
    """What it reported of the release since it committed; None while it does not run it."""
    seen_at: float | None = None
    """When it was last heard of, Unix seconds; None if never."""
    site: str = ""
    """Label ``site`` when membership froze."""
    emulates: str = ""
    """Label ``emulates``: it stands in for a device of that name, under set limits."""


_COUNTED_AS = {
    Outcome.PENDING: "pending",
    Outcome.SUCCEEDED: "succeeded",
    Outcome.FAILED: "failed",
    Outcome.SILENT: "failed",
}


def may_run_release(member: Member) -> bool:
    """Tell whether a device has the release, or may still get it.

    Those in the middle of their installation and silent ones may commit later; those
    that failed after their commit have it; those that rolled back do not.
    """
    rolled_back = member.outcome is Outcome.FAILED and member.live is None
    return member.offered_at is not None and not rolled_back


def on_release(members: Sequence[Member]) -> tuple[str, ...]:
    """Return the devices that run the release, also those that fail since."""
    return tuple(
        member.device
        for member in members
        if member.outcome is Outcome.SUCCEEDED or member.live is not None
    )


def device_reasons(members: Sequence[Member]) -> str:
    """Return what the failed devices say, the first few in words."""
    reasons = [
        f"{member.device} ({member.device_class}): {member.reason or member.outcome}"
        for member in members
        if member.outcome in {Outcome.FAILED, Outcome.SILENT}
    ]
    more = len(reasons) - _SHOWN_REASONS
    shown = "; ".join(reasons[:_SHOWN_REASONS])
    return f"{shown}; and {more} more" if more > 0 else shown


def newly_unwell(
    members: Sequence[Member], budgets: Mapping[str, Budget]
) -> dict[str, str]:
    """Ask of every device that committed what the device asked in its probation."""
    found = {}
    for member in members:
        if member.outcome is Outcome.SUCCEEDED and member.live is not None:
            budget = budgets.get(member.device_class, Budget())
            problem = live_problem(budget, member.live)
            if problem is not None:
                found[member.device] = f"after it committed, {problem}"
    return found


def newly_silent(
    members: Sequence[Member], limit: float, *, listening_since: float
) -> tuple[str, ...]:
    """Return the devices not heard of since `limit`, Unix seconds.

    Of those that committed only where somebody listened all that time.
    """
    mute = Outcome.SUCCEEDED if listening_since < limit else None
    return tuple(
        member.device
        for member in members
        if (
            member.outcome is Outcome.PENDING
            and member.offered_at is not None
            and member.offered_at < limit
        )
        or (member.outcome is mute and (member.seen_at or 0.0) < limit)
    )


def free_to_offer(
    cohort: Sequence[Member], members: Sequence[Member], *, max_per_site: int | None
) -> tuple[str, ...]:
    """Return the devices of a wave to offer now, as far as their sites have places.

    A device takes a place of its site from its offer until it has an outcome; without a
    site it needs none. Who comes first is the frozen order of the wave; the choice
    depends on outcomes that are known, never on a device's own, so the stop rule's
    guarantee holds (`slmops.domain.gate`).
    """
    waiting = [one for one in cohort if one.offered_at is None]
    if max_per_site is None:
        return tuple(one.device for one in waiting)
    at_work = Counter(
        one.site
        for one in members
        if one.offered_at is not None and one.outcome is Outcome.PENDING
    )
    free = []
    for one in waiting:
        if not one.site or at_work[one.site] < max_per_site:
            at_work[one.site] += 1
            free.append(one.device)
    return tuple(free)


def class_counts(
    members: Sequence[Member], classes: Iterable[str]
) -> Mapping[str, ClassCount]:
    """Count offered devices per class, every one once; SILENT counts as failed."""
    tallies: dict[str, Counter[str]] = {name: Counter() for name in classes}
    for member in members:
        kind = _COUNTED_AS[member.outcome]
        if kind != "pending" or member.offered_at is not None:
            tallies.setdefault(member.device_class, Counter())[kind] += 1
    return {
        name: ClassCount(
            succeeded=tally["succeeded"],
            failed=tally["failed"],
            pending=tally["pending"],
        )
        for name, tally in tallies.items()
    }
