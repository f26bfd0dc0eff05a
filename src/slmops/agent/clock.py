"""The two clocks the agent is handed: wall time may jump, monotonic time may not."""

import random
import time
from typing import Protocol


class Clock(Protocol):
    """Where time comes from."""

    def now(self) -> float:
        """Return the Unix time, seconds."""
        ...

    def monotonic(self) -> float:
        """Return the time since some fixed moment, seconds."""
        ...


class Backoff:
    """Waiting times that double up to a bound, each with jitter.

    Jitter is a factor of 0.5 to 1: devices that failed together do not come back
    together (https://aws.amazon.com/builders-library/timeouts-retries-and-backoff-with-jitter).
    """

    def __init__(
        self, *, first_s: float, longest_s: float, chance: random.Random
    ) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._chance = chance
        self.failures = 0
        """Failures in a row."""

    def failed(self) -> float:
        """Count a failure; return how long to wait before the next try, seconds."""
        doubled = self._first_s * 2 ** min(self.failures, 32)
        self.failures += 1
        longest: float = min(doubled, self._longest_s)
        return longest * self._chance.uniform(0.5, 1.0)

    def succeeded(self) -> None:
        """Begin anew."""
        self.failures = 0


class Stopwatch:
    """Measures one duration, ms."""

    def __init__(self) -> None:
        self._begin = time.perf_counter()

    def ms(self) -> float:
        """Return the time since it was made."""
        return (time.perf_counter() - self._begin) * 1000
