"""The child's side of a worker: take settings, apply limits, serve, say when ready.

Started as ``python -m slmops.runtimes.worker``. Standard input carries one line of JSON
and then stays open for as long as the parent lives: when it closes, the kernel ends
this process. Only the standard library is imported here, because every loaded model
pays for it.
"""

import contextlib
import fcntl
import json
import os
import resource
import select
import signal
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmops.domain.errors import SlmopsError
from slmops.runtimes.base import WorkerSettings, load_runtime

STACKS_MIB = 96
"""Address space of thread stacks: reserved, counted by the kernel, hardly touched."""

_ready_fd: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ChildOrder:
    """What the parent asks its new child to do."""

    runtime: str
    """Name of the runtime."""
    artefact: str
    """Path of the artefact."""
    settings: WorkerSettings
    """How to load and serve it."""
    ready_fd: int
    """Pipe to say ready, or why not, on; standard output belongs to the engine."""


def announce_ready(port: int) -> None:
    """Tell the parent that requests on ``127.0.0.1:port`` are answered now."""
    _send({"port": port})


def main() -> None:
    """Run the worker child; never returns."""
    order = _read_order()
    _end_with_parent()
    if order.settings.memory_limit_mib is not None:
        limit_private_memory(order.settings.memory_limit_mib)
    try:
        runtime = load_runtime(order.runtime)
        runtime.serve(Path(order.artefact), order.settings)
    except SlmopsError as error:
        _send({"error": error.code, "message": str(error)})
        _leave(error.exit_code)
    except MemoryError:
        limit = order.settings.memory_limit_mib
        _send({"error": "over_budget", "message": f"needs more than {limit} MiB"})
        _leave(6)
    _leave(0)


def limit_private_memory(limit_mib: float) -> None:
    """Make allocations beyond `limit_mib` fail in this process.

    RLIMIT_DATA counts what is private and writable: KV cache, scratch, heap. Weights are
    mapped shared and read-only, so it leaves them out; RLIMIT_AS would count them.
    """
    limit = int((limit_mib + STACKS_MIB) * 2**20)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _read_order() -> ChildOrder:
    global _ready_fd  # one per process, like standard output
    # Byte by byte through os.read: nothing may stay in a buffer of sys.stdin.
    raw = bytearray()
    while not raw.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            os._exit(1)
        raw += byte
    tree = json.loads(raw)
    tree["settings"] = WorkerSettings(**tree["settings"])
    order = ChildOrder(**tree)
    _ready_fd = order.ready_fd
    os.set_inheritable(order.ready_fd, False)
    return order


def _end_with_parent() -> None:
    """End this process when the parent's end of standard input closes.

    The kernel does it where it can signal a pipe (Linux): that works while an engine
    holds the interpreter's lock, also in a hang. PR_SET_PDEATHSIG would not do: it
    fires when the *thread* that started the child ends. The watching thread is for
    other systems.
    """
    with contextlib.suppress(OSError, AttributeError):
        signal.signal(signal.SIGIO, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGIO})
        fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(0, fcntl.F_SETFL, fcntl.fcntl(0, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([0], [], [], 0)[0]:
        os._exit(1)  # closed before the signal was armed
    # The watching thread must never be the one that takes SIGTERM: runtimes wait for it.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_watch_parent, daemon=True, name="parent").start()
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _watch_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)


def _send(message: dict[str, Any]) -> None:
    if _ready_fd is None:
        return
    with contextlib.suppress(BrokenPipeError):
        os.write(_ready_fd, json.dumps(message).encode() + b"\n")


def _leave(code: int) -> None:
    """Exit without destructors: an engine's own threads may still run."""
    with contextlib.suppress(OSError):
        sys.stderr.flush()
        sys.stdout.flush()
    os._exit(code)
