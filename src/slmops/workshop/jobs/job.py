"""What a job is handed: files in, parameters, a seed; files out.

A job function computes one kind of step. It is pure: what it leaves depends on its
inputs, parameters and seed alone, so an executor may run it here, in a child process or
on another machine, and may run it again after a kill. It reads nothing else and writes
only below `output` and `state`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from slmops.domain.errors import InvalidInputError

Value = str | int | float | bool | None | tuple[str, ...]
"""What a parameter may be."""

Report = Callable[[float, float], None]
"""Told how much is done, and of how much."""

Kind = TypeVar("Kind", str, int, float, bool)


def unheard(done: float, total: float) -> None:
    """Ignore a report."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One run of a job function."""

    inputs: Mapping[str, Path]
    """Role → file to read; never written."""
    parameters: Mapping[str, Value]
    """Everything else that decides the outputs."""
    output: Path
    """Empty folder for the outputs."""
    state: Path
    """Folder that outlives a kill, for checkpoints of long work; gone once the step is
    done. What lies in it was written by an earlier run of this very step."""
    seed: int = 0
    """Of any chance in it."""
    threads: int = 1
    """Processors it may use; must not change what comes out, but for the last bits of
    training: sums over a batch are added in another order."""
    report: Report = unheard
    """Call it often: it is also how a job learns that it was stopped."""

    def parameter(self, name: str, kind: type[Kind]) -> Kind:
        """Return a parameter of the given type (an int is a float too).

        Raises:
            InvalidInputError: missing, or of another type.
        """
        value = self.parameters.get(name)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise InvalidInputError(
                f"parameter {name} must be {kind.__name__}, got {value!r}"
            )
        return value


JobFunction = Callable[[Job], Mapping[str, Path]]
"""Computes outputs: role → file below `Job.output`."""
