"""One progress line for many tasks that run at the same time."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from slmops.domain.errors import UnavailableError
from slmops.workshop.progress import Progress

REUSED = "reuse finished steps"
"""Shown while nothing runs but steps are found finished."""


@dataclass(slots=True)
class Board:
    """Adds up tasks; its progress callback is called by one thread at a time."""

    progress: Progress
    """Told what runs and how many tasks are done."""
    total: int = 0
    """Tasks expected; 0 when unknown."""
    _foreseen: int = 0
    """Of the total: tasks known to come that were not counted one by one yet."""
    _done: float = 0.0
    _parts: dict[str, float] = field(default_factory=dict)
    _stopped: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> "Board":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Make every task fail at its next report: how threads learn of Ctrl-C."""
        self._stopped = True

    def expect(self, tasks: int) -> None:
        """Count more tasks towards the total, those first that were foreseen."""
        with self._lock:
            known = min(tasks, self._foreseen)
            self._foreseen -= known
            self.total += tasks - known

    @contextmanager
    def foresee(self, tasks: int) -> Iterator[None]:
        """Count about as many tasks as a block will expect, before it does.

        A stage that only learns its tasks one by one would be nearly done all the time.
        """
        with self._lock:
            self._foreseen += tasks
            self.total += tasks
        try:
            yield
        finally:
            with self._lock:
                self.total -= self._foreseen
                self._foreseen = 0

    def reuse(self) -> None:
        """Count a task as done that an earlier build has finished."""
        with self._lock:
            self._done += 1
            self._show(REUSED)

    @contextmanager
    def task(self, name: str) -> Iterator[Callable[[float, float], None]]:
        """Show a task while the block runs; the block may report (done, total) of it."""

        def report(done: float, total: float) -> None:
            if self._stopped:
                raise UnavailableError(f"{name}: the build was stopped")
            with self._lock:
                self._parts[name] = min(done / total, 1.0) if total else 0.0
                self._show(name)

        report(0, 1)
        try:
            yield report
        finally:
            with self._lock:
                self._parts.pop(name, None)
                self._done += 1
                self._show(name)

    def _show(self, last: str) -> None:
        what = " + ".join(sorted(self._parts)) or last
        done = self._done + sum(self._parts.values())
        self.progress(what, min(done, self.total) if self.total else done, self.total)
