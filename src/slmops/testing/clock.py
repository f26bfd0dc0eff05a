"""A clock that tests turn by hand."""

import threading
from dataclasses import dataclass, field


@dataclass(slots=True)
class SimulatedClock:
    """Time that passes only when `advance` says so; safe to share between threads."""

    wall: float = 1_760_000_000.0
    """Unix time, seconds."""
    elapsed: float = 0.0
    """Monotonic time, seconds."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def now(self) -> float:
        """Return the Unix time, seconds."""
        with self._lock:
            return self.wall

    def monotonic(self) -> float:
        """Return the time since some fixed moment, seconds."""
        with self._lock:
            return self.elapsed

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass on both clocks."""
        with self._lock:
            self.wall += seconds
            self.elapsed += seconds

    def set_wall(self, now: float) -> None:
        """Set the wall clock, as a person or a wrong time server would."""
        with self._lock:
            self.wall = now
