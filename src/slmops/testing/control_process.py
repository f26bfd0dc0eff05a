"""The control plane as a real process, killed and started again at will."""

import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from slmops.testing.tether import tethered

_END_TIMEOUT_S = 10.0


def free_port() -> int:
    """Return a TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@dataclass(slots=True)
class ControlProcess:
    """A `slmops serve` process; its port stays the same over restarts."""

    workspace: Path
    """Holds registry, keys and database."""
    poll_s: float = 0.05
    """Mean time between syncs that it asks devices for."""
    port: int = field(default_factory=free_port)
    """Where it listens."""
    process: subprocess.Popen[bytes] | None = None
    """The running one."""

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> Any:  # noqa: ANN401 - a tree
        """Start it and return what it announced once it accepts connections."""
        command = [sys.executable, "-m", "slmops", "serve", "--json"]
        self.process = subprocess.Popen(
            tethered(
                [*command, "--port", str(self.port), "--poll-s", str(self.poll_s)]
            ),
            env={
                **os.environ,
                "SLMOPS_WORKSPACE": str(self.workspace),
                # Devices of tests tell in a minute what others tell in a day.
                "SLMOPS_CONTROL_DEVICE_NEWS_BURST_BYTES": str(10**9),
            },
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        text = ""
        while not text.rstrip().endswith("}"):
            line = self.process.stdout.readline().decode()
            assert line, "the control plane ended before it was ready"
            text += line
        return json.loads(text)

    def end(self, sent: signal.Signals) -> int:
        """Send a signal, wait for the end, return the exit code."""
        assert self.process is not None
        self.process.send_signal(sent)
        code = self.process.wait(_END_TIMEOUT_S)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code

    def kill_if_running(self) -> None:
        """Clean up after a test."""
        if self.process is not None and self.process.poll() is None:
            self.end(signal.SIGKILL)

    def operator(self) -> httpx.Client:
        """Return a client with the operator's token."""
        path = self.workspace / "control" / "operator-token"
        return httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {path.read_text().strip()}"},
            timeout=_END_TIMEOUT_S,
        )
