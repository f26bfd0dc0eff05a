"""Workers that a build has up, so that an error or Ctrl-C ends them all."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from slmops.domain.errors import UnavailableError
from slmops.runtimes.base import WorkerSettings
from slmops.runtimes.worker import Worker, start_worker


@dataclass(slots=True)
class Workers:
    """Starts workers, from several threads; a context that leaves none behind."""

    runtime: str
    """Name of the runtime that serves."""
    _running: set[Worker] = field(default_factory=set)
    _stopped: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End what runs; who waits for an answer gets an error. Nothing new starts."""
        with self._lock:
            self._stopped = True
            running = list(self._running)
        for worker in running:
            worker.stop()

    @contextmanager
    def start(self, artefact: Path, settings: WorkerSettings) -> Iterator[Worker]:
        """Have a worker up for a block.

        Raises:
            InvalidInputError: the artefact does not load.
            UnavailableError: the build was stopped, or the runtime is not installed.
        """
        self._refuse_stopped()
        with start_worker(self.runtime, artefact, settings) as worker:
            with self._lock:
                self._running.add(worker)
            try:
                self._refuse_stopped()
                yield worker
            finally:
                with self._lock:
                    self._running.discard(worker)

    def _refuse_stopped(self) -> None:
        if self._stopped:
            raise UnavailableError("the build was stopped")
