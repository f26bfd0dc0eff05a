"""Energy per token as tables of text: measured and modelled, one table each.

The page, the model card and the command line show these, so that a modelled figure
carries its mark wherever it is seen.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from slmops.domain.device import DeviceClass
from slmops.domain.release import Card, Estimate
from slmops.workshop.energy import energy_absence
from slmops.workshop.evidence.figures import speed_setting


@dataclass(frozen=True, kw_only=True, slots=True)
class EnergyTable:
    """One table; all its figures are of one nature."""

    title: str
    """Says which."""
    head: tuple[str, ...]
    """Headings; those of figures say which too."""
    rows: tuple[tuple[str, ...], ...]
    """One or more, as text."""
    note: str
    """How it came about, and what the bounds are."""


def energy_tables(cards: Sequence[Card]) -> tuple[EnergyTable, ...]:
    """Return what is known of some cards' energy: none, one or two tables."""
    measured = [row for card in cards for row in _measured_rows(card)]
    modelled = [row for card in cards for row in _modelled_rows(card)]
    found = []
    if measured:
        found.append(
            EnergyTable(
                title="Energy per token, measured",
                head=(
                    *("candidate", "at", "decode J/token, measured"),
                    *("above idle, J/token, measured", "prefill J/token, measured"),
                    *("idle W, measured", "counters", "runs"),
                ),
                rows=tuple(measured),
                note="By the processor's counters (RAPL) while only this candidate was"
                " asked: of the counted parts as a whole, and of whatever else ran on"
                " them. Median and range of all runs.",
            )
        )
    if modelled:
        found.append(
            EnergyTable(
                title="Energy per token, modelled",
                head=(
                    *("candidate", "class", "decode J/token, modelled"),
                    *("prefill J/token, modelled", "W, as the class says", "source"),
                ),
                rows=tuple(modelled),
                note="Not measured: the class's power over the measured speed, so right"
                " only as far as its device draws that much and is as fast. Bounds are"
                " those of speed and power; that the model holds is not in them.",
            )
        )
    return tuple(found)


def energy_absences(card: Card, classes: Iterable[DeviceClass]) -> tuple[str, ...]:
    """Say for which classes a card knows no energy, and why; empty when for none."""
    found = (energy_absence(card, each) for each in classes)
    return tuple(dict.fromkeys(text for text in found if text))


def energy_lines(card: Card, device_class: DeviceClass) -> tuple[str, ...]:
    """Return a card's energy for a class as sentences, or the one that says why none."""
    lines = []
    speed = card.speed_for(device_class)
    if speed is not None and speed.measured_energy is not None:
        energy = speed.measured_energy
        lines.append(
            f"energy measured: decode {_bounds(energy.decode_joules_per_token)} J/token,"
            f" prefill {_bounds(energy.prefill_joules_per_token)}; idle"
            f" {_bounds(energy.idle_watts)} W of {', '.join(energy.counters)}"
        )
    lines += [
        f"energy modelled, not measured: decode {_bounds(each.decode_joules_per_token)}"
        f" J/token, prefill {_bounds(each.prefill_joules_per_token)}; from"
        f" {_bounds(each.watts)} W ({each.source}) and the measured speed"
        for each in card.modelled_energy
        if each.device_class == device_class.name
    ]
    return tuple(lines) or (energy_absence(card, device_class),)


def _measured_rows(card: Card) -> list[tuple[str, ...]]:
    return [
        (
            card.label,
            speed_setting(speed),
            _bounds(energy.decode_joules_per_token),
            _bounds(energy.decode_above_idle_joules_per_token),
            _bounds(energy.prefill_joules_per_token),
            _bounds(energy.idle_watts),
            ", ".join(energy.counters),
            str(energy.runs),
        )
        for speed in card.speed
        # Taken once for all contexts, as times are.
        if (energy := speed.measured_energy) and speed.timed_context_tokens is None
    ]


def _modelled_rows(card: Card) -> list[tuple[str, ...]]:
    return [
        (
            card.label,
            energy.device_class,
            f"~{_bounds(energy.decode_joules_per_token)}",
            f"~{_bounds(energy.prefill_joules_per_token)}",
            _bounds(energy.watts),
            energy.source,
        )
        for energy in card.modelled_energy
    ]


def _bounds(estimate: Estimate) -> str:
    value, low, high = (
        f"{number:.3g}" for number in (estimate.value, estimate.low, estimate.high)
    )
    if estimate.low == estimate.high:
        return value
    return f"{value} ({low} to {high})"
