"""Why a candidate was chosen for a class, and why another was not: text with figures.

A ranking compares boxes first: what differs by `EPSILON` counts as equal, and the next
figure decides. So a reason names the figure that decided, which need not be the class's
objective, and shows it to as many digits as it takes to see the difference.
"""

from slmops.domain.device import Objective
from slmops.workshop.build_result import Candidate
from slmops.workshop.feasibility import MIB
from slmops.workshop.ranking import EPSILON, Ranking, lack_of_quality

_QUALITY, _BYTES, _SPEED, _NAME = "quality", "bytes", "speed", "name"
_CRITERIA = {
    Objective.QUALITY: (_QUALITY, _BYTES, _SPEED, _QUALITY, _BYTES, _NAME),
    Objective.SPEED: (_SPEED, _QUALITY, _BYTES, _QUALITY, _BYTES, _NAME),
    Objective.SIZE: (_BYTES, _QUALITY, _SPEED, _BYTES, _QUALITY, _NAME),
}
"""What the parts of `Ranking.key` are, in order: three boxes, two exact figures, a name."""
_MOST_DECIMALS = 12


def winning_reason(ranking: Ranking, chosen: Candidate, *, shared: bool = False) -> str:
    """Say why `chosen`, one of the candidates that fit, was chosen.

    Args:
        ranking: of what fits the class.
        chosen: for it.
        shared: whether another class was given it too.
    """
    figure = objective_text(ranking, chosen)
    if chosen.on_reference_grid:
        figure += f"; {chosen.flattery}"
    count = len(ranking.candidates)
    if count == 1:
        return f"the only candidate that fits ({figure})"
    first, second = ranking.best_first()[:2]
    if chosen is not first and shared:
        return _sharing_reason(ranking, chosen, figure)
    objective = ranking.device_class.objective
    place = 0 if chosen is not first else _deciding_place(ranking, chosen, second)
    if place == 0:
        return f"best {objective.value} of {count} that fit ({figure})"
    key = ranking.key(chosen)
    level = sum(ranking.key(each)[0] == key[0] for each in ranking.candidates)
    what = (
        f"{level} fastest of {count} that fit, which timing cannot tell apart"
        if objective is Objective.SPEED
        else f"{level} best of {count} that fit, whose {objective.value} counts as equal"
    )
    decided = (
        f"of these it has {_superlative(ranking, place, chosen)}"
        if place == 1
        else f"next is {second.label}, against which it has"
        f" {_comparison(ranking, place, chosen, second)}"
    )
    return f"one of {what} ({figure}); {decided}"


def losing_reason(
    ranking: Ranking, loser: Candidate, chosen: Candidate, *, shared: bool = False
) -> str:
    """Say why `loser`, which fits as well, was not chosen but `chosen` was.

    Args:
        ranking: of what fits the class.
        loser: not chosen.
        chosen: instead.
        shared: whether another class was given `chosen` too.
    """
    dominator = ranking.dominator(loser)
    if dominator is not None:
        doubt = f" by more than {EPSILON:.0%}" if _is_worse(dominator, loser) else ""
        return (
            f"dominated by {dominator.label}: no worse in quality and bytes{doubt},"
            " nor slower beyond timing noise, better in at least one"
        )
    objective = ranking.device_class.objective
    if ranking.key(loser) < ranking.key(chosen):
        return _passed_over(ranking, loser, chosen, shared=shared)
    place = _deciding_place(ranking, chosen, loser)
    if place > 0:
        level = (
            f"timing cannot tell it from {chosen.label}"
            f" ({objective_text(ranking, loser)},"
            f" against {objective_text(ranking, chosen)}), which"
            if objective is Objective.SPEED and not ranking.surely_faster(loser)
            else f"{objective.value} counts as equal to that of {chosen.label}, which"
        )
        return f"{level} has {_comparison(ranking, place, chosen, loser)}"
    if objective is not Objective.SPEED:
        return (
            f"worse {objective.value}: {chosen.label} has"
            f" {_comparison(ranking, place, chosen, loser)}"
        )
    fastest = ranking.fastest
    return (
        f"worse speed: {objective_text(ranking, loser)}; {fastest.label} makes at least"
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
            return (
                f"KL divergence {_kld(candidate):.4f} nats,"
                f" at most {lack_of_quality(candidate):.4f}"
            )
        case Objective.SPEED:
            decode = ranking.decode(candidate)
            bounds = f"{decode.low:.1f} to {decode.high:.1f}"
            return f"{decode.value:.1f} tokens/s, {bounds}"
        case Objective.SIZE:
            return f"{candidate.card.bytes / MIB:.1f} MiB"


def _deciding_place(ranking: Ranking, better: Candidate, worse: Candidate) -> int:
    """Return the first part of the ranking's key that differs."""
    pairs = zip(ranking.key(better), ranking.key(worse), strict=True)
    return next(place for place, (mine, theirs) in enumerate(pairs) if mine != theirs)


def _superlative(ranking: Ranking, place: int, candidate: Candidate) -> str:
    """Say what a candidate has the best of."""
    if _CRITERIA[ranking.device_class.objective][place] == _BYTES:
        return f"the fewest bytes, {candidate.card.bytes / MIB:.1f} MiB"
    lack = lack_of_quality(candidate)
    if candidate.search_tasks:
        return f"the best task score, at most {lack:.3f} below the reference's"
    return f"the least KL divergence, at most {lack:.4f} nats"


def _comparison(
    ranking: Ranking, place: int, better: Candidate, worse: Candidate
) -> str:
    """Say what one candidate has against another, by the part of the key that decided."""
    match _CRITERIA[ranking.device_class.objective][place]:
        case "quality":
            lacks = lack_of_quality(better), lack_of_quality(worse)
            if better.search_tasks:
                mine, theirs = _apart(*lacks, 3)
                return (
                    f"the better task score: at most {mine} below the reference's,"
                    f" against {theirs}"
                )
            mine, theirs = _apart(*lacks, 4)
            return f"less KL divergence: at most {mine} nats, against {theirs}"
        case "bytes":
            sizes = better.card.bytes / MIB, worse.card.bytes / MIB
            mine, theirs = _apart(*sizes, 1)
            return f"fewer bytes: {mine} MiB, against {theirs}"
        case "speed":
            return (
                f"fewer that are surely faster: {ranking.surely_faster(better)},"
                f" against {ranking.surely_faster(worse)}"
            )
        case _:
            return "the same figures and comes first by name"


def _apart(one: float, other: float, decimals: int) -> tuple[str, str]:
    """Return two numbers with as many decimals as show that they differ, or so many.

    >>> _apart(0.03, 0.03004, 4)
    ('0.03000', '0.03004')
    """
    while (
        decimals < _MOST_DECIMALS and f"{one:.{decimals}f}" == f"{other:.{decimals}f}"
    ):
        decimals += 1
    return f"{one:.{decimals}f}", f"{other:.{decimals}f}"


def _is_worse(one: Candidate, other: Candidate) -> bool:
    """Whether one is worse by an exact figure, however little."""
    lacks_more = lack_of_quality(one) > lack_of_quality(other)
    return lacks_more or one.card.bytes > other.card.bytes


def _passed_over(
    ranking: Ranking, loser: Candidate, chosen: Candidate, *, shared: bool
) -> str:
    """Say why what ranks better was not chosen."""
    objective = ranking.device_class.objective
    if shared:
        first = "best" if loser is ranking.best_first()[0] else "better"
        return (
            f"{first} {objective.value}, but {chosen.label}"
            f" {_closeness(ranking, chosen)} and serves other classes too"
        )
    # Their boxes are equal, and of equal losses the smallest was taken.
    place = 3
    return (
        f"worse {objective.value}, by less than {EPSILON:.0%}: {chosen.label} has"
        f" {_comparison(ranking, place, chosen, loser)}"
    )


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
