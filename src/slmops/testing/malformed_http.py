"""Bytes that no honest HTTP client sends, for servers that must outlive them."""

import socket
from collections.abc import Mapping
from urllib.parse import urlsplit

MALFORMED: Mapping[str, bytes] = {
    "nothing at all": b"",
    "random": bytes(range(256)) * 16,
    "TLS": bytes.fromhex("16030100c8010000c40303") + bytes(200),
    "no method": b"\r\n\r\n\r\n",
    "half a request": b"POST /v1/sync HTTP/1.1\r\nHost: a\r\nContent-Length: 50\r\n\r\n{",
    "header without end": b"GET / HTTP/1.1\r\nX: " + b"a" * 200_000,
    "two lengths": b"POST /v1/sync HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n"
    b"Content-Length: 3\r\n\r\n{}",
    "length and chunks": b"POST /v1/sync HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "negative length": b"POST /v1/sync HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
    "chunk beyond all": b"POST /v1/sync HTTP/1.1\r\nHost: a\r\n"
    b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
    "another protocol": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
}
"""What is wrong → the bytes of a connection."""

_TIMEOUT_S = 5.0


def send_malformed(url: str, case: str) -> int | None:
    """Send the bytes on a connection of their own and close it.

    Returns:
        The status of the answer, None when there was none.
    """
    place = urlsplit(url)
    address = (place.hostname or "127.0.0.1", place.port or 80)
    with socket.create_connection(address, timeout=_TIMEOUT_S) as raw:
        try:
            raw.sendall(MALFORMED[case])
            raw.shutdown(socket.SHUT_WR)
            answer = raw.recv(65_536)
        except OSError:
            return None
    return int(answer.split(b" ")[1]) if answer.startswith(b"HTTP/") else None
