"""What a rollout would reach: the answer of a preview. Pure."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from slmops.control.records import LeftOut
from slmops.control.starting import Planned
from slmops.domain.blueprint import RolloutPolicy
from slmops.domain.waves import Candidate, build_waves


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutPreview:
    """A rollout as it would start now."""

    release: str
    """Label."""
    policy: RolloutPolicy
    """Waves and gates."""
    lab: bool
    """Wave 0 is the lab's."""
    waves: tuple[Mapping[str, int], ...]
    """Devices of each class, wave by wave."""
    emulated: tuple[str, ...]
    """Members that stand in for other devices."""
    left_out: tuple[LeftOut, ...]
    """Devices that it would not reach, and why."""


def preview_of(planned: Planned) -> RolloutPreview:
    """Count what was planned."""
    counts = [Counter[str]() for _ in range(planned.rollout.waves)]
    for one in planned.placed:
        counts[one.member.wave][one.member.device_class] += 1
    return RolloutPreview(
        release=planned.rollout.release,
        policy=planned.rollout.policy,
        lab=planned.rollout.lab,
        waves=tuple(dict(sorted(count.items())) for count in counts),
        emulated=tuple(
            one.member.device for one in planned.placed if one.member.emulates
        ),
        left_out=planned.left_out,
    )


def imagined_preview(
    product: str, policy: RolloutPolicy, fleet: Mapping[str, int]
) -> RolloutPreview:
    """Return the waves of a fleet that is not there.

    Args:
        product: name of the blueprint.
        policy: waves and gates.
        fleet: class → devices, each at least 1.
    """
    candidates = [
        Candidate(device=f"{name}-{index}", device_class=name)
        for name, devices in fleet.items()
        for index in range(devices)
    ]
    waves = build_waves(candidates, policy, salt=product)
    counts = [Counter[str]() for _ in policy.waves]
    for one in candidates:
        counts[waves[one.device]][one.device_class] += 1
    return RolloutPreview(
        release=product,
        policy=policy,
        lab=False,
        waves=tuple(dict(sorted(count.items())) for count in counts),
        emulated=(),
        left_out=(),
    )
