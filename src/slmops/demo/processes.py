"""Real processes of the demo: commands run to their end, servers kept and stopped."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import httpx

from slmops.domain.errors import UnavailableError
from slmops.registry.workspace import Workspace
from slmops.wire import codec

_OK = 200


def slmops_command(*arguments: str) -> list[str]:
    """Return the argument list that runs this installation's `slmops`."""
    return [sys.executable, "-m", "slmops", *arguments]


@dataclass(slots=True)
class Processes:
    """Everything the demo started; `stop_all` ends it in reverse order."""

    folder: Path
    """Where commands run."""
    workspace: Workspace
    """Of the control plane and the workshop."""
    logs: Path
    """One file a process."""
    out: TextIO
    """Where commands that are shown print."""
    variables: dict[str, str] = field(default_factory=dict)
    """Environment of everything started from here on, beside the caller's own."""
    _running: list[tuple[str, subprocess.Popen[bytes]]] = field(default_factory=list)

    def show(self, *arguments: str) -> None:
        """Run ``slmops …`` to its end; what it prints goes where the story goes.

        Raises:
            UnavailableError: it failed, and has said why.
        """
        self.out.flush()
        result = subprocess.run(
            slmops_command(*arguments),
            cwd=self.folder,
            env=self._environment(),
            stdout=self.out,
            check=False,
        )
        if result.returncode != 0:
            raise UnavailableError(
                f"`{shown_command(arguments)}` ended with {result.returncode}"
            )

    def run_json(self, *arguments: str) -> Any:  # noqa: ANN401 - a tree
        """Run ``slmops … --json`` to its end, unseen, and return what it printed.

        Raises:
            UnavailableError: it failed; the message carries its own words.
        """
        result = subprocess.run(
            slmops_command(*arguments, "--json"),
            cwd=self.folder,
            env=self._environment(),
            capture_output=True,
            check=False,
        )
        if result.returncode != 0:
            last = result.stderr.decode(errors="replace").strip()[-2000:]
            raise UnavailableError(
                f"`{shown_command(arguments)}` ended with {result.returncode}: {last}"
            )
        return codec.parse_json(result.stdout, where=f"slmops {arguments[0]}")

    def start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a long-running `slmops` command; its output goes to a log of its own."""
        self.logs.mkdir(parents=True, exist_ok=True)
        with (self.logs / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                slmops_command(*arguments),
                cwd=self.folder,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._running.append((name, process))
        return process

    def died(self) -> list[str]:
        """Return the names of processes that ended though nobody stopped them."""
        return [name for name, process in self._running if process.poll() is not None]

    def process_ids(self) -> list[int]:
        """Return the ids of everything that was started and not yet stopped."""
        return [process.pid for _, process in self._running]

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
        own = {"SLMOPS_WORKSPACE": str(self.workspace.root)}
        return {**os.environ, **own, **self.variables}


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
    """Return a command as a person would type it.

    >>> shown_command(["release", "create", "--reason", "a drill"])
    "slmops release create --reason 'a drill'"
    """
    return "slmops " + shlex.join(arguments)
