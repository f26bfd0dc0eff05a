"""Groups that were timed before: whom of a group they spare timing again.

Times of one group belong together, for its workers were asked in turn. Who was in a
larger group is taken from there as it is: only rows are left out. Who was not is timed in
a further group beside the 8-bit control, the *anchor*, and brought onto the first group's
scale by what the control took in both:

    time on the first scale = time x control's time there / control's time here

This holds if what slowed the machine slowed both alike; the control was interleaved with
both groups for that. The control's figures are known within bounds too, so bounds of the
result are the worst of all three bounds: for independent errors never narrower than what
each of them promises. Two candidates of one further group share the control's error, which
is counted for both: comparing them is more careful than it need be.

Of a further group's figures, load time, memory and energy are as measured: they are of a
process or of counters, and no round of another compares with them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from slmops.domain.ids import Digest
from slmops.domain.release import Estimate, Speed
from slmops.workshop.steps import Step, StepCache, StepRecord

LEAST_SPARED = 2
"""Anchoring must cut the number of workers that are timed by so much: it costs bounds."""
_LEAST = 1e-9

Rows = Mapping[Digest, Speed]


@dataclass(frozen=True, kw_only=True, slots=True)
class Known:
    """What finished steps tell of a wanted group."""

    groups: tuple[tuple[StepRecord, Rows], ...]
    """The first gives the scale."""
    missing: tuple[Digest, ...]
    """Who was never timed like this."""


def find_known(
    cache: StepCache,
    step: Step,
    control: Digest | None,
    read: Callable[[StepRecord], Rows],
) -> Known | None:
    """Return finished groups that together spare timing a group, or None.

    Args:
        cache: to look in.
        step: that would time the whole group.
        control: the anchor, if it is in the group.
        read: gives a finished step's rows.
    """
    wanted = tuple(dict.fromkeys(step.inputs.values()))

    def serves(other: Step) -> bool:
        there = set(other.inputs.values())
        is_same = (other.parameters, other.seed) == (step.parameters, step.seed)
        return is_same and (control in there or there >= set(wanted))

    missing = set(wanted)
    left = [(record, read(record)) for record in cache.alike(step, serves)]
    used: list[tuple[StepRecord, Rows]] = []
    while missing and left:
        # Most of the missing, and nobody else if it can be.
        best = max(left, key=lambda each: (len(missing & set(each[1])), -len(each[1])))
        left.remove(best)
        if not missing & set(best[1]):
            break
        used.append(best)
        missing -= set(best[1])
    timed = len(missing) + 1 if missing else 0
    if not used or LEAST_SPARED * timed > len(wanted):
        return None
    ordered = tuple(digest for digest in wanted if digest in missing)
    return Known(groups=tuple(used), missing=ordered)


def joined(wanted: Sequence[Digest], groups: Sequence[Rows], control: Digest) -> Rows:
    """Return the wanted rows, each from the first group that has it, on its scale."""
    first, *others = groups
    found = {digest: first[digest] for digest in wanted if digest in first}
    for rows in others:
        found |= {
            digest: on_scale(rows[digest], rows[control], first[control])
            for digest in wanted
            if digest in rows and digest not in found
        }
    return found


def on_scale(speed: Speed, here: Speed, there: Speed) -> Speed:
    """Bring one candidate's times onto another group's scale.

    Args:
        speed: the candidate's.
        here: the control's, of the candidate's group.
        there: the control's, of the group whose scale is wanted.
    """
    first = _factor(here.first_token_ms, there.first_token_ms)
    decode = _factor(_median(here), _median(there))
    spread = _factor(here.decode_tokens_per_s, there.decode_tokens_per_s)
    prefill = _factor(here.prefill_tokens_per_s, there.prefill_tokens_per_s)
    return replace(
        speed,
        first_token_ms=_times(speed.first_token_ms, first),
        first_token_tail_ms=speed.first_token_tail_ms * first.high,
        prefill_tokens_per_s=_times(speed.prefill_tokens_per_s, prefill),
        decode_tokens_per_s=_times(speed.decode_tokens_per_s, spread),
        decode_median=_times(_median(speed), decode),
        anchored=decode,
    )


def _median(speed: Speed) -> Estimate:
    return speed.decode_median or speed.decode_tokens_per_s


def _factor(here: Estimate, there: Estimate) -> Estimate:
    return Estimate(
        value=there.value / max(here.value, _LEAST),
        low=there.low / max(here.high, _LEAST),
        high=there.high / max(here.low, _LEAST),
    )


def _times(speed: Estimate, factor: Estimate) -> Estimate:
    return Estimate(
        value=speed.value * factor.value,
        low=speed.low * factor.low,
        high=speed.high * factor.high,
    )
