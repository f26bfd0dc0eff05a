"""Which setting of the runtime a chosen variant is to run at: pure, over measurements.

A variant has one setting for all classes it serves, so a setting must hold in each of
them: within budget and floor by its own pessimistic figures, and better by the class's
objective than the same variant at the defaults, measured beside it. What cannot be told
from the defaults changes nothing.

- *Speed*: surely faster, as `ranking` has it.
- *Size*: a peak of memory surely lower, by more than `LEAST_SAVING`: its upper bound
  against the other's lower one.
- *Quality*: surely faster, with a KL divergence higher by `EPSILON` of it at most.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from slmops.domain.device import DeviceClass, Objective
from slmops.domain.release import Card, Estimate, Fidelity, Speed
from slmops.domain.runtime_settings import UNCHANGED, RuntimeSettings
from slmops.workshop.build_result import Candidate
from slmops.workshop.energy import with_modelled_energy
from slmops.workshop.feasibility import SelectionRules, excesses_of
from slmops.workshop.ranking import EPSILON

LEAST_SAVING = 0.01
"""Share of the peak memory that must be saved to count."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TriedSetting:
    """A variant at one setting, measured for every class it serves."""

    settings: RuntimeSettings
    """Of the runtime."""
    fidelity: Fidelity
    """With it."""
    speed: tuple[Speed, ...]
    """With it, memory with the context full."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What became of a setting that was tried."""

    tried: TriedSetting
    """The setting."""
    adopted: bool
    """Whether the variant runs so."""
    reason: str
    """Why, or why not, with figures."""


def judge_settings(
    candidate: Candidate,
    classes: Sequence[DeviceClass],
    rules: SelectionRules,
    tried: Sequence[TriedSetting],
) -> tuple[Verdict, ...]:
    """Adopt one of the settings that were tried, the defaults where none wins.

    Among several winners the objective of the first class decides, then their order.

    Args:
        candidate: that was chosen.
        classes: one or more that it serves.
        rules: its floor holds here even where selection was allowed below it.
        tried: the defaults first; each with speeds for all classes.

    Returns:
        One for each, in order.
    """
    strict = replace(rules, below_floor=False)
    default, *others = tried
    base = _at(candidate, default, classes)
    objections = [
        _objections(base, _at(candidate, other, classes), classes, strict)
        for other in others
    ]
    pairs = list(zip(others, objections, strict=True))
    winners = [other for other, against in pairs if not against]
    best = min(winners, key=lambda w: _cost(w, classes[0]), default=default)
    reasons = [
        "; ".join(against)
        or _winning(
            base.card, _at(candidate, other, classes).card, classes, best is other
        )
        for other, against in pairs
    ]
    first = "nothing wins against it" if best is default else "another setting wins"
    return tuple(
        Verdict(tried=each, adopted=each is best, reason=reason)
        for each, reason in zip(tried, [first, *reasons], strict=True)
    )


def tuned_card(card: Card, tried: TriedSetting, classes: Sequence[DeviceClass]) -> Card:
    """Return a card with the figures of a setting, for the classes it was tried for."""
    tuned = replace(
        card, settings=tried.settings, fidelity=tried.fidelity, speed=tried.speed
    )
    return with_modelled_energy(tuned, classes)


def _at(
    candidate: Candidate, tried: TriedSetting, classes: Sequence[DeviceClass]
) -> Candidate:
    return replace(candidate, card=tuned_card(candidate.card, tried, classes))


def _objections(
    base: Candidate,
    other: Candidate,
    classes: Sequence[DeviceClass],
    rules: SelectionRules,
) -> list[str]:
    found = []
    if other.card.tasks and other.card.settings.kv_cache != UNCHANGED.kv_cache:
        # Answers change with the cache, and the cards' scores were taken without it.
        found.append("the tasks were not asked with this cache")
    for device_class in classes:
        against = [each.text for each in excesses_of(other, device_class, rules)]
        against = against or _not_better(base.card, other.card, device_class)
        found += [f"{device_class.name}: {text}" for text in against]
    return found


def _not_better(base: Card, other: Card, device_class: DeviceClass) -> list[str]:
    mine, theirs = other.speed_for(device_class), base.speed_for(device_class)
    if mine is None or theirs is None:
        return ["its speed was not measured"]
    if device_class.objective is Objective.SIZE:
        least = (1 - LEAST_SAVING) * _least_peak(theirs)
        saves = mine.most_peak_mib < least
        return [] if saves else [f"saves no memory: {_memory(mine, theirs)}"]
    found = []
    if _decode(mine).low <= _decode(theirs).high:
        found.append(f"not surely faster: {_speeds(mine, theirs)}")
    if device_class.objective is Objective.QUALITY:
        kld, limit = (card.fidelity.mean_kld.value for card in (other, base))
        if kld > (1 + EPSILON) * limit:
            found.append(f"costs quality: KL divergence {kld:.4f} against {limit:.4f}")
    return found


def _winning(
    base: Card, other: Card, classes: Sequence[DeviceClass], is_best: bool
) -> str:
    if not is_best:
        return "better than the defaults, but another setting is better still"
    return "; ".join(f"{each.name}: {_gain(base, other, each)}" for each in classes)


def _gain(base: Card, other: Card, device_class: DeviceClass) -> str:
    mine, theirs = other.speed_for(device_class), base.speed_for(device_class)
    if mine is None or theirs is None:
        return "not measured"
    if device_class.objective is Objective.SIZE:
        return f"saves memory: {_memory(mine, theirs)}"
    return f"surely faster: {_speeds(mine, theirs)}"


def _cost(tried: TriedSetting, device_class: DeviceClass) -> float:
    wanted = (device_class.threads, device_class.context_tokens)
    speed = next(s for s in tried.speed if (s.threads, s.context_tokens) == wanted)
    if device_class.objective is Objective.SIZE:
        return speed.most_peak_mib
    return -_decode(speed).value


def _decode(speed: Speed) -> Estimate:
    return speed.decode_median or speed.decode_tokens_per_s


def _least_peak(speed: Speed) -> float:
    known = speed.peak_memory
    return speed.peak_rss_mib if known is None else known.full.low


def _memory(mine: Speed, theirs: Speed) -> str:
    return f"peak {_peak(mine)} MiB against {_peak(theirs)}"


def _peak(speed: Speed) -> str:
    known = speed.peak_memory
    if known is None:
        return f"{speed.peak_rss_mib:.1f}"
    bounds = known.full
    return f"{bounds.value:.1f} ({bounds.low:.1f} to {bounds.high:.1f})"


def _speeds(mine: Speed, theirs: Speed) -> str:
    shown = [
        f"{each.value:.1f} ({each.low:.1f} to {each.high:.1f})"
        for each in (_decode(mine), _decode(theirs))
    ]
    return f"decode {shown[0]} against {shown[1]} tokens/s"
