"""What must hold before a rollout starts: pure."""

from collections.abc import Iterable, Sequence

from slmops.control.records import DeviceRecord, StoredRollout
from slmops.domain.blueprint import LabWave, RolloutPolicy
from slmops.domain.errors import ConflictError, InvalidInputError
from slmops.domain.ids import label_version
from slmops.domain.members import Member
from slmops.domain.release import Release


def require_reachable_deadline(
    label: str, policy: RolloutPolicy, *, poll_s: float
) -> None:
    """See that a healthy device can commit, and say so, before its deadline.

    It hears of the offer within one poll interval, and its outcome is heard of within
    another one after its probation.

    Raises:
        InvalidInputError: it cannot: every device would count as silent.
    """
    least = policy.probation_s + 2 * poll_s
    if policy.deadline_s < least:
        raise InvalidInputError(
            f"release {label}: rollout.deadline_s must be at least {least:g} here, its"
            f" probation of {policy.probation_s:g} s and two polls of {poll_s:g} s, got"
            f" {policy.deadline_s:g}: every device would count as silent; release it"
            " with a later deadline, or serve with a shorter poll_s"
        )


def require_no_downgrade(
    release: Release, rollouts: Iterable[StoredRollout], *, allowed: bool
) -> None:
    """See that no newer release of the product was ever rolled out.

    Raises:
        ConflictError: one was, and going back was not asked for.
    """
    newest = max(
        (one for one in rollouts if one.product == release.name),
        key=lambda one: label_version(one.rollout.release),
        default=None,
    )
    if allowed or newest is None:
        return
    if release.version < label_version(newest.rollout.release):
        raise ConflictError(
            f"release {release.label} is older than {newest.rollout.release}, which"
            f" rollout {newest.rollout.id} brought; a downgrade needs --allow-downgrade"
        )


def require_lab(
    release: Release, members: Sequence[Member], devices: Sequence[DeviceRecord]
) -> bool:
    """Tell whether there is a lab wave, and see that it shows what it must.

    Raises:
        ConflictError: a class has no lab device and the policy requires one.
    """
    policy = release.blueprint.rollout
    if policy.lab is LabWave.OFF:
        return False
    in_lab = {one.id for one in devices if one.labels.get("lab") == "true"}
    tested = {one.device_class for one in members if one.device in in_lab}
    missing = sorted({one.device_class for one in members} - tested)
    if missing and policy.lab is LabWave.REQUIRED:
        raise ConflictError(
            f"release {release.label}: no lab device for class {', '.join(missing)}, and"
            " rollout.lab is required; enrol one with --label lab=true (with --memory-mib"
            " and --label emulates=NAME where it stands in for a smaller device)"
        )
    return bool(tested)
