"""Play a rollout policy against assumed failure rates, before anything is offered.

The gates and the dealing of waves are the ones the engine uses; only devices are made up:
each fails its update by chance, independently. A wave is offered whole and its outcomes
become known one after the other, as in the engine. What is not played: silence, soaking,
live traffic, paired losses, and limits per site (which expose fewer devices, never more).

`slmops.testing.fleet_simulation` plays the same through the engine's own `advance`; a
test holds the two together.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from slmops.domain.blueprint import RolloutPolicy
from slmops.domain.errors import InvalidInputError
from slmops.domain.gate import (
    AdvanceRule,
    ClassCount,
    Verdict,
    advance_gate,
    log_e_value,
)

Wave = Mapping[str, int]
"""Class → devices of it in the wave."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outlook:
    """Many plays of one policy against one set of rates."""

    failure_rates: Mapping[str, float]
    """Class → assumed chance that an update fails on one of its devices."""
    runs: int
    """Plays."""
    completed: float
    """Share of plays in which the release reached the whole fleet."""
    completed_low: float
    """Lower end of the 95 % interval of that share (Wilson, JASA 22 (1927))."""
    completed_high: float
    """Upper end."""
    exposed_mean: float
    """Mean number of devices that were offered the release."""
    exposed_p95: float
    """95 % of the plays exposed at most this many."""
    broken_mean: float
    """Mean number of devices on which the update failed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Play:
    """How one play ended."""

    completed: bool
    """Every wave passed."""
    exposed: int
    """Devices offered."""
    broken: int
    """Devices on which the update had failed by then."""
    halted_by: str = ""
    """``stop`` or ``advance``; empty when it completed."""


def simulate(
    waves: Sequence[Wave],
    policy: RolloutPolicy,
    failure_rates: Mapping[str, float],
    *,
    runs: int = 1000,
    seed: int = 0,
) -> Outlook:
    """Play a policy many times.

    Args:
        waves: devices of each class, wave by wave.
        policy: its gates; its own waves are not looked at.
        failure_rates: class → rate in [0, 1]; every class of the waves.
        runs: plays, at least 1.
        seed: same seed, same result.

    Raises:
        InvalidInputError: a rate is missing, out of range, or of no class.
    """
    _check(waves, failure_rates, runs)
    dice = random.Random(seed)  # noqa: S311 - a simulation, not a secret
    plays = [play_once(waves, policy, failure_rates, dice) for _ in range(runs)]
    done = sum(play.completed for play in plays)
    low, high = _wilson(done, runs)
    exposed = sorted(play.exposed for play in plays)
    return Outlook(
        failure_rates=dict(failure_rates),
        runs=runs,
        completed=done / runs,
        completed_low=low,
        completed_high=high,
        exposed_mean=sum(exposed) / runs,
        exposed_p95=exposed[min(runs - 1, math.ceil(0.95 * runs) - 1)],
        broken_mean=sum(play.broken for play in plays) / runs,
    )


def play_once(
    waves: Sequence[Wave],
    policy: RolloutPolicy,
    failure_rates: Mapping[str, float],
    dice: random.Random,
) -> Play:
    """Play one rollout to its end."""
    outcomes = [_outcomes(wave, failure_rates, dice) for wave in waves]
    return play_outcomes(waves, policy, outcomes)


def play_outcomes(
    waves: Sequence[Wave],
    policy: RolloutPolicy,
    outcomes: Sequence[Sequence[tuple[str, bool]]],
) -> Play:
    """Play what became of each device.

    Args:
        waves: devices of each class, wave by wave.
        policy: the gates.
        outcomes: for each wave, class and whether it failed, of every device in the
            order in which that becomes known.
    """
    classes = sorted({name for wave in waves for name in wave})
    limit = math.log(len(classes) / policy.alpha)
    offered = dict.fromkeys(classes, 0)
    failed = dict.fromkeys(classes, 0)
    for wave, known in zip(waves, outcomes, strict=True):
        for name, devices in wave.items():
            offered[name] += devices
        in_wave = dict.fromkeys(wave, 0)
        for name, bad in known:
            if not bad:
                continue
            failed[name] += 1
            in_wave[name] += 1
            good = offered[name] - failed[name]
            if _evidence(good, failed[name], policy.tolerated_failure_rate) >= limit:
                return _ended(offered, failed, halted_by="stop")
        if not _passes(wave, in_wave, policy, len(waves)):
            return _ended(offered, failed, halted_by="advance")
    return _ended(offered, failed)


def _outcomes(
    wave: Wave, failure_rates: Mapping[str, float], dice: random.Random
) -> list[tuple[str, bool]]:
    """Draw who fails, in the order in which that becomes known."""
    drawn = [
        (name, dice.random() < failure_rates[name])
        for name, devices in sorted(wave.items())
        for _ in range(devices)
    ]
    dice.shuffle(drawn)
    return drawn


def _passes(
    wave: Wave, failed: Mapping[str, int], policy: RolloutPolicy, waves: int
) -> bool:
    if not any(wave.values()):
        return True
    counts = {
        name: ClassCount(succeeded=devices - failed[name], failed=failed[name])
        for name, devices in wave.items()
        if devices
    }
    rule = AdvanceRule(
        tolerated_rate=policy.tolerated_failure_rate,
        alpha=policy.alpha / waves,
        min_per_class=policy.min_per_class,
        max_paired_loss=math.inf,
    )
    return advance_gate(wave, counts, {}, rule).verdict is Verdict.PASS


@lru_cache(maxsize=1 << 16)
def _evidence(good: int, failed: int, tolerated: float) -> float:
    return log_e_value(good, failed, tolerated_rate=tolerated)


def _ended(
    offered: Mapping[str, int], failed: Mapping[str, int], *, halted_by: str = ""
) -> Play:
    return Play(
        completed=not halted_by,
        exposed=sum(offered.values()),
        broken=sum(failed.values()),
        halted_by=halted_by,
    )


def _wilson(successes: int, runs: int, z: float = 1.96) -> tuple[float, float]:
    """Return the 95 % interval of a share.

    >>> low, high = _wilson(0, 100)
    >>> low, round(high, 3)
    (0.0, 0.037)
    """
    share, scale = successes / runs, 1 + z * z / runs
    middle = (share + z * z / (2 * runs)) / scale
    half = z * math.sqrt(share * (1 - share) / runs + (z / (2 * runs)) ** 2) / scale
    return max(middle - half, 0.0), min(middle + half, 1.0)


def _check(
    waves: Sequence[Wave], failure_rates: Mapping[str, float], runs: int
) -> None:
    classes = {name for wave in waves for name in wave}
    if not classes:
        raise InvalidInputError("a rollout without devices has no outlook")
    if runs < 1:
        raise InvalidInputError(f"runs must be >= 1, got {runs}")
    missing, unknown = classes - set(failure_rates), set(failure_rates) - classes
    if missing or unknown:
        odd = ", ".join(sorted(missing or unknown))
        what = "has no failure rate" if missing else "has no device in this rollout"
        raise InvalidInputError(f"class {odd} {what}")
    for name, rate in failure_rates.items():
        if not 0 <= rate <= 1:
            raise InvalidInputError(
                f"failure rate of {name} must be in 0..1, got {rate:g}"
            )
