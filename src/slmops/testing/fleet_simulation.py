"""A fleet in one process: what the real `advance` does to devices that fail by chance.

Pure: chance comes from a seed, time is a number. Nothing here decides anything; every
verdict is the domain's. Evidence can only rise with a failure, so `advance` is asked
after every failure and whenever a wave is complete, which gives the same halts as asking
after every device.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from slmops.domain.blueprint import RolloutPolicy
from slmops.domain.rollout import (
    ENDED,
    Member,
    Outcome,
    Rollout,
    RolloutState,
    Step,
    advance,
)
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


@dataclass(frozen=True, kw_only=True, slots=True)
class SimulatedEnd:
    """How one simulated rollout ended."""

    completed: bool
    """Every wave passed."""
    exposed: int
    """Devices that had tried the release by then, one by one."""
    reason: str
    """The rollout's own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """Many simulated rollouts together."""

    completed: float
    """Share that completed."""
    exposed: float
    """Mean number of devices that had tried the release."""


def simulate_rollout(
    fleet: Mapping[str, SimulatedClass], policy: RolloutPolicy, *, seed: str
) -> SimulatedEnd:
    """Play one rollout to its end with the real waves and the real `advance`.

    Args:
        fleet: class name → its devices.
        policy: `soak_s` and `deadline_s` count in simulated seconds, one a step.
        seed: same seed, same run.
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
    return _play(_Play(rollout=rollout, seen=[], dice=dice), cohorts, fleet)


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
    now: float = 0.0

    def ask(self) -> Step:
        """Let the domain decide, and take its step."""
        self.now += _ONE_SECOND
        step = advance(
            self.rollout, self.seen, self.now, max_paired_loss=_MAX_PAIRED_LOSS
        )
        self.rollout = step.rollout
        return step


def _play(
    play: _Play,
    cohorts: Sequence[Sequence[Member]],
    fleet: Mapping[str, SimulatedClass],
) -> SimulatedEnd:
    exposed = 0
    for wave, cohort in enumerate(cohorts):
        begin = len(play.seen)
        play.seen += cohort
        offered = set(play.ask().offer)
        for index in range(begin, len(play.seen)):
            if play.seen[index].device in offered:
                play.seen[index] = replace(play.seen[index], offered_at=play.now)
        order = list(range(begin, len(play.seen)))
        play.dice.shuffle(order)
        for index in order:
            exposed += 1
            member = play.seen[index]
            failed = play.dice.random() < fleet[member.device_class].failure_rate
            outcome = Outcome.FAILED if failed else Outcome.SUCCEEDED
            play.seen[index] = replace(member, outcome=outcome)
            if failed:
                play.ask()
            if play.rollout.state in ENDED:
                return _end(play, exposed)
        while play.rollout.state not in ENDED and play.rollout.wave == wave:
            play.ask()
    return _end(play, exposed)


def _end(play: _Play, exposed: int) -> SimulatedEnd:
    return SimulatedEnd(
        completed=play.rollout.state is RolloutState.DONE,
        exposed=exposed,
        reason=play.rollout.reason,
    )
