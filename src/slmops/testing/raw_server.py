"""An HTTP server on a real socket that answers exactly what a test tells it to.

Every request is one connection. A reply writes bytes as it likes: wrong lengths,
half an answer, one byte a second, no end.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

_LONGEST_S = 30.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Received:
    """One request."""

    method: str
    """GET, POST …"""
    path: str
    """With its query."""
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes
    """Whole."""


Reply = Callable[[socket.socket, Received], None]
"""Writes an answer; the connection is closed when it returns."""


@dataclass(slots=True)
class RawServer:
    """Gives one reply after the other; the last one again and again."""

    replies: list[Reply]
    """Changed by tests as they go."""
    received: list[Received] = field(default_factory=list)
    """All requests, in order."""
    _listener: socket.socket = field(default_factory=socket.socket)
    _stopped: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "RawServer":
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(16)
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    @property
    def url(self) -> str:
        """Base address."""
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def _accept(self) -> None:
        while not self._stopped.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(
                target=self._converse, args=(connection,), daemon=True
            ).start()

    def _converse(self, connection: socket.socket) -> None:
        connection.settimeout(_LONGEST_S)
        with connection, contextlib.suppress(OSError):
            request = _read(connection)
            if request is None:
                return
            number = len(self.received)
            self.received.append(request)
            self.replies[min(number, len(self.replies) - 1)](connection, request)


def answer(
    status: int = 200,
    body: bytes = b"",
    *,
    kind: str = "application/json",
    **headers: str,
) -> Reply:
    """Return a well-formed reply; underscores in header names stand for hyphens."""

    def reply(connection: socket.socket, _request: Received) -> None:
        connection.sendall(head(status, kind=kind, length=len(body), **headers) + body)

    return reply


def raw(content: bytes) -> Reply:
    """Return a reply of exactly these bytes."""

    def reply(connection: socket.socket, _request: Received) -> None:
        connection.sendall(content)

    return reply


def drip(begin: bytes, block: bytes, *, pause_s: float) -> Reply:
    """Return a reply that sends `begin` and then a block every `pause_s`, without end."""

    def reply(connection: socket.socket, _request: Received) -> None:
        connection.sendall(begin)
        while True:
            connection.sendall(block)
            time.sleep(pause_s)

    return reply


def silent(connection: socket.socket, _request: Received) -> None:
    """Reply nothing until the other side gives up."""
    connection.recv(1)


def head(
    status: int = 200,
    *,
    kind: str = "application/json",
    length: int | None = None,
    **headers: str,
) -> bytes:
    """Return an answer's head; without `length` the body ends with the connection."""
    lines = [f"HTTP/1.1 {status} x", "Connection: close", f"Content-Type: {kind}"]
    if length is not None:
        lines.append(f"Content-Length: {length}")
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode()


def _read(connection: socket.socket) -> Received | None:
    raw_head = b""
    while b"\r\n\r\n" not in raw_head:
        block = connection.recv(65_536)
        if not block:
            return None
        raw_head += block
    begin, _, body = raw_head.partition(b"\r\n\r\n")
    first, *lines = begin.decode("latin-1").split("\r\n")
    method, path, _ = first.split(" ", 2)
    pairs = (line.partition(":") for line in lines)
    headers = {name.lower(): value.strip() for name, _, value in pairs}
    while len(body) < int(headers.get("content-length", "0")):
        body += connection.recv(65_536)
    return Received(method=method, path=path, headers=headers, body=body)
