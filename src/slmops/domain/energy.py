"""Energy per token: what a class's device draws, and figures measured or modelled from it.

Measured and modelled figures are documents of two kinds, and never share a field.
"""

from dataclasses import dataclass

from slmops.domain.errors import InvalidInputError
from slmops.domain.estimate import Estimate


@dataclass(frozen=True, kw_only=True, slots=True)
class Power:
    """What a device of a class draws, as somebody measured it or its vendor says.

    Figures that are modelled from it say so wherever they are shown.
    """

    source: str
    """Where the figures come from: ``meter at the socket, 2026-11``, a data sheet."""
    busy_watts: float
    """Draw of the whole device while it answers, less what `watts_per_thread` adds."""
    watts_per_thread: float = 0.0
    """What each of the class's threads adds to that; 0 where `busy_watts` is all."""
    idle_watts: float = 0.0
    """Draw of the whole device while nothing is asked; 0 for not known."""
    uncertainty: float = 0.0
    """Share by which the draw above may be off, either way; widens the bounds of what is
    modelled. At 0 they show the spread of timing alone."""

    def __post_init__(self) -> None:
        if not self.source.strip():
            raise InvalidInputError("power.source must say where figures come from")
        if not self.busy_watts > 0:
            raise InvalidInputError(
                f"power.busy_watts must be > 0, got {self.busy_watts:g}"
            )
        for name in ("watts_per_thread", "idle_watts"):
            if getattr(self, name) < 0:
                raise InvalidInputError(
                    f"power.{name} must be >= 0, got {getattr(self, name):g}"
                )
        if self.busy_watts < self.idle_watts:
            raise InvalidInputError(
                f"power.busy_watts must be at least idle_watts ({self.idle_watts:g}),"
                f" got {self.busy_watts:g}"
            )
        if not 0 <= self.uncertainty < 1:
            raise InvalidInputError(
                f"power.uncertainty must be in [0, 1), got {self.uncertainty:g}"
            )

    def draw(self, threads: int) -> Estimate:
        """Return the draw of the whole device while so many threads work, W.

        >>> Power(source="x", busy_watts=2.0, watts_per_thread=1.5).draw(2).value
        5.0
        """
        watts = self.busy_watts + self.watts_per_thread * threads
        off = self.uncertainty * watts
        return Estimate(value=watts, low=watts - off, high=watts + off)


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredEnergy:
    """Energy per token by the processor's own counters, while nothing else was asked.

    Of the counted parts as a whole, idle draw included, unless a field says otherwise.
    Medians of the timed runs, with least and greatest.
    """

    prefill_joules_per_token: Estimate
    """From a request's sending to its first text, for each token of its prompt."""
    decode_joules_per_token: Estimate
    """From the first text to the last, for each token after the first."""
    decode_above_idle_joules_per_token: Estimate
    """The same less the idle draw over that time; bounds with those of the idle draw."""
    idle_watts: Estimate
    """Draw of the counted parts with every model loaded and none asked."""
    counters: tuple[str, ...]
    """What was counted: ``package-0``, ``dram``."""
    runs: int
    """Requests behind it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelledEnergy:
    """Energy per token that nobody measured: a class's power over a measured speed.

    As right as the class's power, and as far as the device is as fast as the machine
    whose speed it is. Bounds are the speed's and the power's together.
    """

    device_class: str
    """Class whose power it is."""
    prefill_joules_per_token: Estimate
    """Draw over prefill speed, idle draw included."""
    decode_joules_per_token: Estimate
    """Draw over decode speed, idle draw included."""
    watts: Estimate
    """Draw while the class's threads answer."""
    idle_watts: float
    """Draw while nothing is asked; 0 for not known."""
    source: str
    """Of the power."""
