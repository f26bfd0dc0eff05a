"""Where jobs run: an interface, and this machine's processors behind it."""

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from slmops.domain.errors import InvalidInputError
from slmops.domain.ids import Digest
from slmops.registry.blobs import BlobStore
from slmops.workshop.jobs.child import ChildOrder
from slmops.workshop.jobs.job import Report
from slmops.workshop.jobs.kinds import find_kind
from slmops.workshop.jobs.order import Order
from slmops.workshop.jobs.processes import JobProcesses

_MOST_SLOTS = 8


class Executor(Protocol):
    """Runs orders, several at a time when it is asked from several threads."""

    @property
    def slots(self) -> int:
        """How many orders it can run at the same time."""
        ...

    def run(
        self, order: Order, blobs: BlobStore, report: Report
    ) -> Mapping[str, Digest]:
        """Run one order to its end and return its outputs, which `blobs` then holds.

        An order may be run again after a kill, and more than once: equal orders give
        equal outputs.

        Raises:
            SlmopsError: what the job raised.
            InvalidInputError: the job crashed its process.
            UnavailableError: its process was killed, or the build was stopped.
        """
        ...

    def stop(self) -> None:
        """End what runs; nothing new starts."""
        ...


def processors() -> int:
    """Return how many processors this process may use, 8 at most."""
    return max(1, min(len(os.sched_getaffinity(0)), _MOST_SLOTS))


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalExecutor:
    """Child processes of this machine."""

    processes: JobProcesses
    """Children are started here."""
    scratch: Path
    """Folder for outputs until they are blobs; may be emptied when a build begins."""
    state: Path
    """Folder for checkpoints, which outlive a kill."""

    @property
    def slots(self) -> int:
        """One for each processor."""
        return processors()

    def stop(self) -> None:
        """Kill the children; nothing new starts."""
        self.processes.stop()

    def run(
        self, order: Order, blobs: BlobStore, report: Report
    ) -> Mapping[str, Digest]:
        """See `Executor.run`."""
        state = self.state / order.key
        state.mkdir(parents=True, exist_ok=True)
        self.scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            child = ChildOrder(
                kind=order.kind,
                inputs={
                    role: str(blobs.path(each)) for role, each in order.inputs.items()
                },
                parameters=order.parameters,
                seed=order.seed,
                output=folder,
                state=str(state),
                threads=processors() if find_kind(order.kind).wide else 1,
            )
            made = self.processes.run(child, report)
            outputs = {
                role: _stored(blobs, Path(folder), path) for role, path in made.items()
            }
        shutil.rmtree(state, ignore_errors=True)
        return outputs


def _stored(blobs: BlobStore, folder: Path, path: Path) -> Digest:
    if not path.resolve().is_relative_to(folder.resolve()):
        raise InvalidInputError(f"a job must write below {folder}, it wrote {path}")
    with path.open("rb") as file:
        # The blob may become another name of this file: its bytes go to the disk first.
        os.fsync(file.fileno())
    return blobs.put_file(path)
