"""A runtime without a model: repeats the prompt, over the same HTTP dialect.

For tests and dry runs of everything around a model. Its artefact is a small JSON file,
`EchoModel`, which can also describe a bad model: other log-probabilities, slow, crashing.
Only the standard library: a fleet of these fits on a laptop.
"""

import signal
import threading
import time
from pathlib import Path

from slmops.domain.errors import UnavailableError
from slmops.runtimes.base import Scorer, WorkerSettings
from slmops.runtimes.child import announce_ready
from slmops.runtimes.echo_http import EchoServer
from slmops.runtimes.echo_model import VERSION, abort, load_echo


class EchoRuntime:
    """Serves `EchoModel` files."""

    name = "echo"
    formats = ("gguf", "echo")

    def version(self) -> str:
        """Return the format's version; it is always installed."""
        return f"{VERSION}"

    def serve(self, artefact: Path, settings: WorkerSettings) -> None:
        """Serve until SIGTERM; see `slmops.runtimes.base.Runtime.serve`."""
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        model = load_echo(artefact)
        held = bytearray(model.hold_mib << 20)
        time.sleep(model.start_delay_ms / 1000)
        if model.crash_at_start:
            abort()
        server = EchoServer(model, settings, artefact.name)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        announce_ready(server.server_address[1])
        signal.sigwait({signal.SIGTERM})
        del held

    def open_scorer(self, artefact: Path, settings: WorkerSettings) -> Scorer:
        """Echo has no logits.

        Raises:
            UnavailableError: always.
        """
        raise UnavailableError(
            f"{artefact.name}: runtime echo has no logits to score with"
            f" (context {settings.context_tokens})"
        )
