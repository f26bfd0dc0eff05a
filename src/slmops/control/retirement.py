"""What a retired device means for the rollouts that still run: pure.

It is left out: no failure of the release, and no evidence for it either. What it
reported as a failure stays counted, for nobody retires a device to save a release.
"""

from collections.abc import Sequence, Set
from dataclasses import replace

from slmops.control.records import AuditEntry, Commit, LeftOut, Placed
from slmops.domain.errors import UntrustedError
from slmops.domain.members import Outcome
from slmops.domain.rollout import Rollout

REASON = "retired by the operator"


def retired_error(device: str) -> UntrustedError:
    """Return what a retired device, or whoever has its key, is told."""
    return UntrustedError(
        f"device {device} was retired and its key is not trusted any more; to come back"
        " it enrols under another name, with a new token and a new key"
    )


def leave_out_retired(
    rollout: Rollout, placed: Sequence[Placed], retired: Set[str], now: float
) -> Commit | None:
    """Return what leaves retired devices out of a rollout; None for nothing to do.

    A class that loses its last device of the waves so far gets the first of a later
    wave in its place: later waves never begin without evidence of their class.
    """
    leaving = [
        one.member.device
        for one in placed
        if one.member.device in retired and one.member.outcome is not Outcome.FAILED
    ]
    if not leaving:
        return None
    return Commit(
        rollout=rollout,
        at=now,
        members=tuple(_substitutes(rollout, placed, frozenset(leaving))),
        left_out=tuple(LeftOut(device=device, reason=REASON) for device in leaving),
        audit=tuple(
            AuditEntry(
                at=now,
                actor="engine",
                action="device.left_out",
                subject=device,
                detail=f"{rollout.id}: {REASON}",
            )
            for device in leaving
        ),
    )


def _substitutes(
    rollout: Rollout, placed: Sequence[Placed], leaving: Set[str]
) -> list[Placed]:
    def begun(one: Placed) -> bool:
        return one.member.wave <= rollout.wave

    staying = [one for one in placed if one.member.device not in leaving]
    shown = {one.member.device_class for one in staying if begun(one)}
    lost = {
        one.member.device_class
        for one in placed
        if one.member.device in leaving and begun(one)
    } - shown
    later = sorted(
        (one for one in staying if not begun(one)),
        key=lambda one: (one.member.wave, one.member.device),
    )
    found: dict[str, Placed] = {}
    for one in later:
        if one.member.device_class in lost:
            found.setdefault(one.member.device_class, one)
    return [
        replace(one, member=replace(one.member, wave=rollout.wave))
        for one in found.values()
    ]
