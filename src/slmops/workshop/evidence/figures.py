"""A card's figures as one flat list, each saying what it is and how far to trust it.

Everything that shows or compares figures (model card, bill of materials, comparison,
run trackers) reads them here, so that none shows a modelled figure as a measured one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from slmops.domain.energy import MeasuredEnergy, ModelledEnergy
from slmops.domain.recipe import BASE
from slmops.domain.release import Card, Estimate, Speed
from slmops.domain.tasks import TaskResult


class Nature(StrEnum):
    """Where a figure comes from; figures of two natures never share a column."""

    EXACT = "exact"
    """Counted: bytes, bits, weights."""
    MEASURED = "measured"
    """Observed on the machine that the card names."""
    MODELLED = "modelled"
    """Drawn on from measured points; never observed."""


class Bounds(StrEnum):
    """What a figure's low and high are."""

    CONFIDENCE = "95 % bounds"
    """Bootstrap, 95 %."""
    RANGE = "range of all runs"
    """Least and greatest of a few runs around their median: no confidence is claimed."""
    PREDICTION = "95 % for one more process"
    """Prediction interval over several processes, widened by what was not measured on
    this very candidate."""
    PROPAGATED = "carried over"
    """The bounds of what it was computed from: modelled, or measured in another group and
    brought onto the others' scale. That the model holds is not in them."""
    NONE = "none"
    """One observation, or exact: low and high are the value."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """One figure of one candidate."""

    name: str
    """Stable name with its unit: ``mean_kld_nats``, ``decode_tokens_per_s``."""
    of: str
    """What it was measured at: ``threads 1, context 1024``, ``task intents``; empty for
    the candidate as a whole."""
    estimate: Estimate
    """Value with its bounds, in the unit of the name."""
    bounds: Bounds
    """What the bounds are."""
    nature: Nature
    """Counted, measured or modelled."""
    is_lower_better: bool | None
    """Direction of improvement; None where there is none."""

    @property
    def key(self) -> tuple[str, str]:
        """What makes it the same figure in another card."""
        return (self.of, self.name)


def structure_of(card: Card) -> str:
    """Return how the candidate's shape differs from the model's; empty when it does not."""
    if card.structure == BASE:
        return ""
    return ": ".join(part for part in (card.structure, ", ".join(card.steps)) if part)


def treatment_of(card: Card) -> str:
    """Return how weights became codes, and how the runtime ran them if not as usual.

    >>> from slmops.testing.sample_release import sample_release
    >>> treatment_of(sample_release().variants[0].card)
    'nearest rounding, uncalibrated'
    """
    parts = [
        f"{card.rounding} rounding",
        "calibrated" if card.calibration else "uncalibrated",
        *(["recovered by training"] if card.recovered else []),
        *([card.settings.label] if not card.settings.is_default else []),
    ]
    return ", ".join(parts)


def card_figures(card: Card) -> tuple[Figure, ...]:
    """Return every figure of a card: sizes, fidelity, speeds, memory, energy, tasks."""
    return (
        _exact("bytes", card.bytes, is_lower_better=True),
        _exact("bits_per_weight", card.bits_per_weight, is_lower_better=True),
        _exact("parameters", card.parameters, is_lower_better=None),
        *_fidelity(card),
        *(figure for speed in card.speed for figure in _speed(speed)),
        *(figure for energy in card.modelled_energy for figure in _modelled(energy)),
        *(figure for task in card.tasks for figure in _task(task)),
    )


def speed_setting(speed: Speed) -> str:
    """Return what a speed was measured at: ``threads 1, context 1024``."""
    return f"threads {speed.threads}, context {speed.context_tokens}"


def _fidelity(card: Card) -> Iterator[Figure]:
    found = card.fidelity
    rows = (
        ("mean_kld_nats", found.mean_kld, True),
        ("p99_kld_nats", found.p99_kld, True),
        ("same_top1_share", found.same_top1, False),
        ("perplexity", found.perplexity, True),
    )
    for name, estimate, lower in rows:
        yield Figure(
            name=name,
            of="",
            estimate=estimate,
            bounds=Bounds.CONFIDENCE,
            nature=Nature.MEASURED,
            is_lower_better=lower,
        )


def _speed(speed: Speed) -> Iterator[Figure]:
    of = speed_setting(speed)
    # Times are taken once for all contexts of equal threads: repeating them would look
    # like a second measurement.
    if speed.timed_context_tokens is None:
        yield from _times(speed, of)
    yield _peak(speed, of)
    memory = {
        "private_rss_mib": speed.rss_anon_mib - speed.extrapolated_mib,
        "mapped_rss_mib": speed.rss_file_mib,
    }
    for name, value in memory.items():
        yield _single(name, value, of, Nature.MEASURED)
    if speed.extrapolated_mib:
        whole = "peak_rss_mib_extrapolated_to_full_context"
        known = speed.peak_memory
        if known is None:
            yield _single(whole, speed.peak_rss_mib, of, Nature.MODELLED)
        else:
            yield _bounded(whole, known.full, of, (Bounds.PROPAGATED, Nature.MODELLED))


def _peak(speed: Speed, of: str) -> Figure:
    known = speed.peak_memory
    if known is None:
        return _single("peak_rss_mib", speed.measured_peak_mib, of)
    measured = (Bounds.PREDICTION, Nature.MEASURED)
    return _bounded("peak_rss_mib", known.measured, of, measured)


def _energy(energy: MeasuredEnergy, of: str) -> Iterator[Figure]:
    kind = (Bounds.RANGE, Nature.MEASURED)
    rows = {
        "decode_joules_per_token": energy.decode_joules_per_token,
        "decode_joules_per_token_above_idle": energy.decode_above_idle_joules_per_token,
        "prefill_joules_per_token": energy.prefill_joules_per_token,
        "idle_watts": energy.idle_watts,
    }
    for name, estimate in rows.items():
        yield _bounded(name, estimate, of, kind)


def _modelled(energy: ModelledEnergy) -> Iterator[Figure]:
    of = f"class {energy.device_class}"
    kind = (Bounds.PROPAGATED, Nature.MODELLED)
    rows = {
        "decode_joules_per_token_modelled": energy.decode_joules_per_token,
        "prefill_joules_per_token_modelled": energy.prefill_joules_per_token,
    }
    for name, estimate in rows.items():
        yield _bounded(name, estimate, of, kind)


def _times(speed: Speed, of: str) -> Iterator[Figure]:
    ranges = (
        ("first_token_ms", speed.first_token_ms, True),
        ("prefill_tokens_per_s", speed.prefill_tokens_per_s, False),
        ("decode_tokens_per_s", speed.decode_tokens_per_s, False),
    )
    for name, estimate, lower in ranges:
        yield Figure(
            name=name,
            of=of,
            estimate=estimate,
            bounds=Bounds.PROPAGATED if speed.anchored else Bounds.RANGE,
            nature=Nature.MEASURED,
            is_lower_better=lower,
        )
    yield _single("first_token_tail_ms", speed.first_token_tail_ms, of)
    yield _single("load_ms", speed.load_ms, of)
    if speed.measured_energy is not None:
        yield from _energy(speed.measured_energy, of)


def _task(task: TaskResult) -> Iterator[Figure]:
    rows = {str(task.metric): task.score, **task.metrics}
    if task.difference is not None:
        rows[f"{task.metric}_minus_reference"] = task.difference
    for name, estimate in rows.items():
        yield Figure(
            name=name,
            of=f"task {task.name}",
            estimate=estimate,
            bounds=Bounds.CONFIDENCE,
            nature=Nature.MEASURED,
            # Calibration error is the one figure of a task that is better when low.
            is_lower_better=name == "ece",
        )


def _single(
    name: str, value: float, of: str, nature: Nature = Nature.MEASURED
) -> Figure:
    return Figure(
        name=name,
        of=of,
        estimate=Estimate(value=value, low=value, high=value),
        bounds=Bounds.NONE,
        nature=nature,
        is_lower_better=True,
    )


def _bounded(
    name: str, estimate: Estimate, of: str, kind: tuple[Bounds, Nature]
) -> Figure:
    bounds, nature = kind
    return Figure(
        name=name,
        of=of,
        estimate=estimate,
        bounds=bounds,
        nature=nature,
        is_lower_better=True,
    )


def _exact(name: str, value: float, *, is_lower_better: bool | None) -> Figure:
    return Figure(
        name=name,
        of="",
        estimate=Estimate(value=value, low=value, high=value),
        bounds=Bounds.NONE,
        nature=Nature.EXACT,
        is_lower_better=is_lower_better,
    )
