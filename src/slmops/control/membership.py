"""Which devices a rollout reaches, and in which wave: pure."""

from collections.abc import Sequence

from slmops.control.records import DeviceRecord, LeftOut, Placed
from slmops.domain.device import classify
from slmops.domain.errors import NotFoundError
from slmops.domain.members import Member
from slmops.domain.release import Release
from slmops.domain.waves import Candidate, build_waves

_SITE = "site"


def membership(
    release: Release, devices: Sequence[DeviceRecord], *, salt: str
) -> tuple[list[Placed], list[LeftOut]]:
    """Put devices into classes and waves, or say why not."""
    candidates, left_out = [], []
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
    return Candidate(
        device=record.id,
        device_class=fit.name,
        site=record.labels.get(_SITE, ""),
    )


def why_nobody(left_out: Sequence[LeftOut]) -> str:
    """Say why a release reaches no device."""
    if not left_out:
        return "no device is enrolled"
    first = left_out[0]
    return f"{len(left_out)} left out, first {first.device}: {first.reason}"
