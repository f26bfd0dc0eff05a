"""Which variant for which device class: pure rules over measured cards.

1. *Feasible* is what meets the class's budget and the quality floor by its pessimistic
   bound. A figure that was not measured meets nothing.
2. Of the feasible ones only the Pareto set over (KL divergence, bytes, decode speed) is
   interesting; the class's objective picks from it. Speeds that timing cannot tell
   apart count as equal (`ranking`), and the next criterion decides.
3. Classes are merged onto the fewest variants such that no class loses more than
   `MERGE_LOSS` of its objective: each variant more is one more file to ship, keep and
   watch.
4. Every candidate that was not chosen gets its reason (`reasons`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from types import MappingProxyType

from slmops.domain.device import DeviceClass
from slmops.domain.errors import InvalidInputError, OverBudgetError
from slmops.workshop.build_result import Candidate, ClassSelection, Rejection
from slmops.workshop.feasibility import (
    Excess,
    SelectionRules,
    excesses_of,
    floor_violations,
)
from slmops.workshop.ranking import Ranking
from slmops.workshop.reasons import losing_reason, winning_reason

MERGE_LOSS = 0.05
"""ε: share of its objective that a class may lose so that variants are fewer."""


@dataclass(frozen=True, slots=True)
class _Contest:
    """One class and the candidates, judged."""

    device_class: DeviceClass
    candidates: Mapping[str, Candidate]
    infeasible: Mapping[str, tuple[Excess, ...]]

    @property
    def feasible(self) -> list[Candidate]:
        return [c for name, c in self.candidates.items() if name not in self.infeasible]

    @property
    def ranking(self) -> Ranking:
        return Ranking(self.device_class, self.feasible)

    def acceptable(self) -> dict[str, float]:
        """Candidate → loss for what loses little enough, best first."""
        ranking = self.ranking
        losses = {c.label: ranking.loss(c) for c in ranking.best_first()}
        return {name: loss for name, loss in losses.items() if loss <= MERGE_LOSS}


def select_variants(
    classes: Sequence[DeviceClass],
    candidates: Sequence[Candidate],
    rules: SelectionRules,
    refused: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> tuple[ClassSelection, ...]:
    """Choose one candidate for each class.

    Args:
        classes: one or more.
        candidates: with distinct labels, measured at every class's settings.
        rules: floor and exceptions from it.
        refused: label → what was found against a candidate once it had been chosen.

    Returns:
        One selection per class, in order.

    Raises:
        OverBudgetError: nothing fits a class; names the nearest miss and what it needs.
    """
    by_name = {candidate.label: candidate for candidate in candidates}
    if len(by_name) != len(candidates):
        raise InvalidInputError("candidates must have distinct labels")
    contests = []
    for device_class in classes:
        infeasible = {
            name: excesses
            for name, candidate in by_name.items()
            if (
                excesses := (
                    *_after_choice(refused.get(name, ())),
                    *excesses_of(candidate, device_class, rules),
                )
            )
        }
        contest = _Contest(device_class, by_name, infeasible)
        if not contest.feasible:
            raise OverBudgetError(_nearest_miss(contest))
        contests.append(contest)
    chosen = fewest_variants([contest.acceptable() for contest in contests])
    return tuple(
        _selection(contest, name, rules, shared=chosen.count(name) > 1)
        for contest, name in zip(contests, chosen, strict=True)
    )


def _after_choice(found: Sequence[str]) -> tuple[Excess, ...]:
    if not found:
        return ()
    text = f"was chosen, and refused by what nothing is chosen by: {'; '.join(found)}"
    return (Excess(ratio=1.0, text=text),)


def pareto_front(
    candidates: Sequence[Candidate], device_class: DeviceClass
) -> tuple[Candidate, ...]:
    """Return what no other candidate beats in divergence, bytes and decode speed."""
    ranking = Ranking(device_class, candidates)
    return tuple(c for c in candidates if ranking.dominator(c) is None)


def fewest_variants(options: Sequence[Mapping[str, float]]) -> list[str]:
    """Choose one option for each class such that the fewest different ones are used.

    Among equally few, the smallest total loss wins, then what comes first.

    Args:
        options: per class, acceptable candidate → loss, best first; none is empty.

    >>> fewest_variants([{"A": 0.0, "B": 0.04}, {"B": 0.0}])
    ['B', 'B']
    """
    names = sorted({name for option in options for name in option})
    for size in range(1, len(names) + 1):
        found = []
        for used in combinations(names, size):
            if all(any(name in option for name in used) for option in options):
                picks = [
                    min(
                        (name for name in option if name in used),
                        key=option.__getitem__,
                    )
                    for option in options
                ]
                found.append((_total(picks, options), picks))
        if found:
            return min(found)[1]
    raise InvalidInputError("every class needs at least one acceptable candidate")


def _total(
    picks: Sequence[str], options: Sequence[Mapping[str, float]]
) -> tuple[float, int]:
    """Return the losses of a choice, and its ranks, which decide between equals."""
    pairs = list(zip(picks, options, strict=True))
    return (
        sum(option[name] for name, option in pairs),
        sum(list(option).index(name) for name, option in pairs),
    )


def _selection(
    contest: _Contest, name: str, rules: SelectionRules, *, shared: bool
) -> ClassSelection:
    chosen = contest.candidates[name]
    others = [c for c in contest.feasible if c is not chosen]
    next_best = Ranking(contest.device_class, others).best_first()
    return ClassSelection(
        device_class=contest.device_class.name,
        quantization=name,
        digest=chosen.digest,
        reason=winning_reason(contest.ranking, chosen, shared=shared),
        runner_up=next_best[0].label if next_best else None,
        rejected=tuple(
            Rejection(
                quantization=other.label,
                reason=_why_not(contest, other, chosen, shared=shared),
            )
            for other in contest.candidates.values()
            if other is not chosen
        ),
        violations=floor_violations(chosen.card, rules),
    )


def _why_not(
    contest: _Contest, loser: Candidate, chosen: Candidate, *, shared: bool
) -> str:
    excesses = contest.infeasible.get(loser.label)
    if excesses:
        return "; ".join(excess.text for excess in excesses)
    return losing_reason(contest.ranking, loser, chosen, shared=shared)


def _nearest_miss(contest: _Contest) -> str:
    name, excesses = min(
        contest.infeasible.items(),
        key=lambda item: (max(excess.ratio for excess in item[1]), item[0]),
    )
    return (
        f"class {contest.device_class.name}: none of {len(contest.candidates)} candidates"
        f" fits; nearest is {name}: {'; '.join(excess.text for excess in excesses)}"
    )
