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

from collections.abc import Sequence
from dataclasses import dataclass

from slmops.domain.device import DeviceClass, Objective
from slmops.domain.release import Estimate
from slmops.workshop.build_result import Candidate

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

    def costs(self, candidate: Candidate) -> tuple[float, float, float]:
        """Return KL divergence, bytes and speed rank; less is better."""
        card = candidate.card
        rank = self.surely_faster(candidate)
        return card.fidelity.mean_kld.value, float(card.bytes), float(rank)

    def key(self, candidate: Candidate) -> tuple[float, float, float, str]:
        """Return a sort key: the objective first, then the others, then the name."""
        kld, size, rank = self.costs(candidate)
        name = candidate.label
        match self.device_class.objective:
            case Objective.QUALITY:
                return (kld, size, rank, name)
            case Objective.SPEED:
                return (rank, kld, size, name)
            case Objective.SIZE:
                return (size, kld, rank, name)

    def best_first(self) -> list[Candidate]:
        """Return all of them, the class's objective deciding."""
        return sorted(self.candidates, key=self.key)

    def loss(self, candidate: Candidate) -> float:
        """Return the share of the objective lost against the best, 0 to 1.

        Speed is lost only by what is surely slower than the fastest.
        """
        if self.device_class.objective is Objective.SPEED:
            if not self.surely_faster(candidate):
                return 0.0
            best = self.decode(self.fastest).value
            return max(1 - self.decode(candidate).value / best, 0.0)
        mine, best = (
            self.key(candidate)[0],
            min(self.key(c)[0] for c in self.candidates),
        )
        return (mine - best) / mine if mine > 0 else 0.0

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
