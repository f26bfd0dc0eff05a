"""Real processes of the demo: commands run to their end, servers kept and stopped."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from slmops.domain.errors import UnavailableError
from slmops.wire import codec

_OK = 200


def slmops_command(*arguments: str) -> list[str]:
    """Return the argument list that runs this installation's `slmops`."""
    return [sys.executable, "-m", "slmops", *arguments]


@dataclass(slots=True)
class Processes:
    """Everything the demo started; `stop_all` ends it in reverse order."""

    workspace: Path
    logs: Path
    _running: list[tuple[str, subprocess.Popen[bytes]]] = field(default_factory=list)

    def run_json(self, *arguments: str) -> Any:  # noqa: ANN401 - a tree
        """Run ``slmops … --json`` to its end and return the document it printed.

        Raises:
            UnavailableError: it failed; the message carries its own words.
        """
        result = subprocess.run(
            slmops_command(*arguments, "--json"),
            env=self._environment(),
            capture_output=True,
            check=False,
        )
        if result.returncode != 0:
            last = result.stderr.decode(errors="replace").strip()[-2000:]
            shown = " ".join(arguments)
            raise UnavailableError(
                f"`slmops {shown}` ended with {result.returncode}: {last}"
            )
        return codec.parse_json(result.stdout, where=f"slmops {arguments[0]}")

    def start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a long-running `slmops` command; its output goes to a log of its own."""
        self.logs.mkdir(parents=True, exist_ok=True)
        with (self.logs / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                slmops_command(*arguments),
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._running.append((name, process))
        return process

    def log_tail(self, name: str) -> str:
        """Return the end of a process's log."""
        path = self.logs / f"{name}.log"
        return path.read_text(errors="replace")[-1500:] if path.exists() else ""

    def dead(self) -> list[str]:
        """Return the names of processes that ended though nobody stopped them."""
        return [name for name, process in self._running if process.poll() is not None]

    def stop_all(self, *, timeout_s: float = 10.0) -> None:
        """End everything, newest first; kill what does not end in time."""
        for _, process in reversed(self._running):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + timeout_s
        for _, process in reversed(self._running):
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._running.clear()

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "SLMOPS_WORKSPACE": str(self.workspace)}


def wait_for(what: str, check: Callable[[], bool], *, timeout_s: float) -> None:
    """Poll until `check` is true.

    Raises:
        UnavailableError: not within `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    while not check():
        if time.monotonic() > deadline:
            raise UnavailableError(f"{what} did not happen within {timeout_s:g} s")
        time.sleep(0.2)


def answers(url: str) -> bool:
    """Tell whether a GET of `url` answers 200."""
    try:
        return httpx.get(url, timeout=5).status_code == _OK
    except httpx.HTTPError:
        return False


def shown_command(arguments: Sequence[str]) -> str:
    """Return a command as a person would type it."""
    return "slmops " + " ".join(arguments)
