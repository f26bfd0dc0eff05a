"""Why a candidate was chosen for a class, and why another was not: text with figures."""

from slmops.domain.device import Objective
from slmops.workshop.build_result import Candidate
from slmops.workshop.feasibility import MIB
from slmops.workshop.ranking import Ranking, lack_of_quality


def winning_reason(ranking: Ranking, chosen: Candidate) -> str:
    """Say why `chosen`, one of the candidates that fit, was chosen."""
    figure = objective_text(ranking, chosen)
    if chosen.on_reference_grid:
        figure += "; flattered: it has the type the model was imported from"
    if len(ranking.candidates) == 1:
        return f"the only candidate that fits ({figure})"
    if chosen is not ranking.best_first()[0]:
        return _sharing_reason(ranking, chosen, figure)
    count = len(ranking.candidates)
    objective = ranking.device_class.objective
    level = len(ranking.level_with_fastest())
    if objective is Objective.SPEED and level > 1:
        return (
            f"one of {level} fastest of {count} that fit, which timing cannot tell apart"
            f" ({figure}); of these it has the least KL divergence,"
            f" {_kld(chosen):.4f} nats"
        )
    return f"best {objective.value} of {count} that fit ({figure})"


def losing_reason(ranking: Ranking, loser: Candidate, chosen: Candidate) -> str:
    """Say why `loser`, which fits as well, was not chosen but `chosen` was."""
    dominator = ranking.dominator(loser)
    if dominator is not None:
        return (
            f"dominated by {dominator.label}: no worse in quality and bytes,"
            " nor slower beyond timing noise, better in at least one"
        )
    objective = ranking.device_class.objective
    if ranking.key(loser) < ranking.key(chosen):
        first = "best" if loser is ranking.best_first()[0] else "better"
        return (
            f"{first} {objective.value}, but {chosen.label}"
            f" {_closeness(ranking, chosen)} and serves other classes too"
        )
    mine, theirs = (objective_text(ranking, c) for c in (loser, chosen))
    if objective is not Objective.SPEED:
        return f"worse {objective.value}: {mine}, against {theirs} of {chosen.label}"
    if not ranking.surely_faster(loser):
        return (
            f"timing cannot tell it from {chosen.label} ({mine}, against {theirs}),"
            f" which is closer to the reference: KL divergence {_kld(chosen):.4f} nats,"
            f" against {_kld(loser):.4f}"
        )
    fastest = ranking.fastest
    return (
        f"worse speed: {mine}; {fastest.label} makes at least"
        f" {ranking.decode(fastest).low:.1f}"
    )


def objective_text(ranking: Ranking, candidate: Candidate) -> str:
    """Return a candidate's figure of the class's objective, with its unit."""
    match ranking.device_class.objective:
        case Objective.QUALITY:
            if candidate.search_tasks:
                return (
                    f"task score at most {lack_of_quality(candidate):.3f} below the"
                    f" reference's, KL divergence {_kld(candidate):.4f} nats"
                )
            return f"KL divergence {_kld(candidate):.4f} nats"
        case Objective.SPEED:
            decode = ranking.decode(candidate)
            bounds = f"{decode.low:.1f} to {decode.high:.1f}"
            return f"{decode.value:.1f} tokens/s, {bounds}"
        case Objective.SIZE:
            return f"{candidate.card.bytes / MIB:.1f} MiB"


def _sharing_reason(ranking: Ranking, chosen: Candidate, figure: str) -> str:
    speed = ranking.device_class.objective is Objective.SPEED
    best = ranking.fastest if speed else ranking.best_first()[0]
    what = f"the best {ranking.device_class.objective.value}"
    compared = (
        f"({figure})"
        if best is chosen
        else f"({figure}; {best.label}: {objective_text(ranking, best)})"
    )
    return (
        f"{_closeness(ranking, chosen)} of {what} {compared}, and one variant fewer to ship"
    ).removeprefix("is ")


def _closeness(ranking: Ranking, chosen: Candidate) -> str:
    speed = ranking.device_class.objective is Objective.SPEED
    if speed and not ranking.surely_faster(chosen):
        return "is within timing noise"
    return f"is within {ranking.loss(chosen):.1%}"


def _kld(candidate: Candidate) -> float:
    return candidate.card.fidelity.mean_kld.value
