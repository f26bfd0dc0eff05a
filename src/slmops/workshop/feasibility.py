"""What a class's budget and the quality floor have against a candidate.

Every limit is compared with the pessimistic bound of the measured figure, and says how
far off it is, so that the nearest miss can be named.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from slmops.domain.blueprint import QualityFloor
from slmops.domain.device import Budget, DeviceClass
from slmops.domain.release import Card, Speed
from slmops.domain.tasks import TaskResult, task_violations
from slmops.runtimes.speed import LEAST_RUNS_FOR_P95
from slmops.workshop.build_result import Candidate
from slmops.workshop.energy import energy_absence

LEAST_CONTROL_KLD = 1e-3
"""Nats. A reference that itself came from an 8-bit file shows no 8-bit loss at all;
multiples of nothing would forbid everything."""

MIB = 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class SelectionRules:
    """What selection follows."""

    floor: QualityFloor
    """Worst acceptable fidelity."""
    control_kld: float
    """Mean KL divergence of the 8-bit control, nats."""
    below_floor: bool = False
    """Choose among candidates below the floor too, and say what it says."""

    @property
    def max_kld(self) -> float:
        """Largest acceptable upper bound of the mean KL divergence, nats."""
        base = max(self.control_kld, LEAST_CONTROL_KLD)
        return self.floor.max_kld_times_8bit * base


@dataclass(frozen=True, kw_only=True, slots=True)
class Excess:
    """A limit that is not met."""

    ratio: float
    """How far off: 1.1 is ten percent too much. Huge where no number could help."""
    text: str
    """With figures."""


def floor_violations(card: Card, rules: SelectionRules) -> tuple[str, ...]:
    """Say what the quality floor has against a variant; empty when it holds."""
    return tuple(excess.text for excess in _floor_excesses(card, rules))


def excesses_of(
    candidate: Candidate, device_class: DeviceClass, rules: SelectionRules
) -> tuple[Excess, ...]:
    """List everything that keeps a candidate from a class; empty when it fits."""
    found: list[Excess] = []
    if not candidate.eligible:
        found.append(Excess(ratio=1e9, text="a control, not among the candidates"))
    if not rules.below_floor:
        # What the test split says of the winner comes after the choice, not before.
        judged = candidate.search_tasks or candidate.card.tasks
        found += _floor_excesses(replace(candidate.card, tasks=judged), rules)
    found += _budget_excesses(candidate.card, device_class)
    return tuple(found)


def _floor_excesses(card: Card, rules: SelectionRules) -> list[Excess]:
    fidelity = card.fidelity
    found = []
    if fidelity.mean_kld.high > rules.max_kld:
        found.append(
            Excess(
                ratio=fidelity.mean_kld.high / rules.max_kld,
                text=f"below the quality floor: KL divergence may be as high as"
                f" {fidelity.mean_kld.high:.4f}, at most {rules.max_kld:.4f} is allowed"
                f" ({rules.floor.max_kld_times_8bit:g} times 8-bit)",
            )
        )
    if fidelity.same_top1.low < rules.floor.min_same_top1:
        found.append(
            Excess(
                ratio=rules.floor.min_same_top1 / max(fidelity.same_top1.low, 1e-9),
                text=f"below the quality floor: same-top-1 may be as low as"
                f" {fidelity.same_top1.low:.3f}, at least"
                f" {rules.floor.min_same_top1:g} is asked",
            )
        )
    found += [
        Excess(
            ratio=_task_ratio(result, rules), text=f"below the quality floor: {text}"
        )
        for result in card.tasks
        for text in task_violations([result], rules.floor.max_task_loss)
    ]
    return found


def _task_ratio(result: TaskResult, rules: SelectionRules) -> float:
    low = 0.0 if result.difference is None else result.difference.low
    return max(-low / rules.floor.max_task_loss, 1.0)


def _budget_excesses(card: Card, device_class: DeviceClass) -> list[Excess]:
    budget = device_class.budget
    # A draft is a second file of the variant.
    disk = (card.bytes + card.settings.draft_bytes) / MIB
    found = [_over("disk", disk, budget.disk_mib, "MiB")]
    speed = card.speed_for(device_class)
    if speed is None:
        if _needs_speed(budget):
            found.append(Excess(ratio=1e9, text="its speed was not measured"))
    else:
        found += [
            _over(_peak_named(speed), speed.most_peak_mib, budget.memory_mib, "MiB"),
            _over(
                f"time to first token ({tail_name(speed.runs)})",
                speed.first_token_tail_ms,
                budget.first_token_ms,
                "ms",
            ),
            _under(
                "decode speed",
                speed.decode_tokens_per_s.low,
                budget.decode_tokens_per_s,
                "tokens/s",
            ),
            _energy_excess(card, speed, device_class),
        ]
    return [excess for excess in found if excess is not None]


def tail_name(runs: int) -> str:
    """Name what `Speed.first_token_tail_ms` is of so many runs.

    >>> tail_name(5), tail_name(20)
    ('worst of 5 runs', 'p95 of 20 runs')
    """
    return f"{'worst' if runs < LEAST_RUNS_FOR_P95 else 'p95'} of {runs} runs"


def _peak_named(speed: Speed) -> str:
    """Name the upper bound of the peak, and what it is the bound of."""
    notes = []
    if speed.extrapolated_mib:
        notes.append(
            f"measured to {speed.measured_peak_mib:.1f} MiB at {speed.filled_tokens}"
            f" tokens, extrapolated to {speed.context_tokens}"
        )
    known = speed.peak_memory
    if known is None:
        return f"peak memory{_in_brackets(notes)}"
    notes.insert(0, f"{known.full.value:.1f} over {known.processes} processes")
    return f"upper bound of peak memory{_in_brackets(notes)}"


def _in_brackets(notes: Sequence[str]) -> str:
    return f" ({'; '.join(notes)})" if notes else ""


def _needs_speed(budget: Budget) -> bool:
    limits = (
        *(budget.memory_mib, budget.first_token_ms, budget.decode_tokens_per_s),
        budget.decode_joules_per_token,
    )
    return any(limit is not None for limit in limits)


def _energy_excess(
    card: Card, speed: Speed, device_class: DeviceClass
) -> Excess | None:
    """Compare what was measured, or what was modelled where nothing was."""
    limit = device_class.budget.decode_joules_per_token
    if limit is None:
        return None
    named = [e for e in card.modelled_energy if e.device_class == device_class.name]
    if speed.measured_energy is not None:
        nature, decode = "measured", speed.measured_energy.decode_joules_per_token
    elif named:
        nature, decode = "modelled", named[0].decode_joules_per_token
    else:
        return Excess(ratio=1e9, text=energy_absence(card, device_class))
    if decode.high <= limit:
        return None
    return Excess(
        ratio=decode.high / limit,
        text=f"{nature} energy may be as high as {decode.high:.3g} J a decoded token,"
        f" the budget allows {limit:g}",
    )


def _over(what: str, value: float, limit: float | None, unit: str) -> Excess | None:
    if limit is None or value <= limit:
        return None
    return Excess(
        ratio=value / limit,
        text=f"{what} {value:.1f} {unit} is above the budget {limit:g}",
    )


def _under(what: str, value: float, limit: float | None, unit: str) -> Excess | None:
    if limit is None or value >= limit:
        return None
    return Excess(
        ratio=limit / max(value, 1e-9),
        text=f"{what} may be as low as {value:.1f} {unit}, the budget asks {limit:g}",
    )
