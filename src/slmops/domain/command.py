"""What an operator may ask of a rollout, and when: a table."""

from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum

from slmops.domain.errors import ConflictError
from slmops.domain.members import Member, on_release
from slmops.domain.rollout import Rollout, RolloutState, Step


class Command(StrEnum):
    """What an operator may ask of a rollout."""

    APPROVE = "approve"
    PAUSE = "pause"
    RESUME = "resume"
    ABORT_KEEP = "abort-keep"
    ABORT_REVERT = "abort-revert"


COMMANDS: dict[tuple[RolloutState, Command], RolloutState] = {
    (RolloutState.DRAFT, Command.APPROVE): RolloutState.DRAFT,
    (RolloutState.DRAFT, Command.ABORT_KEEP): RolloutState.ABORTED,
    (RolloutState.DRAFT, Command.ABORT_REVERT): RolloutState.ABORTED,
    (RolloutState.RUNNING, Command.PAUSE): RolloutState.PAUSED,
    (RolloutState.PAUSED, Command.RESUME): RolloutState.RUNNING,
    (RolloutState.RUNNING, Command.ABORT_KEEP): RolloutState.ABORTED,
    (RolloutState.RUNNING, Command.ABORT_REVERT): RolloutState.ABORTED,
    (RolloutState.PAUSED, Command.ABORT_KEEP): RolloutState.ABORTED,
    (RolloutState.PAUSED, Command.ABORT_REVERT): RolloutState.ABORTED,
    (RolloutState.HALTED, Command.ABORT_KEEP): RolloutState.ABORTED,
    (RolloutState.HALTED, Command.ABORT_REVERT): RolloutState.ABORTED,
}
"""What is allowed when, and the state it leads to; the last approval needed starts it."""


def apply_command(
    rollout: Rollout,
    members: Sequence[Member],
    command: Command,
    *,
    by: str,
    reason: str = "",
) -> Step:
    """Answer an operator's command.

    Args:
        rollout: as stored.
        members: all its devices.
        command: what is asked.
        by: operator who asks.
        reason: why, for the record.

    Raises:
        ConflictError: not allowed in this state; the message says what is. Or an
            approval by who started the rollout, or by who approved already.
    """
    state = COMMANDS.get((rollout.state, command))
    if state is None:
        allowed = sorted(allowed for (now, allowed) in COMMANDS if now is rollout.state)
        raise ConflictError(
            f"rollout {rollout.id} is {rollout.state}: {command} is not possible;"
            f" possible: {', '.join(allowed) or 'nothing'}"
        )
    if command is Command.APPROVE:
        return Step(rollout=_approved(rollout, by))
    revert = on_release(members) if command is Command.ABORT_REVERT else ()
    said = reason or f"{command} by {by}"
    return Step(
        rollout=replace(
            rollout,
            state=state,
            reason="" if command is Command.RESUME else said,
        ),
        revert=revert,
    )


def _approved(rollout: Rollout, by: str) -> Rollout:
    if by == rollout.started_by:
        raise ConflictError(
            f"rollout {rollout.id} was started by {by}: another operator must approve it"
        )
    if by in rollout.approved_by:
        raise ConflictError(f"{by} has approved rollout {rollout.id} already")
    approved_by = (*rollout.approved_by, by)
    enough = len(approved_by) >= rollout.policy.approvals
    state = RolloutState.RUNNING if enough else RolloutState.DRAFT
    return replace(rollout, approved_by=approved_by, state=state)
