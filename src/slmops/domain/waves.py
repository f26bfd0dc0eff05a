"""Dealing devices to waves: frozen, reproducible, stratified by class and spread over sites.

What happens to a wave afterwards is decided in `slmops.domain.rollout`.
"""

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from slmops.domain.blueprint import LabWave, RolloutPolicy

_ROUNDING = 1e-9
"""7 % of 100 devices is 7.000000000000001 in floating point, and means 7."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One device that a rollout may reach."""

    device: str
    """Device id."""
    device_class: str
    """Its class in the release's blueprint."""
    site: str = ""
    """Label `site`, to spread waves over sites."""
    lab: bool = False
    """Label `lab` is ``true``: it goes before the others."""


def in_lab(candidate: Candidate, policy: RolloutPolicy) -> bool:
    """Tell whether a device belongs to the lab wave."""
    return candidate.lab and policy.lab is not LabWave.OFF


def held_back(device: str, policy: RolloutPolicy, *, salt: str) -> bool:
    """Tell whether a device keeps what it runs.

    Args:
        device: its id.
        policy: with the share.
        salt: the product's name, so that each release leaves the same devices out.

    >>> policy = RolloutPolicy(holdback=0.1)
    >>> 70 < sum(held_back(f"d{i}", policy, salt="a") for i in range(1000)) < 130
    True
    """
    place = int(_salted(f"holdback:{salt}", device)[:16], 16) / 16**16
    return place < policy.holdback


def build_waves(
    candidates: Iterable[Candidate], policy: RolloutPolicy, *, salt: str
) -> dict[str, int]:
    """Deal devices to waves: frozen, reproducible, stratified.

    Where the policy has a lab wave and there are devices for it, they are wave 0 and the
    policy's waves follow; their sizes are of the rest.

    Devices of a class are taken in an order that a salted hash decides, sites in turn;
    classes fill a wave in turn, in proportion to their share but at least one each while
    the wave has room, so that the first wave sees every class it can.

    Args:
        candidates: each device once.
        policy: sizes of the waves; the last takes what is left.
        salt: usually the rollout's id, so that not always the same devices go first.

    Returns:
        Device id → index of its wave.
    """
    everyone = list(candidates)
    waves = {one.device: 0 for one in everyone if in_lab(one, policy)}
    first = 1 if waves else 0
    rest = [one for one in everyone if one.device not in waves]
    order = _stratified_order(rest, salt)
    sizes = _wave_sizes(len(order), policy)
    begin = 0
    for wave, size in enumerate(sizes, start=first):
        for device in order[begin : begin + size]:
            waves[device] = wave
        begin += size
    return waves


def _wave_sizes(devices: int, policy: RolloutPolicy) -> list[int]:
    """Return the size of each wave; shares are of the whole fleet, rounded up."""
    sizes, left = [], devices
    for plan in policy.waves[:-1]:
        wanted = (
            plan.count
            if plan.count is not None
            else math.ceil((plan.share or 0.0) * devices - _ROUNDING)
        )
        sizes.append(min(wanted, left))
        left -= sizes[-1]
    return [*sizes, left]


def _stratified_order(candidates: Sequence[Candidate], salt: str) -> list[str]:
    """Order devices so that every beginning of the order mirrors the whole fleet.

    The k-th of a class's n devices stands at (k - 1) / n; ties are broken by the salted
    hash of the class: the first of every class comes first of all, then each class in
    proportion.
    """
    by_class: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        by_class.setdefault(candidate.device_class, []).append(candidate)
    placed = []
    for name, members in by_class.items():
        queue = _sites_in_turn(members, salt)
        for index, device in enumerate(queue):
            placed.append((index / len(queue), _salted(salt, name), device))
    return [device for _, _, device in sorted(placed)]


def _sites_in_turn(members: Sequence[Candidate], salt: str) -> list[str]:
    by_site: dict[str, list[Candidate]] = {}
    for member in sorted(members, key=lambda member: _salted(salt, member.device)):
        by_site.setdefault(member.site, []).append(member)
    ranked = [
        (rank, _salted(salt, site), member.device)
        for site, queue in by_site.items()
        for rank, member in enumerate(queue)
    ]
    return [device for _, _, device in sorted(ranked)]


def _salted(salt: str, text: str) -> str:
    return hashlib.sha256(f"{salt}:{text}".encode()).hexdigest()
