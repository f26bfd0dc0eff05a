"""Which devices a rollout reaches, and in which wave: pure."""

from collections.abc import Sequence

from slmops.control.records import DeviceRecord, LeftOut, Placed
from slmops.domain.device import classify
from slmops.domain.errors import NotFoundError
from slmops.domain.members import Member
from slmops.domain.release import Release
from slmops.domain.waves import Candidate, build_waves, held_back

_SITE, _LAB, _EMULATES = "site", "lab", "emulates"


def membership(
    release: Release, devices: Sequence[DeviceRecord], *, salt: str
) -> tuple[list[Placed], list[LeftOut]]:
    """Put devices into classes and waves, or say why not."""
    candidates, left_out = [], []
    labels = {record.id: record.labels for record in devices}
    for record in devices:
        if record.retired_at is not None:
            continue
        try:
            candidates.append(_candidate(release, record))
        except NotFoundError as error:
            left_out.append(LeftOut(device=record.id, reason=str(error)))
    waves = build_waves(candidates, release.blueprint.rollout, salt=salt)
    placed = [
        Placed(
            member=Member(
                device=candidate.device,
                device_class=candidate.device_class,
                wave=waves[candidate.device],
                site=candidate.site,
                emulates=labels[candidate.device].get(_EMULATES, ""),
            )
        )
        for candidate in candidates
    ]
    return placed, left_out


def _candidate(release: Release, record: DeviceRecord) -> Candidate:
    fit = classify(release.classes, record.facts, record.labels)
    if fit is None:
        misfits = [
            f"{one.name}: {', '.join(one.where.mismatches(record.facts, record.labels))}"
            for one in release.classes
        ]
        raise NotFoundError(f"fits no class of {release.label} ({'; '.join(misfits)})")
    release.variant_for(fit.name)
    _require_not_held_back(release, record)
    return Candidate(
        device=record.id,
        device_class=fit.name,
        site=record.labels.get(_SITE, ""),
        lab=record.labels.get(_LAB) == "true",
    )


def _require_not_held_back(release: Release, record: DeviceRecord) -> None:
    """Leave out who keeps what it runs; lab devices are there to run what is new."""
    policy, active = release.blueprint.rollout, record.status.active
    if active is None or record.labels.get(_LAB) == "true":
        return
    if held_back(record.id, policy, salt=release.name):
        raise NotFoundError(
            f"held back: keeps {active.release}, as {policy.holdback:.1%} of the fleet do"
        )


def why_nobody(left_out: Sequence[LeftOut]) -> str:
    """Say why a release reaches no device."""
    if not left_out:
        return "no device is enrolled"
    first = left_out[0]
    return f"{len(left_out)} left out, first {first.device}: {first.reason}"
