"""Counts of what the endpoint did: numbers on fixed grids, never text.

The endpoint and the supervisor add to open windows; the agent's loop closes them into
reports and keeps those until the control plane acknowledged them.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from slmops.domain.report import GRID_CELLS, GRID_MS, GRID_PER_S, grid_cell
from slmops.domain.soak import LiveCounts
from slmops.domain.sync import Report


@dataclass(frozen=True, kw_only=True, slots=True)
class Answered:
    """One answer that came to its end."""

    output_tokens: int = 0
    """Generated."""
    first_token_ms: float | None = None
    """Time to first token as the client saw it; None when it cannot be told."""
    decode_tokens_per_s: float | None = None
    """Decode speed; None for answers too short to tell."""


@dataclass(slots=True)
class _Window:
    started_at: float
    requests: int = 0
    failures: int = 0
    output_tokens: int = 0
    restarts: int = 0
    first_token_ms: list[int] = field(default_factory=lambda: [0] * GRID_CELLS)
    decode_tokens_per_s: list[int] = field(default_factory=lambda: [0] * GRID_CELLS)
    peak_rss_mib: float = 0.0

    def begun(self) -> "_Window":
        """Return an empty window that began with this one."""
        return _Window(started_at=self.started_at)

    def add(self, other: "_Window") -> None:
        """Add all counts of another window, which began earlier."""
        self.started_at = min(self.started_at, other.started_at)
        self.requests += other.requests
        self.failures += other.failures
        self.output_tokens += other.output_tokens
        self.restarts += other.restarts
        self.first_token_ms = _sums(self.first_token_ms, other.first_token_ms)
        self.decode_tokens_per_s = _sums(
            self.decode_tokens_per_s, other.decode_tokens_per_s
        )
        self.peak_rss_mib = max(self.peak_rss_mib, other.peak_rss_mib)


class Telemetry:
    """Open windows, one for each release that served; safe to share between threads."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._windows: dict[str | None, _Window] = {}
        self._live: dict[str | None, LiveCounts] = {}
        self._reported: set[str | None] = set()

    def answered(self, release: str | None, answer: Answered) -> None:
        """Count a complete answer."""
        with self._lock:
            window = self._window(release)
            window.requests += 1
            window.output_tokens += answer.output_tokens
            if answer.first_token_ms is not None:
                window.first_token_ms[grid_cell(GRID_MS, answer.first_token_ms)] += 1
            if answer.decode_tokens_per_s is not None:
                cell = grid_cell(GRID_PER_S, answer.decode_tokens_per_s)
                window.decode_tokens_per_s[cell] += 1
            self._add(release, LiveCounts(requests=1))

    def failed(self, release: str | None) -> None:
        """Count a 5xx answer or a broken stream."""
        with self._lock:
            window = self._window(release)
            window.requests += 1
            window.failures += 1
            self._add(release, LiveCounts(requests=1, failures=1))

    def restarted(self, release: str | None) -> None:
        """Count an unplanned restart of the model's process."""
        with self._lock:
            self._window(release).restarts += 1
            self._add(release, LiveCounts(restarts=1))

    def used_memory(self, release: str | None, peak_rss_mib: float) -> None:
        """Note the model's peak memory."""
        with self._lock:
            window = self._window(release)
            window.peak_rss_mib = max(window.peak_rss_mib, peak_rss_mib)

    def live(self, release: str | None) -> LiveCounts:
        """Return the counts since the agent's start."""
        with self._lock:
            return self._live.get(release, LiveCounts())

    def close_windows(
        self, next_sequence: Callable[[], int], keep: Callable[[Report], None]
    ) -> None:
        """End all open windows and keep those that say something.

        A window without requests or restarts says something only once for a release:
        the memory it takes. Whatever `next_sequence` or `keep` raises goes on to the
        caller; what was not kept by then is counted again in the next windows.
        """
        with self._lock:
            windows, self._windows = self._windows, {}
        now = self._now()
        try:
            # Without the lock: both write to a disk, and requests are being counted.
            for release in tuple(windows):
                window = windows[release]
                if self._says_something(release, window):
                    keep(_report(release, window, now, next_sequence()))
                    self._reported.add(release)
                del windows[release]
        finally:
            with self._lock:
                for release, window in windows.items():
                    self._windows.setdefault(release, window.begun()).add(window)

    def _says_something(self, release: str | None, window: _Window) -> bool:
        if window.requests or window.restarts:
            return True
        return bool(window.peak_rss_mib) and release not in self._reported

    def _window(self, release: str | None) -> _Window:
        return self._windows.setdefault(release, _Window(started_at=self._now()))

    def _add(self, release: str | None, more: LiveCounts) -> None:
        self._live[release] = self._live.get(release, LiveCounts()).plus(more)


def _report(release: str | None, window: _Window, now: float, sequence: int) -> Report:
    return Report(
        sequence=sequence,
        started_at=window.started_at,
        ended_at=now,
        release=release,
        requests=window.requests,
        failures=window.failures,
        output_tokens=window.output_tokens,
        restarts=window.restarts,
        first_token_ms=_counts(window.first_token_ms),
        decode_tokens_per_s=_counts(window.decode_tokens_per_s),
        peak_rss_mib=window.peak_rss_mib,
    )


def _counts(cells: list[int]) -> tuple[int, ...]:
    return tuple(cells) if any(cells) else ()


def _sums(some: list[int], others: list[int]) -> list[int]:
    return [one + other for one, other in zip(some, others, strict=True)]
