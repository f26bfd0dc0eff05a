"""What the operator sees: documents of the API's answers, built from records. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from slmops.control.drift import Drift, drift_of
from slmops.control.records import (
    AuditEntry,
    DeviceRecord,
    Evaluation,
    LeftOut,
    Placed,
    StoredRollout,
)
from slmops.domain.device import DeviceFacts, classify
from slmops.domain.ids import Digest
from slmops.domain.members import Member, Outcome
from slmops.domain.release import Release
from slmops.domain.sync import Assignment


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceView:
    """One device as last seen."""

    id: str
    """Its id."""
    device_class: str | None
    """Class in the newest release; None when it fits none."""
    release: str | None
    """Release that serves; None when none does."""
    variant: Digest | None
    """Artefact that serves."""
    state: str
    """Of its current or last installation; ``idle`` when it never had one."""
    reason: str
    """Why the last installation failed or waits."""
    enrolled_at: float
    """Unix time, seconds."""
    seen_at: float
    """Unix time, seconds."""
    memory_mib: int
    """What the agent may use."""
    labels: Mapping[str, str]
    """Set by its owner."""
    requests: int
    """Since enrolment."""
    failures: int
    """Since enrolment."""
    restarts: int
    """Since enrolment."""
    decode_tokens_per_s: float | None
    """Median of the newest window with traffic; None before any."""
    first_token_ms: float | None
    """Median of the newest window with traffic; None before any."""
    peak_rss_mib: float
    """Of the newest window."""
    bytes_downloaded: int
    """Artefact bytes, since enrolment."""
    retired_at: float | None = None
    """When it was taken out of the fleet, Unix seconds; None while it belongs."""
    desired: str | None = None
    """Release of the newest order it was given; None for none."""
    drift: Drift = Drift.NOTHING
    """How what it runs compares with that."""
    drift_reason: str = ""
    """Why they differ, for people."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassFit:
    """Why a device belongs to a class or not."""

    device_class: str
    """Name of the class."""
    mismatches: tuple[str, ...]
    """Empty when it matches; the first that matches is the device's class."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceDetail:
    """One device with everything known of it."""

    device: DeviceView
    """As last seen."""
    facts: DeviceFacts
    """As last reported."""
    quarantined: tuple[Digest, ...]
    """Variants it will not try again."""
    release: str | None
    """Release whose classes explain it; None when none is published."""
    fits: tuple[ClassFit, ...]
    """Every class of that release, in the order they are matched."""
    assignments: tuple[Assignment, ...]
    """What the director wanted it to run, oldest first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WaveView:
    """One wave in counts."""

    index: int
    """0-based."""
    devices: int
    """Members."""
    offered: int
    """With an assignment."""
    succeeded: int
    """Committed."""
    failed: int
    """Rolled back or unhealthy."""
    silent: int
    """Not heard of until the deadline."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutView:
    """One rollout in counts."""

    id: str
    """``r-1``."""
    release: str
    """Label."""
    state: str
    """``draft running paused halted done aborted``."""
    reason: str
    """Why it halted, was paused or aborted."""
    wave: int
    """Current, 0-based."""
    phase: str
    """``pending offering soaking passed``."""
    phase_at: float
    """When the phase began, Unix seconds."""
    created_at: float
    """Unix time, seconds."""
    ended_at: float | None
    """Unix time, seconds."""
    revision: int
    """Grows with every change."""
    waves: tuple[WaveView, ...]
    """In order."""
    lab: bool = False
    """Wave 0 is the lab's."""
    reverts: str | None = None
    """Rollout whose devices it brings back."""
    started_by: str = ""
    """Operator."""
    approved_by: tuple[str, ...] = ()
    """Operators."""
    approvals: int = 0
    """How many it needs before it begins."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutDetail(RolloutView):
    """One rollout with its members and verdicts."""

    members: tuple[Member, ...]
    """By wave and device."""
    left_out: tuple[LeftOut, ...]
    """Devices it does not reach, with reasons."""
    evaluations: tuple[Evaluation, ...]
    """Verdicts, oldest first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReleaseView:
    """One published release."""

    label: str
    """``assistant-2``."""
    digest: Digest
    """Of its document."""
    created_at: float
    """Unix time, seconds."""
    variants: tuple[str, ...]
    """``Q4_K_M for till, gateway`` …"""
    bytes: int
    """All artefacts together."""
    forced: str | None
    """Why it exists below its quality floor; None when it does not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceList:
    """The fleet."""

    devices: tuple[DeviceView, ...]
    """By id."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReleaseList:
    """Published releases."""

    releases: tuple[ReleaseView, ...]
    """Newest first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutList:
    """All rollouts."""

    rollouts: tuple[RolloutView, ...]
    """Newest first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditList:
    """Who did what."""

    entries: tuple[AuditEntry, ...]
    """Newest first."""


def device_view(
    record: DeviceRecord, newest: Release | None, desired: Assignment | None
) -> DeviceView:
    """Return what the operator sees of a device.

    Args:
        record: as last seen.
        newest: release whose classes say where it belongs.
        desired: newest order it was given.
    """
    drift, drift_reason = drift_of(desired, record.status)
    fit = newest and classify(newest.classes, record.facts, record.labels)
    active, installation = record.status.active, record.status.installation
    telemetry = record.telemetry
    return DeviceView(
        id=record.id,
        device_class=fit.name if fit else None,
        release=active.release if active else None,
        variant=active.variant if active else None,
        state=installation.state.value if installation else "idle",
        reason=installation.reason if installation else "",
        enrolled_at=record.enrolled_at,
        seen_at=record.seen_at,
        memory_mib=record.facts.memory_mib,
        labels=record.labels,
        requests=telemetry.requests,
        failures=telemetry.failures,
        restarts=telemetry.restarts,
        decode_tokens_per_s=telemetry.decode_tokens_per_s,
        first_token_ms=telemetry.first_token_ms,
        peak_rss_mib=telemetry.peak_rss_mib,
        bytes_downloaded=telemetry.bytes_downloaded,
        retired_at=record.retired_at,
        desired=desired.release if desired else None,
        drift=drift,
        drift_reason=drift_reason,
    )


def device_detail(
    record: DeviceRecord,
    newest: Release | None,
    assignments: tuple[Assignment, ...],
) -> DeviceDetail:
    """Return everything known of a device, and why it has its class."""
    classes = newest.classes if newest else ()
    fits = [
        ClassFit(
            device_class=one.name,
            mismatches=one.where.mismatches(record.facts, record.labels),
        )
        for one in classes
    ]
    return DeviceDetail(
        device=device_view(record, newest, assignments[-1] if assignments else None),
        facts=record.facts,
        quarantined=record.status.quarantined,
        release=newest.label if newest else None,
        fits=tuple(fits),
        assignments=assignments,
    )


def release_view(release: Release, digest: Digest) -> ReleaseView:
    """Return what the operator sees of a release."""
    return ReleaseView(
        label=release.label,
        digest=digest,
        created_at=release.created_at,
        variants=tuple(
            f"{variant.card.quantization} for {', '.join(variant.classes)}"
            for variant in release.variants
        ),
        bytes=sum(variant.bytes for variant in release.variants),
        forced=release.forced.reason if release.forced else None,
    )


def wave_views(waves: int, placed: Sequence[Placed]) -> tuple[WaveView, ...]:
    """Count members by wave and outcome."""
    counts: Counter[tuple[int, str]] = Counter()
    for one in placed:
        member = one.member
        counts[member.wave, "devices"] += 1
        counts[member.wave, "offered"] += member.offered_at is not None
        counts[member.wave, member.outcome.value] += 1
    return tuple(
        WaveView(
            index=index,
            devices=counts[index, "devices"],
            offered=counts[index, "offered"],
            succeeded=counts[index, Outcome.SUCCEEDED.value],
            failed=counts[index, Outcome.FAILED.value],
            silent=counts[index, Outcome.SILENT.value],
        )
        for index in range(waves)
    )


def rollout_view(stored: StoredRollout, placed: Sequence[Placed]) -> RolloutView:
    """Return a rollout in counts."""
    rollout = stored.rollout
    return RolloutView(
        id=rollout.id,
        release=rollout.release,
        state=rollout.state.value,
        reason=rollout.reason,
        wave=rollout.wave,
        phase=rollout.phase.value,
        phase_at=rollout.phase_at,
        created_at=stored.created_at,
        ended_at=stored.ended_at,
        revision=rollout.revision,
        waves=wave_views(rollout.waves, placed),
        lab=rollout.lab,
        reverts=rollout.reverts,
        started_by=rollout.started_by,
        approved_by=rollout.approved_by,
        approvals=rollout.policy.approvals,
    )


def rollout_detail(
    stored: StoredRollout,
    placed: Sequence[Placed],
    left_out: tuple[LeftOut, ...],
    evaluations: tuple[Evaluation, ...],
) -> RolloutDetail:
    """Return a rollout with its members and verdicts."""
    view = rollout_view(stored, placed)
    return RolloutDetail(
        **{name: getattr(view, name) for name in RolloutView.__slots__},
        members=tuple(one.member for one in placed),
        left_out=left_out,
        evaluations=evaluations,
    )
