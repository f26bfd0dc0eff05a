"""Where a revert leads, and when there is none: pure."""

from collections.abc import Iterable

from slmops.control.records import DeviceStatus, Placed, StoredRollout
from slmops.domain.errors import ConflictError, NotFoundError
from slmops.domain.rollout import ENDED, Rollout, RolloutState
from slmops.domain.sync import Installed

NEWER_HAS_IT = "a newer rollout has it"
"""Why a device that has moved on is not brought back."""


def way_back(rollout: Rollout, placed: Placed, status: DeviceStatus) -> Installed:
    """Return what a device goes back to.

    What it ran before was noted when the offer was made, from its newest sync then. A
    device that was away may have committed another release since, and accepts no revert
    but to its previous slot: once it runs the rollout's release, that slot is the truth.
    The exception is a device that had this very release before: nothing was replaced.

    Raises:
        NotFoundError: it ran no release before.
    """
    before = placed.before
    had_it = before is not None and before.release == rollout.release
    runs_it = status.active is not None and status.active.release == rollout.release
    if runs_it and status.previous is not None and not had_it:
        return status.previous
    if before is None:
        raise NotFoundError("nothing to go back to: it ran no release before")
    return before


def require_no_newer_running(
    stored: StoredRollout, rollouts: Iterable[StoredRollout]
) -> None:
    """See that bringing back a halted release disturbs no newer rollout.

    A product has one active rollout at a time, so one beside a halted one is newer.

    Raises:
        ConflictError: the product has a newer rollout that has not ended.
    """
    if stored.rollout.state is not RolloutState.HALTED:
        return
    for other in rollouts:
        if other.product == stored.product and other.rollout.state not in ENDED:
            newer = other.rollout
            raise ConflictError(
                f"rollout {stored.rollout.id} is halted and {newer.id}"
                f" ({newer.release}) is {newer.state}: bringing devices back would"
                f" disturb it; wait for its end or abort it, or abort"
                f" {stored.rollout.id} with --keep"
            )
