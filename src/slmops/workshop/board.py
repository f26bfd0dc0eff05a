"""One progress line for many tasks that run at the same time."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from slmops.workshop.progress import Progress


@dataclass(slots=True)
class Board:
    """Adds up tasks; its progress callback is called by one thread at a time."""

    progress: Progress
    """Told what runs and how many tasks are done."""
    total: int = 0
    """Tasks expected; 0 when unknown."""
    _done: float = 0.0
    _parts: dict[str, float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def expect(self, tasks: int) -> None:
        """Count more tasks towards the total."""
        with self._lock:
            self.total += tasks

    def skip(self) -> None:
        """Count a task that needed no work."""
        with self._lock:
            self._done += 1

    @contextmanager
    def task(self, name: str) -> Iterator[Callable[[float, float], None]]:
        """Show a task while the block runs; the block may report (done, total) of it."""

        def report(done: float, total: float) -> None:
            with self._lock:
                self._parts[name] = min(done / total, 1.0) if total else 0.0
                self._show()

        report(0, 1)
        try:
            yield report
        finally:
            with self._lock:
                self._parts.pop(name, None)
                self._done += 1
                self._show()

    def _show(self) -> None:
        what = " + ".join(sorted(self._parts)) or "build"
        done = self._done + sum(self._parts.values())
        self.progress(what, min(done, self.total) if self.total else done, self.total)
