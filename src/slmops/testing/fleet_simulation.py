"""A fleet in one process: what the real `advance` does to devices that fail by chance.

Pure: chance comes from a seed, time is a number. Nothing here decides anything; every
verdict is the domain's. Evidence can only rise with a failure, so `advance` is asked
after every failure and whenever a wave is complete, which gives the same halts as asking
after every device.

Real waves are offered whole, and a failure is known sooner than a success: `Arrival`
says how outcomes come in.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from slmops.domain.blueprint import RolloutPolicy
from slmops.domain.members import Member, Outcome
from slmops.domain.rollout import ENDED, Rollout, RolloutState, Step, advance
from slmops.domain.waves import Candidate, build_waves

_MAX_PAIRED_LOSS = 1.0
_ONE_SECOND = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class SimulatedClass:
    """Devices of one class and how often an update truly fails on them."""

    devices: int
    """How many there are."""
    failure_rate: float
    """True chance that one device fails, 0 to 1."""


class Arrival(StrEnum):
    """How devices get the release, and in which order their outcomes arrive."""

    ONE_BY_ONE = "one-by-one"
    """A device is offered the release once the one before it has an outcome: the
    setting of the reference figures."""
    WHOLE_WAVE = "whole-wave"
    """A wave is offered at once, as the engine does; outcomes arrive by chance."""
    FAILURES_FIRST = "failures-first"
    """As `WHOLE_WAVE`, but every failure of the wave is known before any success: the
    worst order for a stop rule."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SimulatedEnd:
    """How one simulated rollout ended."""

    completed: bool
    """Every wave passed."""
    exposed: int
    """Devices that had been offered the release by then."""
    reason: str
    """The rollout's own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """Many simulated rollouts together."""

    completed: float
    """Share that completed."""
    exposed: float
    """Mean number of devices that had been offered the release."""


def simulate_rollout(
    fleet: Mapping[str, SimulatedClass],
    policy: RolloutPolicy,
    *,
    seed: str,
    arrival: Arrival = Arrival.ONE_BY_ONE,
) -> SimulatedEnd:
    """Play one rollout to its end with the real waves and the real `advance`.

    Args:
        fleet: class name → its devices.
        policy: `soak_s` and `deadline_s` count in simulated seconds, one a step.
        seed: same seed, same run, and with every `arrival` the same devices fail.
        arrival: how devices get it and outcomes come in.
    """
    dice = random.Random(seed)  # noqa: S311 - a simulation, not a secret
    candidates = [
        Candidate(device=f"{name}-{i}", device_class=name)
        for name, group in fleet.items()
        for i in range(group.devices)
    ]
    waves = build_waves(candidates, policy, salt=seed)
    cohorts: list[list[Member]] = [[] for _ in policy.waves]
    for one in candidates:
        wave = waves[one.device]
        cohorts[wave].append(
            Member(device=one.device, device_class=one.device_class, wave=wave)
        )
    rollout = Rollout(
        id="r-1",
        release="simulated-1",
        policy=policy,
        classes=tuple(fleet),
        waves=len(policy.waves),
    )
    play = _Play(rollout=rollout, seen=[], dice=dice, arrival=arrival)
    return _play(play, cohorts, fleet)


def play_known(
    policy: RolloutPolicy, outcomes: Sequence[Sequence[tuple[str, bool]]]
) -> SimulatedEnd:
    """Play given outcomes through the real `advance`, waves offered whole.

    Args:
        policy: with as many waves as `outcomes`; its sizes are not looked at.
        outcomes: for each wave, class and whether it failed, of every device in the
            order in which that becomes known.
    """
    cohorts = [
        [
            Member(device=f"{wave}-{index}", device_class=name, wave=wave)
            for index, (name, _) in enumerate(known)
        ]
        for wave, known in enumerate(outcomes)
    ]
    rollout = Rollout(
        id="r-1",
        release="simulated-1",
        policy=policy,
        classes=tuple(sorted({name for known in outcomes for name, _ in known})),
        waves=len(outcomes),
    )
    play = _Play(
        rollout=rollout,
        seen=[],
        dice=random.Random(0),  # noqa: S311 - nothing is drawn
        arrival=Arrival.WHOLE_WAVE,
    )
    for wave, (cohort, known) in enumerate(zip(cohorts, outcomes, strict=True)):
        begin = len(play.seen)
        play.seen += cohort
        play.offer(begin)
        drawn = [(begin + index, bad) for index, (_, bad) in enumerate(known)]
        if _play_wave(play, wave, drawn):
            break
    return _end(play)


def summarize(ends: Sequence[SimulatedEnd]) -> Summary:
    """Return the share that completed and the mean exposure; at least one run."""
    return Summary(
        completed=sum(end.completed for end in ends) / len(ends),
        exposed=sum(end.exposed for end in ends) / len(ends),
    )


def simulate_naive_rule(
    waves: Sequence[int], *, failure_rate: float, seed: str
) -> SimulatedEnd:
    """Play the rule that many systems have: halt when over 5 % of a wave failed.

    Failures are divided by the size of the whole wave, counted anew in each wave, and
    looked at after every device. This reading reproduces the design's figures.
    """
    dice = random.Random(seed)  # noqa: S311 - a simulation, not a secret
    exposed = 0
    for size in waves:
        failed = 0
        for _ in range(size):
            exposed += 1
            failed += dice.random() < failure_rate
            if failed > 0.05 * size:
                return SimulatedEnd(
                    completed=False, exposed=exposed, reason="over 5 % failed"
                )
    return SimulatedEnd(completed=True, exposed=exposed, reason="every wave passed")


@dataclass(kw_only=True, slots=True)
class _Play:
    """One simulated rollout under way."""

    rollout: Rollout
    seen: list[Member]
    """Members of the waves so far; `advance` needs no later ones."""
    dice: random.Random
    arrival: Arrival
    now: float = 0.0

    def ask(self) -> Step:
        """Let the domain decide, and take its step."""
        self.now += _ONE_SECOND
        step = advance(
            self.rollout, self.seen, self.now, max_paired_loss=_MAX_PAIRED_LOSS
        )
        self.rollout = step.rollout
        return step

    def offer(self, begin: int) -> None:
        """Begin a wave, whose members are seen from `begin` on."""
        offered = set(self.ask().offer)
        if self.arrival is Arrival.ONE_BY_ONE:
            return
        for index in range(begin, len(self.seen)):
            if self.seen[index].device in offered:
                self.seen[index] = replace(self.seen[index], offered_at=self.now)


def _play(
    play: _Play,
    cohorts: Sequence[Sequence[Member]],
    fleet: Mapping[str, SimulatedClass],
) -> SimulatedEnd:
    for wave, cohort in enumerate(cohorts):
        begin = len(play.seen)
        play.seen += cohort
        play.offer(begin)
        if _play_wave(play, wave, _outcomes(play, begin, fleet)):
            break
    return _end(play)


def _play_wave(play: _Play, wave: int, drawn: Sequence[tuple[int, bool]]) -> bool:
    """Let the outcomes of a wave become known; tell whether the rollout ended."""
    for index, failed in drawn:
        play.seen[index] = replace(
            play.seen[index],
            offered_at=play.now,
            outcome=Outcome.FAILED if failed else Outcome.SUCCEEDED,
            seen_at=math.inf,  # simulated devices never fall silent
        )
        if failed:
            play.ask()
        if play.rollout.state in ENDED:
            return True
    while play.rollout.state not in ENDED and play.rollout.wave == wave:
        play.ask()
    return play.rollout.state in ENDED


def _outcomes(
    play: _Play, begin: int, fleet: Mapping[str, SimulatedClass]
) -> list[tuple[int, bool]]:
    """Return which devices of the wave fail, in the order in which that is known."""
    order = list(range(begin, len(play.seen)))
    play.dice.shuffle(order)
    drawn = [
        (
            index,
            play.dice.random() < fleet[play.seen[index].device_class].failure_rate,
        )
        for index in order
    ]
    if play.arrival is Arrival.FAILURES_FIRST:
        drawn.sort(key=lambda one: not one[1])
    return drawn


def _end(play: _Play) -> SimulatedEnd:
    return SimulatedEnd(
        completed=play.rollout.state is RolloutState.DONE,
        exposed=sum(member.offered_at is not None for member in play.seen),
        reason=play.rollout.reason,
    )
