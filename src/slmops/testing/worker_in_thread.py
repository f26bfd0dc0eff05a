"""The echo runtime in a thread of this process: for tests that start thousands.

The same server answers the same HTTP; what is left out is the process, which costs a
third of a second. It cannot crash or be killed, so nothing here replaces the tests with
real children.
"""

import threading
from pathlib import Path

from slmops.domain.errors import NotFoundError
from slmops.runtimes.base import WorkerSettings
from slmops.runtimes.echo_http import EchoServer
from slmops.runtimes.echo_model import load_echo
from slmops.runtimes.worker import ProcessMemory, Worker

_POLL_S = 0.005
_MEMORY = ProcessMemory(rss_mib=20, peak_rss_mib=20, anon_mib=10, file_mib=10)


class WorkerInThread(Worker):
    """Serves from this process; `pid` is none."""

    def __init__(self, server: EchoServer, artefact: Path) -> None:
        self._server = server
        self._ended: str | None = None
        self.runtime_name = "echo"
        self.artefact = artefact
        self.port = server.server_address[1]
        self.api_key = None
        self.load_ms = 0.0
        self._thread = threading.Thread(
            target=server.serve_forever, args=(_POLL_S,), daemon=True
        )
        self._thread.start()

    @property
    def pid(self) -> int:
        """Return no process's number."""
        return 0

    def alive(self) -> bool:
        """Tell whether it was not stopped."""
        return self._ended is None

    def exit_reason(self) -> str | None:
        """Say that it was stopped."""
        return self._ended

    def log_tail(self) -> str:
        """Return nothing: it logs nothing."""
        return ""

    def await_end(self, timeout_s: float = 5.0) -> bool:
        """Tell that it did not crash."""
        del timeout_s
        return False

    def memory(self) -> ProcessMemory:
        """Return what an echo child takes."""
        return _MEMORY

    def reset_peak(self) -> bool:
        """Say that it cannot."""
        return False

    def stop(self, timeout_s: float = 5.0) -> None:
        """End it; safe to repeat."""
        del timeout_s
        if self._ended is None:
            self._ended = "signal SIGTERM"
            self._server.shutdown()
            self._server.server_close()


def start_in_thread(
    runtime_name: str, artefact: Path, settings: WorkerSettings
) -> Worker:
    """Serve an echo artefact from a thread; as `slmops.runtimes.worker.start_worker`."""
    if runtime_name != "echo":
        raise NotFoundError(f"runtime {runtime_name} does not run in a thread")
    server = EchoServer(load_echo(artefact), settings, artefact.name)
    return WorkerInThread(server, artefact)
