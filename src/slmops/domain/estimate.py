"""A measured figure with its confidence bounds."""

from dataclasses import dataclass

from slmops.domain.errors import InvalidInputError


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A measured figure with its 95 % confidence bounds (or min and max of a few runs)."""

    value: float
    """Point estimate, in the unit its field's name says."""
    low: float
    """Lower bound."""
    high: float
    """Upper bound."""

    def __post_init__(self) -> None:
        if not self.low <= self.value <= self.high:
            raise InvalidInputError(
                f"estimate must have low <= value <= high,"
                f" got {self.low:g}, {self.value:g}, {self.high:g}"
            )
