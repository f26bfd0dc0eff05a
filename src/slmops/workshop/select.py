"""Which variant for which device class: pure rules over measured cards.

1. *Feasible* is what meets the class's budget and the quality floor by its pessimistic
   bound. A figure that was not measured meets nothing.
2. Of the feasible ones only the Pareto set over (KL divergence, bytes, decode speed) is
   interesting; the class's objective picks from it.
3. Classes are merged onto the fewest variants such that no class loses more than
   `MERGE_LOSS` of its objective: each variant more is one more file to ship, keep and
   watch.
4. Every candidate that was not chosen gets its reason.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from slmops.domain.device import DeviceClass, Objective
from slmops.domain.errors import InvalidInputError, OverBudgetError
from slmops.workshop.build_result import Candidate, ClassSelection, Rejection
from slmops.workshop.feasibility import (
    MIB,
    Excess,
    SelectionRules,
    excesses_of,
    floor_violations,
)

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
    def winner(self) -> Candidate:
        return min(self.feasible, key=lambda c: objective_key(c, self.device_class))

    def loss(self, candidate: Candidate) -> float:
        """Share of the objective lost against the winner, >= 0."""
        best, mine = (
            _objective_value(c, self.device_class) for c in (self.winner, candidate)
        )
        worst = max(abs(best), abs(mine))
        return abs(mine - best) / worst if worst > 0 else 0.0

    def acceptable(self) -> dict[str, float]:
        """Candidate → loss for what loses little enough, best first."""
        ranked = sorted(
            self.feasible, key=lambda c: objective_key(c, self.device_class)
        )
        losses = {c.quantization: self.loss(c) for c in ranked}
        return {name: loss for name, loss in losses.items() if loss <= MERGE_LOSS}


def select_variants(
    classes: Sequence[DeviceClass],
    candidates: Sequence[Candidate],
    rules: SelectionRules,
) -> tuple[ClassSelection, ...]:
    """Choose one candidate for each class.

    Args:
        classes: one or more.
        candidates: with distinct quantizations, measured at every class's settings.
        rules: floor and exceptions from it.

    Returns:
        One selection per class, in order.

    Raises:
        OverBudgetError: nothing fits a class; names the nearest miss and what it needs.
    """
    by_name = {candidate.quantization: candidate for candidate in candidates}
    if len(by_name) != len(candidates):
        raise InvalidInputError("candidates must have distinct quantizations")
    contests = []
    for device_class in classes:
        infeasible = {
            name: excesses
            for name, candidate in by_name.items()
            if (excesses := excesses_of(candidate, device_class, rules))
        }
        contest = _Contest(device_class, by_name, infeasible)
        if not contest.feasible:
            raise OverBudgetError(_nearest_miss(contest))
        contests.append(contest)
    chosen = fewest_variants([contest.acceptable() for contest in contests])
    return tuple(
        _selection(contest, name, rules)
        for contest, name in zip(contests, chosen, strict=True)
    )


def pareto_front(
    candidates: Sequence[Candidate], device_class: DeviceClass
) -> tuple[Candidate, ...]:
    """Return what no other candidate beats in divergence, bytes and decode speed."""
    return tuple(
        candidate
        for candidate in candidates
        if _dominator(candidate, candidates, device_class) is None
    )


def objective_key(candidate: Candidate, device_class: DeviceClass) -> tuple[float, ...]:
    """Return a sort key: the class's objective first, then the others; less is better."""
    kld, size, slowness = _costs(candidate, device_class)
    match device_class.objective:
        case Objective.QUALITY:
            return (kld, size, slowness)
        case Objective.SPEED:
            return (slowness, kld, size)
        case Objective.SIZE:
            return (size, kld, slowness)


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


def _selection(contest: _Contest, name: str, rules: SelectionRules) -> ClassSelection:
    chosen = contest.candidates[name]
    others = [c for c in contest.feasible if c.quantization != name]
    others.sort(key=lambda c: objective_key(c, contest.device_class))
    runner_up = others[0].quantization if others else None
    return ClassSelection(
        device_class=contest.device_class.name,
        quantization=name,
        digest=chosen.digest,
        reason=_winning_reason(contest, chosen),
        runner_up=runner_up,
        rejected=tuple(
            Rejection(
                quantization=other.quantization,
                reason=_losing_reason(contest, other, chosen),
            )
            for other in contest.candidates.values()
            if other.quantization != name
        ),
        violations=floor_violations(chosen.card, rules),
    )


def _winning_reason(contest: _Contest, chosen: Candidate) -> str:
    objective = contest.device_class.objective
    figure = _objective_text(chosen, contest.device_class)
    if chosen.on_reference_grid:
        figure += "; flattered: it has the type the model was imported from"
    count = len(contest.feasible)
    winner = contest.winner
    if chosen is winner:
        if count == 1:
            return f"the only candidate that fits ({figure})"
        return f"best {objective.value} of {count} that fit ({figure})"
    loss = contest.loss(chosen)
    best = _objective_text(winner, contest.device_class)
    return (
        f"within {loss:.1%} of the best {objective.value} ({figure}; {winner.quantization}:"
        f" {best}), and one variant fewer to ship"
    )


def _losing_reason(contest: _Contest, loser: Candidate, chosen: Candidate) -> str:
    if loser.quantization in contest.infeasible:
        excesses = contest.infeasible[loser.quantization]
        return "; ".join(excess.text for excess in excesses)
    dominator = _dominator(loser, contest.feasible, contest.device_class)
    if dominator is not None:
        return (
            f"dominated by {dominator.quantization}: no worse in KL divergence, bytes"
            " and decode speed, better in at least one"
        )
    if loser is contest.winner:
        return (
            f"best {contest.device_class.objective.value}, but {chosen.quantization} is"
            f" within {contest.loss(chosen):.1%} and serves other classes too"
        )
    mine = _objective_text(loser, contest.device_class)
    theirs = _objective_text(chosen, contest.device_class)
    return (
        f"worse {contest.device_class.objective.value}: {mine}, against {theirs}"
        f" of {chosen.quantization}"
    )


def _dominator(
    candidate: Candidate, others: Sequence[Candidate], device_class: DeviceClass
) -> Candidate | None:
    mine = _costs(candidate, device_class)
    for other in others:
        theirs = _costs(other, device_class)
        pairs = zip(theirs, mine, strict=True)
        if theirs != mine and all(their <= my for their, my in pairs):
            return other
    return None


def _costs(
    candidate: Candidate, device_class: DeviceClass
) -> tuple[float, float, float]:
    """Return (KL divergence, bytes, negative decode speed): less is better."""
    speed = candidate.card.speed_for(device_class)
    decode = speed.decode_tokens_per_s.value if speed else 0.0
    return candidate.card.fidelity.mean_kld.value, float(candidate.card.bytes), -decode


def _objective_value(candidate: Candidate, device_class: DeviceClass) -> float:
    return objective_key(candidate, device_class)[0]


def _objective_text(candidate: Candidate, device_class: DeviceClass) -> str:
    value = abs(_objective_value(candidate, device_class))
    match device_class.objective:
        case Objective.QUALITY:
            return f"KL divergence {value:.4f} nats"
        case Objective.SPEED:
            return f"{value:.1f} tokens/s"
        case Objective.SIZE:
            return f"{value / MIB:.1f} MiB"


def _nearest_miss(contest: _Contest) -> str:
    name, excesses = min(
        contest.infeasible.items(),
        key=lambda item: (max(excess.ratio for excess in item[1]), item[0]),
    )
    return (
        f"class {contest.device_class.name}: none of {len(contest.candidates)} candidates"
        f" fits; nearest is {name}: {'; '.join(excess.text for excess in excesses)}"
    )
