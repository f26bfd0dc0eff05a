"""Start the children that run jobs, follow them, and end them with their build."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from slmops.domain.errors import (
    ERROR_CLASSES,
    InvalidInputError,
    SlmopsError,
    UnavailableError,
)
from slmops.workshop.jobs.child import ChildOrder
from slmops.workshop.jobs.job import Report

_SHOWN_CHARACTERS = 400
_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "GGML_NO_BACKTRACE": "1"}
_CRASHES = {signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV}


@dataclass(slots=True)
class JobProcesses:
    """All job children of one build; a context that leaves none behind."""

    _running: set["subprocess.Popen[bytes]"] = field(default_factory=set)
    _stopped: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> "JobProcesses":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Kill what runs; nothing new starts."""
        with self._lock:
            self._stopped = True
            running = list(self._running)
        for process in running:
            process.kill()
            process.wait()

    def run(self, order: ChildOrder, report: Report) -> dict[str, Path]:
        """Run one job to its end and return its outputs' files by role.

        Raises:
            InvalidInputError: the job refused its input, or it crashed the child.
            UnavailableError: the child was killed, or the runtime is not installed.
        """
        read_fd, write_fd = os.pipe()
        with open(read_fd, "rb") as reports, tempfile.TemporaryFile() as log:  # noqa: PTH123
            try:
                process = self._start(write_fd, log)
            finally:
                os.close(write_fd)
            try:
                _send_order(process, order.line(write_fd))
                last = _follow(reports, report)
                code = process.wait()
            finally:
                self._forget(process)
            if "outputs" not in last or code != 0:
                raise _failure(order, last, code, _tail(log))
        return {role: Path(path) for role, path in last["outputs"].items()}

    def _start(self, report_fd: int, log: IO[bytes]) -> "subprocess.Popen[bytes]":
        with self._lock:
            if self._stopped:
                raise UnavailableError("the build was stopped")
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "slmops.workshop.jobs.child"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=(report_fd,),
                # Ctrl-C in a terminal is for the parent, which ends its children.
                start_new_session=True,
                env={**os.environ, **_ENVIRONMENT},
            )
            self._running.add(process)
        return process

    def _forget(self, process: "subprocess.Popen[bytes]") -> None:
        if process.poll() is None:
            process.kill()
            process.wait()
        if process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        with self._lock:
            self._running.discard(process)


def _send_order(process: "subprocess.Popen[bytes]", line: bytes) -> None:
    # A child that was killed meanwhile takes nothing; how it ended tells why.
    with contextlib.suppress(BrokenPipeError):
        if process.stdin is not None:
            process.stdin.write(line)
            process.stdin.flush()


def _follow(reports: IO[bytes], report: Report) -> dict[str, Any]:
    last: dict[str, Any] = {}
    for line in reports:
        last = json.loads(line)
        if "total" in last:
            report(float(last["done"]), float(last["total"]))
    return last


def _failure(
    order: ChildOrder, last: dict[str, Any], code: int, words: str
) -> SlmopsError:
    kinds: dict[str, type[SlmopsError]] = {kind.code: kind for kind in ERROR_CLASSES}
    if "error" in last:
        return kinds.get(str(last["error"]), UnavailableError)(str(last["message"]))
    crashed = -code in _CRASHES
    ended = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    kind = InvalidInputError if crashed else UnavailableError
    files = ", ".join(order.inputs.values())
    said = f"; last words: {words}" if words else ""
    return kind(f"{order.kind} of {files}: its process ended with {ended}{said}")


def _tail(log: IO[bytes]) -> str:
    size = log.seek(0, os.SEEK_END)
    log.seek(max(0, size - _SHOWN_CHARACTERS))
    return " | ".join(log.read().decode(errors="replace").strip().splitlines())
