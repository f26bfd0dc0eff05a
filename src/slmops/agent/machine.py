"""What one running agent holds of its machine: the folder's lock, its port, its address."""

import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from slmops.agent.settings import AgentSettings
from slmops.domain.errors import ConflictError, UnavailableError
from slmops.registry.blobs import write_atomically
from slmops.wire import codec

JOURNAL, LOCK, ENDPOINT = "journal.db", "lock", "endpoint.json"
KEY, ROOT = "device.key", "root.json"
_REACHED_AT = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - is replaced
_log = logging.getLogger("slmops.agent")


@dataclass(frozen=True, kw_only=True, slots=True)
class EndpointPlace:
    """``endpoint.json``: where applications on this device find the model."""

    url: str
    """Base address; the OpenAI API is at ``<url>/v1``."""
    pid: int
    """Process id of the agent."""


def write_place(state: Path, listener: socket.socket) -> None:
    """Say in the state folder where applications on this device find the endpoint."""
    host, port = listener.getsockname()[:2]
    host = _REACHED_AT.get(host, host)
    shown = f"[{host}]" if ":" in host else host
    place = EndpointPlace(url=f"http://{shown}:{port}", pid=os.getpid())
    try:
        write_atomically(state / ENDPOINT, codec.encode_json(place))
    except OSError as error:
        # A full disk: those who know the port are served all the same.
        _log.error("%s cannot be written: %s", ENDPOINT, error.strerror)


@contextmanager
def only_agent(state: Path) -> Iterator[None]:
    """Hold the folder's lock: two agents would start two models and one journal."""
    descriptor = _open_lock(state)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConflictError(f"another agent runs on {state}") from None
        yield
    finally:
        os.close(descriptor)


def _open_lock(state: Path) -> int:
    """Open what is locked: on a read-only file system the file as it is, or the folder.

    Raises:
        UnavailableError: the folder cannot be read either.
    """
    ways = (
        (state / LOCK, os.O_RDWR | os.O_CREAT),
        (state / LOCK, os.O_RDONLY),
        (state, os.O_RDONLY),
    )
    refusal: OSError | None = None
    for path, flags in ways:
        try:
            return os.open(path, flags | os.O_CLOEXEC, 0o600)
        except OSError as error:
            refusal = refusal or error
    raise UnavailableError(f"{state}: {refusal}")


@contextmanager
def listening(settings: AgentSettings) -> Iterator[socket.socket]:
    """Bind once for the agent's whole life: models change behind the socket."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((settings.host, settings.port))
            listener.listen(256)
        except OSError as error:
            raise UnavailableError(
                f"endpoint {settings.host}:{settings.port}: {error.strerror}"
            ) from None
        yield listener
    finally:
        listener.close()
