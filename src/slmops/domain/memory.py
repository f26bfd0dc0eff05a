"""How far the peak memory of a model's process is known."""

from dataclasses import dataclass

from slmops.domain.errors import InvalidInputError
from slmops.domain.estimate import Estimate


@dataclass(frozen=True, kw_only=True, slots=True)
class PeakMemory:
    """Peak memory of one more process that serves the variant, with bounds.

    The bounds are those of a 95 % prediction interval, not of a mean: a device starts one
    process, and its peak must fit. They widen by what was not measured on this very
    variant, or not measured at all.
    """

    measured: Estimate
    """VmHWM with `Speed.filled_tokens` in the context, MiB."""
    full: Estimate
    """The same with the context full, MiB: what budgets are compared with. Modelled where
    `Speed.extrapolated_mib` is not 0, else equal to `measured`."""
    processes: int
    """Fresh processes that ran the standard prompt, at this context or, when
    `Speed.timed_context_tokens` is set, at that."""
    deviation_mib: float
    """Standard deviation of their peaks."""

    def __post_init__(self) -> None:
        if self.processes < 2:  # noqa: PLR2004 - a spread needs two
            raise InvalidInputError(
                f"peak_memory.processes must be >= 2, got {self.processes}"
            )
        if not self.deviation_mib >= 0:
            raise InvalidInputError(
                f"peak_memory.deviation_mib must be >= 0, got {self.deviation_mib:g}"
            )
