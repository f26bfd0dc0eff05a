"""How candidates compare on one device class, where timing noise is no difference.

Decode speed is known as the median of some runs with bounds (`Speed.decode_median`).
One candidate is *surely faster* than another when its lower bound is above the other's
upper one. Of few runs the bounds are the slowest and the fastest, so that all runs of
one must beat all of the other; of two equally fast ones that happens by chance, in
either direction, with probability ``2 n!² / (2n)!``: 10 % for 3 runs each, 0.8 % for 5,
the default. (Comparing round by round would be weaker evidence: all n rounds agree by
chance with probability ``2 / 2ⁿ``, 6 % for 5.)

"Not surely faster" is not transitive, so candidates are not compared in pairs: each is
ranked by how many others are surely faster than it. Rank 0 is everything that cannot be
told from the fastest. Who is surely faster always has the better rank, and ranks are
numbers: what is built on them depends on no order and has no cycles.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from slmops.domain.device import DeviceClass, Objective
from slmops.domain.release import Estimate
from slmops.workshop.build_result import Candidate

EPSILON = 0.01
"""Share of a cost within which two count as the same; of a task's score, the difference."""
_LEAST_COST = 1e-9
_UNKNOWN = Estimate(value=0.0, low=0.0, high=0.0)


@dataclass(frozen=True, slots=True)
class Ranking:
    """Candidates compared with each other on one device class."""

    device_class: DeviceClass
    """Where, and by which objective."""
    candidates: Sequence[Candidate]
    """One or more."""

    def decode(self, candidate: Candidate) -> Estimate:
        """Return a candidate's decode speed here; zero where it was not measured."""
        speed = candidate.card.speed_for(self.device_class)
        if speed is None:
            return _UNKNOWN
        return speed.decode_median or speed.decode_tokens_per_s

    @property
    def fastest(self) -> Candidate:
        """The one with the largest lower bound."""
        return max(
            self.candidates,
            key=lambda c: (self.decode(c).low, self.decode(c).value, c.label),
        )

    def surely_faster(self, candidate: Candidate) -> int:
        """Return how many are surely faster: 0 when it cannot be told from the fastest."""
        mine = self.decode(candidate).high
        return sum(self.decode(other).low > mine for other in self.candidates)

    def level_with_fastest(self) -> list[Candidate]:
        """Return what timing cannot tell from the fastest, itself included."""
        return [c for c in self.candidates if not self.surely_faster(c)]

    def costs(self, candidate: Candidate) -> tuple[int, int, int]:
        """Return boxes of what quality it lacks and of its bytes, and its speed rank.

        Less is better. A box holds what differs by a share `EPSILON` at most: within it,
        the other costs decide (ε-dominance, Laumanns et al. 2002).
        """
        return (
            _quality_box(candidate),
            _box(float(candidate.card.bytes)),
            self.surely_faster(candidate),
        )

    def key(self, candidate: Candidate) -> tuple[float | str, ...]:
        """Return a sort key: the objective first, then the others, then exact figures."""
        lack, size, rank = self.costs(candidate)
        exact = (lack_of_quality(candidate), float(candidate.card.bytes))
        match self.device_class.objective:
            case Objective.QUALITY:
                return (lack, size, rank, *exact, candidate.label)
            case Objective.SPEED:
                return (rank, lack, size, *exact, candidate.label)
            case Objective.SIZE:
                return (size, lack, rank, *exact[::-1], candidate.label)

    def best_first(self) -> list[Candidate]:
        """Return all of them, the class's objective deciding."""
        return sorted(self.candidates, key=self.key)

    def loss(self, candidate: Candidate) -> float:
        """Return the share of the objective lost against the best, 0 to 1.

        Speed is lost only by what is surely slower than the fastest; quality and bytes by
        what is not in the best one's box.
        """
        if self.device_class.objective is Objective.SPEED:
            if not self.surely_faster(candidate):
                return 0.0
            best = self.decode(self.fastest).value
            return max(1 - self.decode(candidate).value / best, 0.0)
        quality = self.device_class.objective is Objective.QUALITY
        at = 0 if quality else 1
        if self.costs(candidate)[at] == min(self.costs(c)[at] for c in self.candidates):
            return 0.0
        of = lack_of_quality if quality else _size_of
        mine, least = of(candidate), min(of(c) for c in self.candidates)
        if quality and candidate.search_tasks:
            return mine - least  # scores are shares already
        return (mine - least) / mine if mine > 0 else 0.0

    def dominator(self, candidate: Candidate) -> Candidate | None:
        """Return the best of what is no worse in any cost and better in one, or None."""
        mine = self.costs(candidate)
        found = []
        for other in self.candidates:
            theirs = self.costs(other)
            pairs = zip(theirs, mine, strict=True)
            if theirs != mine and all(their <= my for their, my in pairs):
                found.append(other)
        return min(found, key=self.key, default=None)


def lack_of_quality(candidate: Candidate) -> float:
    """Return what a class that asks for quality wants least of.

    Pessimistic: with tasks, the loss against the reference that their bounds allow, as a
    mean over the tasks (search split); without, the upper bound of the mean KL
    divergence in nats.
    """
    if not candidate.search_tasks:
        return candidate.card.fidelity.mean_kld.high
    losses = [
        -result.difference.low
        for result in candidate.search_tasks
        if result.difference is not None
    ]
    return sum(losses) / len(losses) if losses else 0.0


def _quality_box(candidate: Candidate) -> int:
    lack = lack_of_quality(candidate)
    return math.floor(lack / EPSILON) if candidate.search_tasks else _box(lack)


def _box(cost: float) -> int:
    """Return the number of a cost's box; boxes are `EPSILON` wide in proportion."""
    return math.floor(math.log(max(cost, _LEAST_COST)) / math.log1p(EPSILON))


def _size_of(candidate: Candidate) -> float:
    return float(candidate.card.bytes)
