"""What the stages of one build share, and how they run things at the same time."""

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from slmops.domain.blueprint import Blueprint
from slmops.domain.release import ModelRecord
from slmops.registry.blobs import BlobStore
from slmops.registry.workspace import Workspace
from slmops.workshop.board import Board
from slmops.workshop.score_process import ScoreProcesses
from slmops.workshop.steps import StepRunner
from slmops.workshop.workers import Workers

_LARGEST_POOL = 8


@dataclass(kw_only=True, slots=True)
class BuildContext:
    """One build: what it builds, and with what."""

    blueprint: Blueprint
    """As it is built."""
    workspace: Workspace
    """Holds the model, and takes everything that is made."""
    folder: Path
    """Where the blueprint lies."""
    model: ModelRecord
    """The 16-bit reference."""
    runtime: str
    """Name of the runtime that serves every class."""
    runner: StepRunner
    """Runs or reuses steps."""
    processes: ScoreProcesses
    """Scoring children."""
    workers: Workers
    """Serving children."""
    board: Board
    """Told what runs."""
    stages: dict[str, float] = field(default_factory=dict)
    """Stage → wall time, s."""

    @property
    def blobs(self) -> BlobStore:
        """Where artefacts and steps' outputs lie."""
        return BlobStore(self.workspace.blobs)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a block as one stage."""
        began = time.perf_counter()
        yield
        self.stages[name] = round(time.perf_counter() - began, 2)

    @contextmanager
    def pool(self, threads: int | None = None) -> Iterator[ThreadPoolExecutor]:
        """Run tasks in threads; on an error or Ctrl-C stop what runs and drop the rest.

        Args:
            threads: how many; by default one for each processor.
        """
        pool = ThreadPoolExecutor(threads or _processors())
        try:
            yield pool
        except BaseException:
            self.board.stop()
            self.processes.stop()
            self.workers.stop()
            pool.shutdown(cancel_futures=True)
            raise
        pool.shutdown()


def _processors() -> int:
    return max(1, min(len(os.sched_getaffinity(0)), _LARGEST_POOL))
