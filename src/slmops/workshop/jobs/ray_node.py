"""The nodes' side of the Ray executor: what runs in Ray's worker processes.

Two parts. The `Desk` is an actor on the asking machine: it hands out input files in
pieces, takes output files in pieces, and remembers how far each job is. `carry_out` is
the task: on whatever node Ray chose it gathers the inputs, runs the very child process
that the local executor runs, and sends the outputs to the desk. Nodes need no shared
file system; where they have one, files are read in place once their digest holds.

Every piece is at most `PIECE_BYTES`, so that the object stores hold pieces and never
models.
"""

import os
import shutil
import socket
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slmops.domain.errors import (
    InvalidInputError,
    NotFoundError,
    SlmopsError,
    UntrustedError,
)
from slmops.domain.ids import Digest
from slmops.registry.blobs import BlobStore, file_digest
from slmops.runtimes.base import load_runtime
from slmops.workshop.jobs.child import ChildOrder
from slmops.workshop.jobs.kinds import find_kind
from slmops.workshop.jobs.order import Order
from slmops.workshop.jobs.processes import JobProcesses
from slmops.workshop.jobs.tools import tool_version
from slmops.workshop.own_folder import own_folder

PIECE_BYTES = 8 << 20
"""Most that goes through an object store at once, for each job."""
NODE_FOLDER = "SLMOPS_RAY_NODE_FOLDER"
"""Environment variable of a node: where it keeps inputs and checkpoints."""
_REPORT_EVERY_S = 0.2


@dataclass(frozen=True, kw_only=True, slots=True)
class Ticket:
    """One order as it goes to a node."""

    order: Order
    """The job."""
    tool: str
    """What must compute it: see `tool_of`."""
    run: str
    """Unique name of this run, for what the desk keeps of it."""
    blobs: str
    """Folder of the asking machine's blob store, in case that the node sees it too;
    empty for none."""
    threads: int
    """Processors it may use."""
    cache_bytes: int
    """What the node may keep of inputs when the job begins."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """How a ticket ended, when no process was killed."""

    outputs: Mapping[str, tuple[str, Digest]] = field(default_factory=dict)
    """Role → name of the file at the desk, and what its bytes must hash to."""
    error: str = ""
    """Code of the job's error, empty when there is none."""
    message: str = ""
    """Its words."""


class Desk:
    """Files and progress of the asking machine, over Ray; see the module."""

    def __init__(self, blobs: Path, folder: Path) -> None:
        self._blobs = BlobStore(blobs)
        self._folder = folder
        self._progress: dict[str, tuple[float, float]] = {}

    def read(self, digest: Digest, offset: int) -> bytes:
        """Return the piece of a blob that begins at `offset`; empty behind the end."""
        with self._blobs.open(digest) as file:
            file.seek(offset)
            return file.read(PIECE_BYTES)

    def write(self, name: str, offset: int, piece: bytes) -> None:
        """Put a piece into a file below the desk's folder; safe to repeat."""
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
        with os.fdopen(descriptor, "wb") as file:
            file.seek(offset)
            file.write(piece)

    def report(self, run: str, done: float, total: float) -> None:
        """Remember how far a run is."""
        self._progress[run] = (done, total)

    def progress(self, run: str) -> tuple[float, float] | None:
        """Return how far a run is, once."""
        return self._progress.pop(run, None)


def tool_of(order: Order) -> str:
    """Name the code and the packages here that would compute an order.

    A node with other code would put other bytes under the same key.
    """
    row = find_kind(order.kind)
    tool = tool_version(*row.code, packages=row.packages)
    if row.in_runtime:
        name = str(order.parameters["runtime"])
        runtimes = tool_version("slmops.runtimes")
        tool += f"; {name} {load_runtime(name).version()}, {runtimes}"
    return tool


def carry_out(ticket: Ticket, desk: Any) -> Reply:  # noqa: ANN401 - an actor's handle
    """Run one order on this node; the job's own errors come back in the reply."""
    try:
        return Reply(outputs=_outputs(ticket, desk))
    except SlmopsError as error:
        return Reply(error=error.code, message=str(error))


def node_folder() -> Path:
    """Return where this node keeps inputs and checkpoints."""
    chosen = os.environ.get(NODE_FOLDER)
    return Path(chosen) if chosen else Path.home() / ".cache" / "slmops" / "ray"


def _outputs(ticket: Ticket, desk: Any) -> dict[str, tuple[str, Digest]]:  # noqa: ANN401
    order = ticket.order
    found = tool_of(order)
    if found != ticket.tool:
        raise InvalidInputError(
            f"node {socket.gethostname()} must run the builder's code and packages for"
            f" {order.kind}: {ticket.tool}; it has {found}"
        )
    root = node_folder()
    state = root / "state" / order.key
    scratch = root / "scratch"
    for folder in (state, scratch):
        folder.mkdir(parents=True, exist_ok=True)
    cache = BlobStore(root)
    cache.remove_partials()
    _shrink(cache, ticket.cache_bytes)
    with own_folder(scratch) as own:
        inputs, output = own / "inputs", own / "output"
        inputs.mkdir()
        output.mkdir()
        paths = {
            role: str(_gathered(digest, ticket, (desk, cache), inputs))
            for role, digest in order.inputs.items()
        }
        child = ChildOrder(
            kind=order.kind,
            inputs=paths,
            parameters=order.parameters,
            seed=order.seed,
            output=str(output),
            state=str(state),
            threads=ticket.threads,
        )
        with JobProcesses() as processes:
            made = processes.run(child, _Reporter(ticket.run, desk))
        sent = {role: _sent(path, output, desk) for role, path in made.items()}
    shutil.rmtree(state, ignore_errors=True)
    return sent


def _gathered(
    digest: Digest,
    ticket: Ticket,
    places: tuple[Any, BlobStore],
    folder: Path,
) -> Path:
    """Return a file with the blob's bytes: shared, kept from before, or fetched."""
    desk, cache = places
    if ticket.blobs and _holds(shared := BlobStore(Path(ticket.blobs)), digest):
        return shared.path(digest)
    if not _holds(cache, digest):
        _fetch(digest, desk, cache)
    # A name of its own: another job may make room in the cache meanwhile.
    own = folder / digest.rpartition(":")[2]
    if not own.exists():
        os.link(cache.path(digest), own)
        os.utime(own)  # The cache drops what was used longest ago.
    return own


def _holds(store: BlobStore, digest: Digest) -> bool:
    try:
        store.verify(digest)
    except (NotFoundError, UntrustedError, OSError):
        return False
    return True


def _fetch(digest: Digest, desk: Any, cache: BlobStore) -> None:  # noqa: ANN401
    import ray

    cache.remove(digest)
    with cache.writer() as writer:
        offset = 0
        while piece := ray.get(desk.read.remote(digest, offset)):
            writer.write(piece)
            offset += len(piece)
    if writer.digest != digest:
        cache.remove(writer.digest)
        raise UntrustedError(f"blob {digest} arrived as {writer.digest}")


def _sent(path: Path, output: Path, desk: Any) -> tuple[str, Digest]:  # noqa: ANN401
    import ray

    if not path.resolve().is_relative_to(output.resolve()):
        raise InvalidInputError(f"a job must write below {output}, it wrote {path}")
    # A name that no other attempt has: an earlier one may still be writing.
    name = uuid.uuid4().hex
    offset = 0
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            ray.get(desk.write.remote(name, offset, piece))
            offset += len(piece)
    if not offset:
        ray.get(desk.write.remote(name, 0, b""))
    return name, file_digest(path)


def _shrink(cache: BlobStore, limit_bytes: int) -> None:
    """Drop kept inputs, those used longest ago first, until the rest is small enough."""
    kept = []
    for digest in cache.digests():
        try:
            found = cache.path(digest).stat()
        except (OSError, NotFoundError):
            continue  # Another job dropped it.
        kept.append((found.st_mtime_ns, found.st_size, digest))
    left = sum(size for _, size, _ in kept)
    for _, size, digest in sorted(kept):
        if left <= limit_bytes:
            return
        cache.remove(digest)
        left -= size


class _Reporter:
    """Tell the desk how far a job is, not more often than anyone looks."""

    def __init__(self, run: str, desk: Any) -> None:  # noqa: ANN401
        self._run = run
        self._desk = desk
        self._told = 0.0

    def __call__(self, done: float, total: float) -> None:
        now = time.perf_counter()
        if done >= total or now - self._told >= _REPORT_EVERY_S:
            self._told = now
            self._desk.report.remote(self._run, done, total)
