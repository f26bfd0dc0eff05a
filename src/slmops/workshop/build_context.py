"""What the stages of one build share, and how they run things at the same time."""

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
from slmops.runtimes.energy import POWERCAP
from slmops.workshop.artefacts import Making
from slmops.workshop.board import Board
from slmops.workshop.source_grid import SourceGrid
from slmops.workshop.steps import StepRunner
from slmops.workshop.workbench import Workbench
from slmops.workshop.workers import Workers


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
    bench: Workbench
    """Runs or reuses steps."""
    workers: Workers
    """Serving children."""
    eligible: frozenset[str] = frozenset()
    """Labels of candidates that selection may choose: not the control by itself."""
    grid: SourceGrid = field(default_factory=SourceGrid)
    """Which weights were rounded before they were imported."""
    powercap: Path = POWERCAP
    """Where this machine's energy counters lie."""
    stages: dict[str, float] = field(default_factory=dict)
    """Stage → wall time, s."""

    @property
    def runner(self) -> StepRunner:
        """Knows what is finished."""
        return self.bench.runner

    @property
    def board(self) -> Board:
        """Told what runs."""
        return self.bench.board

    @property
    def blobs(self) -> BlobStore:
        """Where artefacts and steps' outputs lie."""
        return BlobStore(self.workspace.blobs)

    def is_eligible(self, making: Making) -> bool:
        """Tell whether selection may choose what is so made."""
        return making.label in self.eligible

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
            threads: how many; by default one for each slot of the executor.
        """
        with self.bench.pool(threads) as pool:
            try:
                yield pool
            except BaseException:
                self.workers.stop()
                raise
