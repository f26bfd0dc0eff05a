"""An order: one job as an executor is given it, with nothing of the asking process."""

from collections.abc import Mapping
from dataclasses import dataclass

from slmops.domain.ids import Digest
from slmops.workshop.jobs.job import Value


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """A job by digests."""

    key: str
    """Hex digest of the step: equal orders have equal keys."""
    kind: str
    """Row of `slmops.workshop.jobs.kinds.KINDS`."""
    inputs: Mapping[str, Digest]
    """Role → blob."""
    parameters: Mapping[str, Value]
    """Everything else that decides the outputs."""
    seed: int = 0
    """Of any chance in it."""
