"""The snapshot a dashboard shows: one document of bounded size, built from the store."""

from collections import Counter
from dataclasses import dataclass, replace

from slmops.control.drift import Drift
from slmops.control.records import AuditEntry, Evaluation, StoredRollout
from slmops.control.releases import KnownReleases
from slmops.control.store import Store
from slmops.control.views import (
    DeviceView,
    ReleaseView,
    RolloutDetail,
    device_view,
    release_view,
    rollout_detail,
)
from slmops.domain.release import Release

MAX_DEVICES = 500
"""Devices listed one by one; the totals count all."""
MAX_MEMBERS = 2_000
MAX_ROLLOUTS = 8
MAX_EVALUATIONS = 60
MAX_AUDIT = 60


@dataclass(frozen=True, kw_only=True, slots=True)
class Totals:
    """The whole fleet in numbers."""

    devices: int
    """Enrolled."""
    serving: int
    """Have an active release."""
    requests: int
    """Since enrolment."""
    failures: int
    """Since enrolment."""
    bytes_downloaded: int
    """Since enrolment."""
    by_release: dict[str, int]
    """Devices per active release."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """All a dashboard shows."""

    poll_s: float
    """Mean time between a device's syncs: how old last-seen may be."""
    totals: Totals
    """Of all devices."""
    devices: tuple[DeviceView, ...]
    """The first `MAX_DEVICES`, troubled ones before others."""
    rollouts: tuple[RolloutDetail, ...]
    """The newest, newest first."""
    releases: tuple[ReleaseView, ...]
    """Newest first."""
    audit: tuple[AuditEntry, ...]
    """Newest first."""


def take_snapshot(store: Store, releases: KnownReleases, *, poll_s: float) -> Snapshot:
    """Read everything once."""
    newest, orders = releases.newest(), store.newest_assignments()
    views = [
        device_view(record, newest, orders.get(record.id))
        for record in store.devices()
        if record.retired_at is None
    ]
    rollouts = store.rollouts()[:MAX_ROLLOUTS]
    return Snapshot(
        poll_s=poll_s,
        totals=_totals(views),
        devices=tuple(sorted(views, key=_trouble_first)[:MAX_DEVICES]),
        rollouts=tuple(_detail(store, stored) for stored in rollouts),
        releases=_releases(releases),
        audit=store.audit(limit=MAX_AUDIT),
    )


def _totals(views: list[DeviceView]) -> Totals:
    return Totals(
        devices=len(views),
        serving=sum(view.release is not None for view in views),
        requests=sum(view.requests for view in views),
        failures=sum(view.failures for view in views),
        bytes_downloaded=sum(view.bytes_downloaded for view in views),
        by_release=dict(Counter(view.release for view in views if view.release)),
    )


def _trouble_first(view: DeviceView) -> tuple[bool, str]:
    well = view.drift not in {Drift.REFUSED, Drift.ADRIFT}
    return well and view.state != "rolled_back" and view.failures == 0, view.id


def _detail(store: Store, stored: StoredRollout) -> RolloutDetail:
    rollout = stored.rollout.id
    evaluations: tuple[Evaluation, ...] = store.evaluations(rollout)
    full = rollout_detail(
        stored, store.members(rollout), store.left_out(rollout), evaluations
    )
    return _cut(full)


def _cut(full: RolloutDetail) -> RolloutDetail:
    return replace(
        full,
        members=full.members[:MAX_MEMBERS],
        evaluations=full.evaluations[-MAX_EVALUATIONS:],
    )


def _releases(releases: KnownReleases) -> tuple[ReleaseView, ...]:
    found: list[tuple[Release, ReleaseView]] = []
    for label in releases.labels():
        release, digest = releases.load(label)
        found.append((release, release_view(release, digest)))
    found.sort(key=lambda pair: pair[0].created_at, reverse=True)
    return tuple(view for _, view in found)
