"""Energy per token of candidates: measured by counters, or modelled from a class's power.

Measured is with the timed runs: workers are asked in turn, so only one works at any
moment, and counters of the whole machine see that one and whatever else runs. The idle
draw is measured with all workers loaded and none asked, before the rounds. A machine that
does other work meanwhile measures that too: bounds widen, and every figure is too high.

Modelled is a class's power over the measured speed: watts divided by tokens per second
are joules per token. It ranks candidates as speed does, so there is no objective for it.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from slmops.domain.blueprint import Blueprint
from slmops.domain.device import DeviceClass
from slmops.domain.energy import MeasuredEnergy, ModelledEnergy
from slmops.domain.errors import InvalidInputError
from slmops.domain.release import Card, Estimate, Speed
from slmops.runtimes.energy import EnergyMeter
from slmops.runtimes.speed import RunEnergy, SpeedRun
from slmops.workshop.statistics import median_of_runs

IDLE_SPANS, IDLE_SPAN_S = 5, 0.4
"""How often the idle draw is read, and over how long each time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EnergyWatch:
    """The machine's counters during one group's rounds."""

    meter: EnergyMeter
    """Counters."""
    idle_watts: Estimate | None
    """Draw with all workers loaded and none asked; None when nothing counts it."""

    @classmethod
    def begin(cls, meter: EnergyMeter) -> "EnergyWatch":
        """Measure the idle draw: about 2 s where there are counters, else at once."""
        return cls(meter=meter, idle_watts=_idle_watts(meter))

    def measured(self, runs: Sequence[SpeedRun]) -> MeasuredEnergy | None:
        """Return energy per token over a candidate's runs; None when one lacks it."""
        found = [run.energy for run in runs if run.energy is not None]
        if self.idle_watts is None or not found or len(found) != len(runs):
            return None
        idle = self.idle_watts
        least, middle, most = (
            [_decode(run, less_watts=watts) for run in found]
            for watts in (idle.high, idle.value, idle.low)
        )
        return MeasuredEnergy(
            prefill_joules_per_token=median_of_runs([_prefill(run) for run in found]),
            decode_joules_per_token=median_of_runs([_decode(run) for run in found]),
            decode_above_idle_joules_per_token=Estimate(
                value=median_of_runs(middle).value, low=min(least), high=max(most)
            ),
            idle_watts=idle,
            counters=tuple(zone.name for zone in self.meter.zones),
            runs=len(found),
        )

    def missing(self, measured: MeasuredEnergy | None) -> str:
        """Say why a candidate's energy was not measured; empty when it was."""
        if measured is not None:
            return ""
        return self.meter.reason or "an answer was too short to tell its decoding apart"


def _idle_watts(meter: EnergyMeter) -> Estimate | None:
    found = []
    for _ in range(IDLE_SPANS):
        before = meter.read()
        if before is None:
            return None
        time.sleep(IDLE_SPAN_S)
        spent = meter.between(before, meter.read())
        if spent is None:
            return None
        found.append(spent.watts)
    return median_of_runs(found)


def _prefill(run: RunEnergy) -> float:
    return run.prefill.joules / max(run.prefill_tokens, 1)


def _decode(run: RunEnergy, *, less_watts: float = 0.0) -> float:
    return (run.decode.joules - less_watts * run.decode.seconds) / run.decode_tokens


def model_energy(device_class: DeviceClass, speed: Speed) -> ModelledEnergy | None:
    """Return a class's power over a speed; None when the class names no power.

    Bounds: the least draw over the fastest run to the greatest over the slowest.
    """
    power = device_class.power
    if power is None:
        return None
    watts = power.draw(speed.threads)
    rates = speed.prefill_tokens_per_s, speed.decode_tokens_per_s
    if min(rate.low for rate in rates) <= 0:
        return None
    prefill, decode = (
        Estimate(
            value=watts.value / rate.value,
            low=watts.low / rate.high,
            high=watts.high / rate.low,
        )
        for rate in rates
    )
    return ModelledEnergy(
        device_class=device_class.name,
        prefill_joules_per_token=prefill,
        decode_joules_per_token=decode,
        watts=watts,
        idle_watts=power.idle_watts,
        source=power.source,
    )


def with_modelled_energy(card: Card, classes: Sequence[DeviceClass]) -> Card:
    """Return a card with the energy that its speeds and these classes' powers give."""
    pairs = ((each, card.speed_for(each)) for each in classes)
    found = (model_energy(each, speed) for each, speed in pairs if speed is not None)
    return replace(card, modelled_energy=tuple(e for e in found if e is not None))


def check_energy_budgets(blueprint: Blueprint, meter: EnergyMeter) -> None:
    """Refuse a budget of energy that nothing will be known for.

    Raises:
        InvalidInputError: a class limits energy, names no power, and no counter answers.
    """
    for index, device_class in enumerate(blueprint.classes):
        limit = device_class.budget.decode_joules_per_token
        if limit is not None and device_class.power is None and not meter.names:
            raise InvalidInputError(
                f"classes[{index}].budget.decode_joules_per_token needs energy that is"
                f" measured or modelled: {meter.reason or 'no counter'}, and the class"
                " names no power"
            )


def energy_absence(card: Card, device_class: DeviceClass) -> str:
    """Say why a card knows no energy of a class; empty when it knows some.

    >>> from slmops.testing.sample_release import sample_release
    >>> card = sample_release().variants[0].card
    >>> energy_absence(card, DeviceClass(name="small"))
    'energy: not measured (this build did not try), and class small names no power'
    """
    speed = card.speed_for(device_class)
    if speed is not None and speed.measured_energy is not None:
        return ""
    if any(each.device_class == device_class.name for each in card.modelled_energy):
        return ""
    why = (speed.energy_unmeasured if speed else "") or "this build did not try"
    return f"energy: not measured ({why}), and class {device_class.name} names no power"
