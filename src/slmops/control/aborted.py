"""What becomes of the devices of an aborted rollout: pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from slmops.control.records import LeftOut, Placed
from slmops.control.views import RolloutDetail, RolloutView
from slmops.control.ways_back import NEWER_HAS_IT
from slmops.domain.members import Outcome, may_run_release

_DETAIL_FIELDS = (*RolloutView.__slots__, *RolloutDetail.__slots__)


@dataclass(frozen=True, kw_only=True, slots=True)
class AbortAnswer(RolloutDetail):
    """What became of an aborted rollout's devices."""

    back: tuple[str, ...]
    """Devices that were told to go back to what they ran before."""
    stay: tuple[LeftOut, ...]
    """Devices that got the release, or still get it, and are not told to go back; with
    the reason."""


def abort_answer(
    detail: RolloutDetail,
    placed: Sequence[Placed],
    back: Sequence[str],
    moved_on: Sequence[str],
    *,
    keep: bool,
) -> AbortAnswer:
    """Return who goes back after an abort, and who stays and why."""
    stay = (
        one.member.device
        for one in placed
        if may_run_release(one.member) and one.member.device not in set(back)
    )
    why = {one.member.device: _why_it_stays(one, keep=keep) for one in placed}
    why |= dict.fromkeys(moved_on, NEWER_HAS_IT)
    return AbortAnswer(
        **{name: getattr(detail, name) for name in _DETAIL_FIELDS},
        back=tuple(back),
        stay=tuple(LeftOut(device=device, reason=why[device]) for device in stay),
    )


def _why_it_stays(one: Placed, *, keep: bool) -> str:
    if keep and one.member.outcome in {Outcome.SUCCEEDED, Outcome.FAILED}:
        return "kept by the operator"
    if keep:
        return "its offer stands, kept by the operator"
    if one.before is None:
        return "nothing to go back to: it ran no release before"
    return f"no way back to {one.before.release}: the device or that release is gone"
