"""Jobs on a Ray cluster: one of several machines, or one that lives for a build.

An order becomes a Ray task; `ray_node` is what happens on its node. A worker or node
that is killed in mid-job costs that attempt only: Ray runs the task again, and a job
run twice leaves the same bytes. Outputs are accepted by their digest.

Ray is an optional dependency, imported when it is used. Its usage statistics and its
dashboard are off. A cluster that is started here listens on loopback only and asks for
a token that only this process and its children know.
"""

import contextlib
import importlib.util
import os
import secrets
import sys
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slmops.domain.errors import (
    ERROR_CLASSES,
    InvalidInputError,
    SlmopsError,
    UnavailableError,
    UntrustedError,
)
from slmops.domain.ids import Digest
from slmops.registry.blobs import BlobStore
from slmops.workshop.jobs.executor import processors
from slmops.workshop.jobs.job import Report
from slmops.workshop.jobs.kinds import find_kind
from slmops.workshop.jobs.order import Order
from slmops.workshop.jobs.ray_node import (
    NODE_FOLDER,
    Desk,
    Reply,
    Ticket,
    carry_out,
    tool_of,
)
from slmops.workshop.own_folder import own_folder, user_scratch

ADDRESS = "RAY_ADDRESS"
"""Environment variable that Ray itself reads: a cluster to join."""
_MAX_RETRIES = 3
_POLL_S = 0.1
_DESK_THREADS = 16
_STORE_BYTES = 256 << 20
_CACHE_BYTES = 16 << 30
_LOCAL = {
    # Loopback, as Ray does by itself where several machines are not supported.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
}
_TOKEN = secrets.token_hex(32)
"""One for the life of this process, because Ray reads it once."""
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


@dataclass(kw_only=True, slots=True)
class RayExecutor:
    """Runs orders as tasks of the cluster that this process has joined."""

    folder: Path
    """Takes output files until they are blobs; may be emptied when a build begins."""
    cache_bytes: int = _CACHE_BYTES
    """What each node may keep of inputs."""
    read_in_place: bool = True
    """Whether nodes that see this machine's files may read them where they lie."""
    _desks: dict[Path, Any] = field(default_factory=dict)
    _running: set[Any] = field(default_factory=set)
    _stopped: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def slots(self) -> int:
        """One for each processor of the cluster."""
        import ray

        return max(1, int(ray.cluster_resources().get("CPU", 1)))

    def run(
        self, order: Order, blobs: BlobStore, report: Report
    ) -> Mapping[str, Digest]:
        """See `slmops.workshop.jobs.executor.Executor.run`.

        Raises:
            UntrustedError: an output's bytes are not those that the node made.
        """
        threads = _largest_node() if find_kind(order.kind).wide else 1
        ticket = Ticket(
            order=order,
            tool=tool_of(order),
            run=uuid.uuid4().hex,
            blobs=str(blobs.root.resolve()) if self.read_in_place else "",
            threads=threads,
            cache_bytes=self.cache_bytes,
        )
        desk = self._desk(blobs)
        reply = self._followed(ticket, desk, report)
        if reply.error:
            raise _error(reply.error)(reply.message)
        return {
            role: self._stored(blobs, name, digest)
            for role, (name, digest) in reply.outputs.items()
        }

    def stop(self) -> None:
        """Cancel the tasks, whose children end with them; nothing new starts."""
        import ray

        with self._lock:
            self._stopped = True
            running = list(self._running)
        for task in running:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.cancel(task, force=True)

    def _followed(self, ticket: Ticket, desk: Any, report: Report) -> Reply:  # noqa: ANN401
        import ray

        task = self._submit(ticket, desk)
        try:
            while not ray.wait([task], timeout=_POLL_S)[0]:
                told = ray.get(desk.progress.remote(ticket.run))
                if told is not None:
                    report(*told)
            reply = ray.get(task)
        except ray.exceptions.RayError as error:
            raise self._lost(ticket, error) from None
        except BaseException:
            ray.cancel(task, force=True)
            raise
        finally:
            with self._lock:
                self._running.discard(task)
        if not isinstance(reply, Reply):
            raise UnavailableError(f"{ticket.order.kind}: a node replied {reply!r}")
        return reply

    def _submit(self, ticket: Ticket, desk: Any) -> Any:  # noqa: ANN401
        import ray

        task = ray.remote(carry_out).options(
            name=ticket.order.kind,
            num_cpus=ticket.threads,
            max_retries=_MAX_RETRIES,
            # What it raises on purpose comes in its reply; the rest is a defect.
            retry_exceptions=False,
        )
        with self._lock:
            if self._stopped:
                raise UnavailableError("the build was stopped")
            running = task.remote(ticket, desk)
            self._running.add(running)
        return running

    def _lost(self, ticket: Ticket, error: Exception) -> UnavailableError:
        if self._stopped:
            return UnavailableError("the build was stopped")
        words = str(error).strip().splitlines()
        return UnavailableError(
            f"{ticket.order.kind} on Ray: {type(error).__name__}:"
            f" {words[-1] if words else ''}"
        )

    def _stored(self, blobs: BlobStore, name: str, digest: Digest) -> Digest:
        path = self.folder / name
        try:
            with path.open("rb") as file:
                os.fsync(file.fileno())
            found = blobs.put_file(path)
        finally:
            path.unlink(missing_ok=True)
        if found != digest:
            raise UntrustedError(f"an output must be {digest}, {found} arrived")
        return found

    def _desk(self, blobs: BlobStore) -> Any:  # noqa: ANN401
        """Return the actor that reads and writes this machine's files."""
        import ray

        with self._lock:
            if blobs.root not in self._desks:
                here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
                    node_id=ray.get_runtime_context().get_node_id(), soft=False
                )
                # Without processors of its own; its files and calls survive a restart.
                self._desks[blobs.root] = (
                    ray.remote(Desk)
                    .options(
                        num_cpus=0,
                        max_concurrency=_DESK_THREADS,
                        max_restarts=-1,
                        max_task_retries=-1,
                        scheduling_strategy=here,
                    )
                    .remote(blobs.root.resolve(), self.folder.resolve())
                )
            return self._desks[blobs.root]


@contextmanager
def ray_executor(
    folder: Path, *, address: str | None = None, num_cpus: int | None = None
) -> Iterator[RayExecutor]:
    """Join a Ray cluster, or start one for this block, and leave or end it after.

    Args:
        folder: takes output files until they are blobs.
        address: of a cluster that has a node on this machine: ``10.0.0.5:6379``, or
            ``auto`` for the one running here. By default the variable ``RAY_ADDRESS``;
            without it a cluster of this machine's processors is started.
        num_cpus: processors of a cluster that is started; by default all that this
            process may use, 8 at most.

    Raises:
        InvalidInputError: Ray is not installed, or the address is a client's.
        UnavailableError: no cluster answers there, or none starts.
    """
    _refuse_missing()
    address = address or os.environ.get(ADDRESS) or None
    if address is not None and address.startswith("ray://"):
        raise InvalidInputError(
            "executor ray: the build must run on a node of the cluster, since nodes read"
            f" its files; got the client address {address}"
        )
    with contextlib.ExitStack() as stack:
        if address is None:
            stack.enter_context(_started(folder, num_cpus or processors()))
        else:
            stack.enter_context(_joined(address))
        executor = RayExecutor(folder=folder)
        stack.callback(executor.stop)
        yield executor


@contextmanager
def _started(folder: Path, num_cpus: int) -> Iterator[None]:
    if "ray" in sys.modules and _is_exposed(sys.modules["ray"]):
        raise UnavailableError(
            "executor ray: Ray was imported before it was told to keep to loopback"
        )
    # Names of sockets are short, so this cannot lie in the workspace.
    with own_folder(user_scratch(), prefix="ray-") as temporary:
        variables = {
            **_QUIET,
            **_LOCAL,
            "RAY_AUTH_TOKEN": _TOKEN,
            NODE_FOLDER: str(folder.parent / ".ray"),
        }
        with (
            _environment(variables),
            _connected(
                num_cpus=num_cpus,
                num_gpus=0,
                object_store_memory=_STORE_BYTES,
                include_dashboard=False,
                _node_ip_address="127.0.0.1",
                _temp_dir=str(temporary),
            ),
        ):
            yield


def _is_exposed(ray: Any) -> bool:  # noqa: ANN401 - the module
    """Tell whether an imported Ray would listen on other addresses than loopback."""
    return bool(ray._private.ray_constants.ENABLE_RAY_CLUSTER)


@contextmanager
def _joined(address: str) -> Iterator[None]:
    with _environment(_QUIET), _connected(address=address):
        yield


@contextmanager
def _connected(**options: Any) -> Iterator[None]:  # noqa: ANN401 - Ray's own
    import ray

    if ray.is_initialized():
        raise UnavailableError(
            "executor ray: this process has joined a cluster already"
        )
    try:
        ray.init(log_to_driver=False, logging_level="ERROR", **options)
    except (
        ray.exceptions.RayError,
        ConnectionError,
        RuntimeError,
        ValueError,
    ) as error:
        raise UnavailableError(f"executor ray: no cluster: {error}") from None
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _refuse_missing() -> None:
    if importlib.util.find_spec("ray") is None:
        raise InvalidInputError(
            "executor ray: Ray is not installed:"
            " in slmops' source folder, pip install '.[ray]'"
        )


def _largest_node() -> int:
    import ray

    sizes = [
        int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]
    ]
    return max(1, min(max(sizes, default=1), processors()))


def _error(code: str) -> type[SlmopsError]:
    kinds: dict[str, type[SlmopsError]] = {kind.code: kind for kind in ERROR_CLASSES}
    return kinds.get(code, UnavailableError)
