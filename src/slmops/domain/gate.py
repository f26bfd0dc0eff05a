"""Gates: pure rules with three verdicts, pass, fail and inconclusive (which waits).

Stop rule
    A mixture sequential probability ratio test per device class against the tolerated
    failure rate p0. With ``s`` successes and ``f`` failures so far, evidence against
    "the rate is p0 or less" is::

        E = ∫ (q/p0)^f ((1-q)/(1-p0))^s dπ(q),   π = Beta(1, 9) cut to (p0, 1]

    For every rate p ≤ p0 and every q > p0 the integrand has expectation at most one, so
    E is a non-negative supermartingale under the whole null hypothesis, and by Ville's
    inequality P(E ever reaches 1/α) ≤ α: it may be looked at after every device. (A
    mixture over all of [0, 1] would not do: it also collects evidence when a class is
    *better* than p0.) Over K classes the limit is K/α (Bonferroni).

    That holds for devices taken in an order that does not depend on their outcomes. The
    order in which outcomes *arrive* does: a refusal takes seconds, a success a download
    and the probation, so early on nearly everything known is a failure. Therefore `s`
    counts every device that was offered the release and has not failed, those still at
    work too. Why that is right:

    - Who is in which wave is frozen before any outcome, so E taken over all devices
      offered so far, once the last of them is decided, is a supermartingale from wave
      to wave, and Ville's inequality holds for it.
    - A failure is final and a pending device ends as one or the other, so the failures
      counted now are at most, the others at least, what they are at that time. E grows
      with f and falls with s: E now ≤ E then. A limit reached early is reached then
      too, so whoever halts early halts in a subset of the runs in which a test at the
      ends of waves would, and α holds whatever the order, also adversarial.
    - Every class has its own E of its own devices, and the argument holds for each;
      Bonferroni over classes needs no independence. Pooling over waves is the same
      argument with "all devices offered so far" growing by a wave at a time. Devices
      that are not offered yet count nowhere: their outcomes are still ahead.

    Where a site's limit decides who is offered next, that depends on known outcomes, not
    on the device's own: E in the order of offers remains a supermartingale. A device that the operator retires leaves the count unless it failed; α holds as far
    as nobody retires devices because they are well.

    The price is delay, not power. The reference figures (waves 20/80/400/1500) come out
    when devices are offered one by one; real waves are offered whole, and exposed whole
    (decision 0016). `slmops.testing.fleet_simulation` plays both.

    Sources: Wald, Sequential Analysis (1947); Robbins, Ann. Math. Stat. 41 (1970);
    Johari, Koomen, Pekelis, Walsh, Operations Research 70 (2022), mixture SPRT;
    Ramdas, Grünwald, Vovk, Shafer, Statistical Science 38 (2023), e-processes.

Advance rule
    Needs positive evidence, never only the absence of an alarm. The upper bound of the
    failure rate inverts the mirrored test, so it too holds at all times.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from itertools import pairwise

from slmops.domain.errors import InvalidInputError

RULE_VERSION = "gate-2"
"""Stored with every evaluation; changes when a rule's meaning does."""

_CELLS = 192
_MOST_FAILURES_SHARE = 0.2
"""No class advances with a larger share of failures, however small the wave: chance
alone would let 2 of 3 pass. With fewer than five devices that leaves none."""
_MIXTURE_BETA = 9.0
"""Second parameter of the mixing Beta(1, b). With 9 a 4 % rate against p0 = 2 % is
stopped after about 760 devices and an 8 % rate after about 107 (see the simulation)."""


class Verdict(StrEnum):
    """What a gate says. Stored; never renamed."""

    PASS = "pass"  # noqa: S105 - a verdict, no password
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, kw_only=True, slots=True)
class GateResult:
    """A verdict with the reason a person reads."""

    gate: str
    """Which rule: ``stop``, ``advance``, ``trial``."""
    verdict: Verdict
    """What it says."""
    reason: str
    """Why, with figures."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassCount:
    """Devices of one class that were offered a release, each counted once."""

    succeeded: int
    """Committed and still well."""
    failed: int
    """Rolled back, unhealthy or silent."""
    pending: int = 0
    """Offered and still at work: no evidence of health for `advance_gate`, none of
    failure for `stop_gate`."""

    def __post_init__(self) -> None:
        if self.succeeded < 0 or self.failed < 0 or self.pending < 0:
            raise InvalidInputError(
                f"counts must be >= 0, got {self.succeeded}, {self.failed} and"
                f" {self.pending}"
            )

    @property
    def decided(self) -> int:
        """Devices with an outcome."""
        return self.succeeded + self.failed

    @property
    def offered(self) -> int:
        """All of them."""
        return self.decided + self.pending


def log_e_value(succeeded: int, failed: int, *, tolerated_rate: float) -> float:
    """Return the natural logarithm of the evidence that the failure rate exceeds p0.

    Args:
        succeeded: devices, >= 0.
        failed: devices, >= 0.
        tolerated_rate: p0, in (0, 1).

    Returns:
        log E; 0 without data. `exp(log E) >= 1/α` refutes "rate ≤ p0" at level α,
        whenever it is looked at. Grows with `failed`, falls with `succeeded`.

    >>> log_e_value(0, 0, tolerated_rate=0.02)
    0.0
    >>> log_e_value(2, 8, tolerated_rate=0.02) > math.log(100)
    True
    """
    if not succeeded and not failed:
        return 0.0
    cells = _mixture(tolerated_rate)
    terms = [
        log_weight + failed * log_bad + succeeded * log_good
        for log_weight, log_bad, log_good in cells
    ]
    return _log_sum_exp(terms)


def upper_failure_bound(succeeded: int, failed: int, *, alpha: float) -> float:
    """Return an upper bound of the failure rate that holds at all times at once.

    Inverts tests of "the rate is p or more" with the uniform mixture over smaller
    rates (a one-sided confidence sequence, Howard et al., Ann. Stat. 49 (2021)): the
    bound is the smallest p that the data refute at level `alpha`.

    Args:
        succeeded: devices, >= 0.
        failed: devices, >= 0.
        alpha: chance that the true rate is ever above the bound, in (0, 1).

    Returns:
        A rate in [0, 1]; 1.0 without data.

    >>> upper_failure_bound(0, 0, alpha=0.05)
    1.0
    >>> upper_failure_bound(1000, 0, alpha=0.05) < 0.02
    True
    """
    limit = -math.log(alpha)
    low, high = failed / max(succeeded + failed, 1), 1.0
    if _log_e_below(succeeded, failed, 1.0 - 1e-9) < limit:
        return 1.0
    for _ in range(40):
        middle = (low + high) / 2
        if _log_e_below(succeeded, failed, middle) >= limit:
            high = middle
        else:
            low = middle
    return high


@lru_cache(maxsize=4096)
def tolerable_failures(devices: int, rate: float, *, alpha: float) -> int:
    """Return the most failures that `devices` show at `rate` but for a chance of alpha.

    The smallest k with P(Binomial(devices, rate) > k) <= alpha.

    >>> tolerable_failures(20, 0.02, alpha=0.01)
    2
    >>> tolerable_failures(0, 0.02, alpha=0.01)
    0
    """
    log_good, log_odds = math.log1p(-rate), math.log(rate) - math.log1p(-rate)
    log_chance, below, failures = devices * log_good, 0.0, 0
    while failures < devices:
        below += math.exp(log_chance)
        if 1 - below <= alpha:
            break
        log_chance += math.log((devices - failures) / (failures + 1)) + log_odds
        failures += 1
    return failures


def stop_gate(
    counts: Mapping[str, ClassCount], *, tolerated_rate: float, alpha: float
) -> GateResult:
    """Ask whether any class fails more often than tolerated.

    Args:
        counts: class → outcomes so far over all waves, with the devices still at work
            in `pending`; every class the rollout serves, also those without outcomes: K
            is their number.
        tolerated_rate: p0.
        alpha: chance of a false halt over the whole rollout, in whatever order outcomes
            arrive (see the module's text).

    Returns:
        FAIL names the class with the strongest evidence; otherwise INCONCLUSIVE:
        this gate never passes, absence of an alarm is not evidence of health.
    """
    limit = math.log(max(len(counts), 1) / alpha)
    worst, evidence = "", -math.inf
    for name in sorted(counts):
        count = counts[name]
        value = log_e_value(
            count.succeeded + count.pending, count.failed, tolerated_rate=tolerated_rate
        )
        if value > evidence:
            worst, evidence = name, value
    if not worst:
        return GateResult(
            gate="stop", verdict=Verdict.INCONCLUSIVE, reason="no class to watch"
        )
    count = counts[worst]
    figures = (
        f"class {worst}: {count.failed} of {count.offered} devices failed"
        f"{f', {count.pending} still at work' if count.pending else ''},"
        f" E = {_shown(evidence)} against the limit {_shown(limit)}"
        f" (tolerated rate {tolerated_rate:.1%})"
    )
    verdict = Verdict.FAIL if evidence >= limit else Verdict.INCONCLUSIVE
    return GateResult(gate="stop", verdict=verdict, reason=figures)


@dataclass(frozen=True, kw_only=True, slots=True)
class AdvanceRule:
    """What a wave must show before the next one starts."""

    tolerated_rate: float
    """p0 of the stop rule."""
    alpha: float
    """Chance that a healthy wave is refused, all its classes together."""
    min_per_class: int
    """Devices of every class of the wave that must have succeeded."""
    max_paired_loss: float
    """δ: largest mean loss in log p against the replaced model, nats a token."""


def advance_gate(
    members: Mapping[str, int],
    counts: Mapping[str, ClassCount],
    paired_losses: Mapping[str, Sequence[float]],
    rule: AdvanceRule,
) -> GateResult:
    """Ask whether a wave has shown enough to go on; fails closed.

    For every class with members in the wave: all have an outcome; at least
    `min_per_class` (or all, when it has fewer) succeeded; the upper bound of the
    failure rate is below tolerance or, where the wave is too small for such a bound, no
    more devices failed than a wave of this size shows at the tolerated rate, and at most
    a fifth of them (so none of four or fewer); and the
    mean paired loss, where devices had a model to compare with, is at most δ. Nothing
    measured is never a success.

    Args:
        members: class → devices in the wave.
        counts: class → outcomes in the wave.
        paired_losses: class → losses reported by its devices.
        rule: the limits.

    Returns:
        PASS, FAIL when the wave is decided and can no longer pass, or INCONCLUSIVE.
    """
    names = sorted(name for name, size in members.items() if size > 0)
    if not names:
        return GateResult(
            gate="advance",
            verdict=Verdict.INCONCLUSIVE,
            reason="the wave has no devices, so it shows nothing",
        )
    waiting = {
        name: members[name] - counts[name].decided if name in counts else members[name]
        for name in names
    }
    open_devices = sum(waiting.values())
    problems = [
        problem
        for name in names
        if not waiting[name]
        for problem in _class_problems(
            name, counts[name], paired_losses.get(name, ()), rule, len(names)
        )
    ]
    if problems:
        return GateResult(
            gate="advance", verdict=Verdict.FAIL, reason="; ".join(problems)
        )
    if open_devices:
        total = sum(members[name] for name in names)
        return GateResult(
            gate="advance",
            verdict=Verdict.INCONCLUSIVE,
            reason=f"{total - open_devices} of {total} devices have an outcome",
        )
    shown = ", ".join(
        f"{name} {counts[name].succeeded}/{members[name]}" for name in names
    )
    return GateResult(
        gate="advance",
        verdict=Verdict.PASS,
        reason=f"every class passes: {shown} succeeded",
    )


def _class_problems(
    name: str,
    count: ClassCount,
    losses: Sequence[float],
    rule: AdvanceRule,
    classes: int,
) -> list[str]:
    """Say what one decided class shows against going on."""
    problems = []
    needed = min(rule.min_per_class, count.decided)
    if count.succeeded < max(needed, 1):
        problems.append(
            f"class {name}: {count.failed} of {count.decided} devices failed"
        )
        return problems
    alpha = rule.alpha / classes
    most = max(_MOST_FAILURES_SHARE, rule.tolerated_rate)
    allowed = min(
        tolerable_failures(count.decided, rule.tolerated_rate, alpha=alpha),
        int(most * count.decided),
    )
    bound = upper_failure_bound(count.succeeded, count.failed, alpha=alpha)
    if count.failed > allowed and bound > rule.tolerated_rate:
        problems.append(
            f"class {name}: {count.failed} of {count.decided} devices failed, more than"
            f" the {allowed} a wave of this size may show at {rule.tolerated_rate:.1%};"
            f" the rate may be as high as {bound:.1%}"
        )
    # Written as "not at most", so that a loss that is no number fails too.
    if losses and not sum(losses) / len(losses) <= rule.max_paired_loss:
        problems.append(
            f"class {name}: mean paired loss {sum(losses) / len(losses):.3f} nats is"
            f" above {rule.max_paired_loss:g}"
        )
    return problems


@lru_cache(maxsize=64)
def _mixture(rate: float) -> tuple[tuple[float, float, float], ...]:
    """Return cells of the mixture: log weight, log(q/p0), log((1-q)/(1-p0))."""
    if not 0 < rate < 1:
        raise InvalidInputError(f"tolerated rate must be in (0, 1), got {rate:g}")
    borders = [rate ** (1 - i / _CELLS) for i in range(_CELLS + 1)]
    cells = []
    for low, high in pairwise(borders):
        q = math.sqrt(low * high)
        weight = (high - low) * (1 - q) ** (_MIXTURE_BETA - 1)
        cells.append((weight, math.log(q / rate), math.log((1 - q) / (1 - rate))))
    total = sum(weight for weight, _, _ in cells)
    return tuple((math.log(weight / total), bad, good) for weight, bad, good in cells)


def _log_e_below(succeeded: int, failed: int, rate: float) -> float:
    """Return log evidence that the rate is below `rate`: uniform mixture on (0, rate)."""
    terms = []
    for i in range(_CELLS):
        q = rate * (i + 0.5) / _CELLS
        terms.append(
            failed * math.log(q / rate)
            + succeeded * math.log((1 - q) / (1 - rate))
            - math.log(_CELLS)
        )
    return _log_sum_exp(terms)


def _log_sum_exp(terms: Sequence[float]) -> float:
    top = max(terms)
    return top + math.log(sum(math.exp(term - top) for term in terms))


def _shown(log_value: float) -> str:
    if log_value > math.log(1e6):
        return f"1e{log_value / math.log(10):.0f}"
    return f"{math.exp(log_value):.3g}"
