"""What an operator may ask of a rollout, and when: a table."""

from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum

from slmops.domain.errors import ConflictError
from slmops.domain.members import Member, on_release
from slmops.domain.rollout import Rollout, RolloutState, Step


class Command(StrEnum):
    """What an operator may ask of a rollout."""

    PAUSE = "pause"
    RESUME = "resume"
    ABORT_KEEP = "abort-keep"
    ABORT_REVERT = "abort-revert"


COMMANDS: dict[tuple[RolloutState, Command], RolloutState] = {
    (RolloutState.RUNNING, Command.PAUSE): RolloutState.PAUSED,
    (RolloutState.PAUSED, Command.RESUME): RolloutState.RUNNING,
    (RolloutState.RUNNING, Command.ABORT_KEEP): RolloutState.ABORTED,
    (RolloutState.RUNNING, Command.ABORT_REVERT): RolloutState.ABORTED,
    (RolloutState.PAUSED, Command.ABORT_KEEP): RolloutState.ABORTED,
    (RolloutState.PAUSED, Command.ABORT_REVERT): RolloutState.ABORTED,
    (RolloutState.HALTED, Command.ABORT_KEEP): RolloutState.ABORTED,
    (RolloutState.HALTED, Command.ABORT_REVERT): RolloutState.ABORTED,
}
"""What is allowed when."""


def apply_command(
    rollout: Rollout, members: Sequence[Member], command: Command, *, reason: str = ""
) -> Step:
    """Answer an operator's command.

    Raises:
        ConflictError: not allowed in this state; the message says what is.
    """
    state = COMMANDS.get((rollout.state, command))
    if state is None:
        allowed = sorted(allowed for (now, allowed) in COMMANDS if now is rollout.state)
        raise ConflictError(
            f"rollout {rollout.id} is {rollout.state}: {command} is not possible;"
            f" possible: {', '.join(allowed) or 'nothing'}"
        )
    revert = on_release(members) if command is Command.ABORT_REVERT else ()
    said = reason or f"{command} by the operator"
    return Step(
        rollout=replace(
            rollout,
            state=state,
            reason="" if command is Command.RESUME else said,
        ),
        revert=revert,
    )
