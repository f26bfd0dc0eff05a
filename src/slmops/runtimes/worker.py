"""Run a model in a child process, because malformed models abort and hang processes.

Parent side: `start_worker` and the `Worker` it returns. The child (`slmops.runtimes.child`)
ends with its parent, however that ends. What the engine writes to its standard output is
kept in a small ring for error messages.
"""

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

from slmops.domain.errors import (
    ERROR_CLASSES,
    InvalidInputError,
    NotFoundError,
    OverBudgetError,
    SlmopsError,
    UnavailableError,
)
from slmops.runtimes.address import Address, new_api_key
from slmops.runtimes.base import WorkerSettings
from slmops.runtimes.child import announce_ready

__all__ = ["ProcessMemory", "Worker", "announce_ready", "start_worker"]

LOG_BYTES = 64 * 1024
"""How much of the engine's log is kept."""
_STAMP = re.compile(r"^[\d.]+ [A-Z] ")
_COMPLAINT = re.compile(r"error|fail|assert|what\(\)|exception", re.IGNORECASE)
_SHOWN_CHARACTERS = 400
_OUT_OF_MEMORY = re.compile(
    r"bad_alloc|mem_buffer != NULL|MemoryError|out of memory|(failed|unable) to allocate|alloc\w* failed"
    r"|Cannot allocate memory",
    re.IGNORECASE,
)
_MEMORY_LINES = ("VmHWM", "RssAnon", "RssFile")
"""What some sandboxes and old kernels leave out of ``/proc/PID/status``."""
_CRASHES = {
    signal.SIGABRT,
    signal.SIGBUS,
    signal.SIGFPE,
    signal.SIGILL,
    signal.SIGSEGV,
    signal.SIGTRAP,
}

_ENVIRONMENT = {
    # Busy-waiting OpenMP threads starve each other on small machines.
    "OMP_WAIT_POLICY": "PASSIVE",
    # ggml would start a debugger on its own process before it aborts.
    "GGML_NO_BACKTRACE": "1",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessMemory:
    """Memory of one process as Linux counts it, MiB."""

    rss_mib: float
    """Resident now."""
    peak_rss_mib: float
    """Most that was ever resident, or since `Worker.reset_peak`."""
    anon_mib: float
    """Private part of the resident memory: KV cache, scratch, heap."""
    file_mib: float
    """Part mapped from files: weights and code, shared with others that map them."""


class Worker:
    """A model that serves on loopback from its own process."""

    def __init__(
        self, process: "subprocess.Popen[bytes]", runtime_name: str, artefact: Path
    ) -> None:
        self._process = process
        self.runtime_name = runtime_name
        """What runs it."""
        self.artefact = artefact
        """What it serves."""
        self._log = _Log(process.stdout)
        self._stopping = threading.Lock()
        self.port = 0
        self.api_key: str | None = None
        self.load_ms = 0.0
        """Process start to ready."""

    @property
    def url(self) -> str:
        """Base address: ``http://127.0.0.1:43210``."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def address(self) -> Address:
        """Base address with the key that its requests must carry."""
        return Address(self.url, self.api_key)

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self._process.pid

    def alive(self) -> bool:
        """Return whether the child still runs."""
        return self._process.poll() is None

    def exit_reason(self) -> str | None:
        """Return how the child ended, None while it runs: ``signal SIGABRT``."""
        code = self._process.poll()
        if code is None:
            return None
        if code >= 0:
            return f"exit code {code}"
        with contextlib.suppress(ValueError):
            return f"signal {signal.Signals(-code).name}"
        return f"signal {-code}"

    def log_tail(self) -> str:
        """Return the last 64 KB the engine wrote; engines are set up to log no prompts."""
        return self._log.text()

    def await_end(self, timeout_s: float = 5.0) -> bool:
        """Wait for a child that is about to end; return whether it crashed."""
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        self._log.close()
        return -code in _CRASHES

    def memory(self) -> ProcessMemory:
        """Read the child's memory.

        Raises:
            UnavailableError: it has ended, this system has no ``/proc``, or its kernel
                does not count peaks.
        """
        try:
            text = Path(f"/proc/{self.pid}/status").read_text()
        except OSError:
            raise UnavailableError(
                f"memory of worker {self.pid} cannot be read"
            ) from None
        lines = (line.partition(":") for line in text.splitlines())
        kib = {name: rest.split()[0] for name, _, rest in lines if rest.endswith("kB")}
        if "VmRSS" not in kib:
            raise UnavailableError(f"worker {self.pid} has ended")
        missing = [name for name in _MEMORY_LINES if name not in kib]
        if missing:
            raise UnavailableError(
                f"this system's /proc/PID/status has no {', '.join(missing)}"
            )

        def mib(name: str) -> float:
            return int(kib[name]) / 1024

        return ProcessMemory(
            rss_mib=mib("VmRSS"),
            peak_rss_mib=mib("VmHWM"),
            anon_mib=mib("RssAnon"),
            file_mib=mib("RssFile"),
        )

    def reset_peak(self) -> bool:
        """Let `peak_rss_mib` count from now; False where the system does not allow it."""
        try:
            Path(f"/proc/{self.pid}/clear_refs").write_text("5")
        except OSError:
            return False
        return True

    def stop(self, timeout_s: float = 5.0) -> None:
        """End the child: SIGTERM, and SIGKILL after `timeout_s`; safe to repeat."""
        with self._stopping:
            if self.alive():
                self._process.terminate()
                try:
                    self._process.wait(timeout_s)
                except subprocess.TimeoutExpired:
                    self._process.kill()
            self._process.wait()
            if self._process.stdin is not None:
                with contextlib.suppress(OSError):
                    self._process.stdin.close()
            self._log.close()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def start_worker(runtime_name: str, artefact: Path, settings: WorkerSettings) -> Worker:
    """Start a child that serves `artefact`, and wait until it answers requests.

    Args:
        runtime_name: as blueprints name it.
        artefact: a file the runtime can load; untrusted.
        settings: how to load and serve it; the key is made anew.

    Returns:
        The running worker; stop it, or use it as a context manager.

    Raises:
        NotFoundError: no such file or runtime.
        InvalidInputError: the runtime refused the artefact or crashed on it; says how,
            with the engine's last words.
        OverBudgetError: it needs more memory than `settings.memory_limit_mib`.
        UnavailableError: the engine is not installed, was killed, or was not ready
            after `settings.start_timeout_s`.
    """
    if not artefact.is_file():
        raise NotFoundError(f"artefact {artefact} does not exist or is not a file")
    begin = time.monotonic()
    settings = replace(settings, api_key=new_api_key())
    ready, child_end = os.pipe()
    try:
        process = _spawn(runtime_name, artefact.absolute(), settings, child_end)
    except BaseException:
        os.close(ready)
        raise
    finally:
        os.close(child_end)
    worker = Worker(process, runtime_name, artefact)
    worker.api_key = settings.api_key
    try:
        with open(ready, "rb", buffering=0) as announced:  # noqa: PTH123 - descriptor
            said = _read_line(announced, begin + settings.start_timeout_s)
        worker.port = _port(worker, said, settings)
    except BaseException:
        process.kill()
        worker.stop()
        raise
    worker.load_ms = (time.monotonic() - begin) * 1000
    return worker


def _spawn(
    runtime_name: str, artefact: Path, settings: WorkerSettings, ready_fd: int
) -> "subprocess.Popen[bytes]":
    order = {
        "runtime": runtime_name,
        "artefact": str(artefact),
        "settings": asdict(settings),
        "ready_fd": ready_fd,
    }
    process = subprocess.Popen(
        # -P: nothing in the current folder may pose as a module.
        [sys.executable, "-P", "-m", "slmops.runtimes.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=(ready_fd,),
        # Ctrl-C in a terminal is for the parent, which stops its children in order.
        start_new_session=True,
        env={**os.environ, **_ENVIRONMENT},
    )
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(order).encode() + b"\n")
            process.stdin.flush()
    return process


def _read_line(pipe: IO[bytes], deadline: float) -> dict[str, Any] | None:
    """Return the child's announcement, {} if it ended without one, None at the deadline."""
    raw = b""
    while not raw.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([pipe], [], [], left)[0]:
            return None
        block = pipe.read(4096)
        if not block:
            return {}
        raw += block
    tree: dict[str, Any] = json.loads(raw)
    return tree


def _port(worker: Worker, said: dict[str, Any] | None, settings: WorkerSettings) -> int:
    if said is None:
        raise UnavailableError(
            f"{worker.artefact.name}: the runtime was not ready after"
            f" {settings.start_timeout_s:g} s and was killed"
        )
    if "port" in said:
        return int(said["port"])
    raise _failure(worker, said, settings.memory_limit_mib)


def _failure(
    worker: Worker, said: dict[str, Any], limit_mib: float | None
) -> SlmopsError:
    """Say why a child ended before it was ready."""
    crashed = worker.await_end()
    log = worker.log_tail()
    words = _cause(log)
    ended = f"the runtime ended while loading it ({worker.exit_reason()})"
    message = str(said.get("message") or f"{worker.artefact.name}: {ended}")
    if limit_mib is not None and (
        said.get("error") == "over_budget" or _OUT_OF_MEMORY.search(log)
    ):
        return OverBudgetError(
            f"{worker.artefact.name}: needs more private memory than the limit of"
            f" {limit_mib:g} MiB ({worker.exit_reason()})"
        )
    if words:
        message += f"; it said: {words}"
    kinds: dict[str, type[SlmopsError]] = {kind.code: kind for kind in ERROR_CLASSES}
    default = InvalidInputError if crashed else UnavailableError
    return kinds.get(str(said.get("error")), default)(message)


def _cause(log: str) -> str:
    """Pick the line that says most: the first complaint, else the last line."""
    lines = [_STAMP.sub("", line).strip() for line in log.splitlines() if line.strip()]
    if not lines:
        return ""
    first = next((line for line in lines if _COMPLAINT.search(line)), lines[-1])
    return first[:_SHOWN_CHARACTERS]


class _Log:
    """Keeps the last bytes of a pipe, so that the writer never blocks."""

    def __init__(self, pipe: IO[bytes] | None) -> None:
        self._pipe = pipe
        self._kept = bytearray()
        self._lock = threading.Lock()
        self._thread = threading.Thread(
            target=self._read, daemon=True, name="worker-log"
        )
        self._thread.start()

    def _read(self) -> None:
        if self._pipe is None:
            return
        while block := os.read(self._pipe.fileno(), 8192):
            with self._lock:
                self._kept += block
                del self._kept[:-LOG_BYTES]

    def text(self) -> str:
        with self._lock:
            return self._kept.decode(errors="replace")

    def close(self) -> None:
        """Read what is left once the writer has ended."""
        self._thread.join(2)
        if self._pipe is not None and not self._thread.is_alive():
            self._pipe.close()


if __name__ == "__main__":
    from slmops.runtimes.child import main

    main()
