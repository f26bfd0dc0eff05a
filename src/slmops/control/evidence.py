"""Verdicts worth writing down: those that differ from the last of their gate and wave."""

from collections.abc import Sequence

from slmops.control.records import Evaluation, Placed
from slmops.control.store import RolloutStore
from slmops.domain.gate import RULE_VERSION, GateResult
from slmops.domain.rollout import Rollout, Step


class Evidence:
    """Remembers the last verdicts, so that waiting writes nothing."""

    def __init__(self, store: RolloutStore) -> None:
        self._store = store
        self._last: dict[str, dict[tuple[int, str], GateResult]] = {}

    def new(
        self, before: Rollout, placed: Sequence[Placed], step: Step, now: float
    ) -> tuple[Evaluation, ...]:
        """Return the evaluations of a step that say something new."""
        last = self._of(before.id) if step.results else {}
        return tuple(
            Evaluation(
                rollout=before.id,
                at=now,
                wave=before.wave,
                result=result,
                rule_version=RULE_VERSION,
                inputs={
                    "phase": before.phase.value,
                    "classes": _counts(placed, before.wave),
                },
            )
            for result in step.results
            if last.get((before.wave, result.gate)) != result
        )

    def keep(self, evaluations: Sequence[Evaluation]) -> None:
        """Remember what was committed."""
        for one in evaluations:
            self._of(one.rollout)[one.wave, one.result.gate] = one.result

    def _of(self, rollout: str) -> dict[tuple[int, str], GateResult]:
        if rollout not in self._last:
            self._last[rollout] = {}
            self.keep(self._store.evaluations(rollout))
        return self._last[rollout]


def _counts(placed: Sequence[Placed], wave: int) -> dict[str, dict[str, int]]:
    """Count outcomes per class, over all waves so far and in this one, and live traffic."""
    counts: dict[str, dict[str, int]] = {}
    for one in placed:
        member = one.member
        if member.offered_at is None:
            continue
        of_class = counts.setdefault(member.device_class, {})
        for key in (member.outcome.value, f"wave_{member.outcome.value}"):
            if key.startswith("wave_") and member.wave != wave:
                continue
            of_class[key] = of_class.get(key, 0) + 1
        if member.live is not None:
            for key in ("requests", "failures", "restarts"):
                since = of_class.get(f"live_{key}", 0)
                of_class[f"live_{key}"] = since + getattr(member.live, key)
    return counts
