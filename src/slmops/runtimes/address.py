"""Where a worker is reached, and the key it asks for: one place for the header.

Loopback is open to every local process, and to web pages by DNS rebinding. A worker
therefore answers only to the key that its parent made for it.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import httpx

TIMEOUT_S = 120.0
"""Longest wait for one answer of a worker."""
_KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class Address:
    """A runtime's base address and key."""

    url: str
    """``http://127.0.0.1:43210``."""
    api_key: str | None = field(default=None, repr=False)
    """What it wants to be shown; None for a server that is not ours."""

    @property
    def headers(self) -> Mapping[str, str]:
        """Return what every request must carry."""
        if self.api_key is None:
            return {}
        return {"Authorization": f"Bearer {self.api_key}"}


def new_api_key() -> str:
    """Return a key nobody can guess: 256 bits."""
    # What `secrets` would ask, too; that module brings OpenSSL, 3 MiB in every child.
    return os.urandom(_KEY_BYTES).hex()


def open_client(address: Address, *, timeout_s: float = TIMEOUT_S) -> "httpx.Client":
    """Return a client that shows the key and never uses a connection twice.

    llama-server closes a connection after a streamed answer without saying so.
    """
    # Not above: every model's child process imports this module for the key, and the
    # client would cost each of them 12 MiB that it never uses.
    import ssl

    import httpx

    # Reading all certificate authorities takes 20 ms and more; plain HTTP needs none,
    # and a context without any would refuse every server all the same.
    plain = address.url.startswith("http://")
    return httpx.Client(
        base_url=address.url,
        headers=dict(address.headers),
        timeout=timeout_s,
        trust_env=False,
        verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if plain else True,
        limits=httpx.Limits(max_keepalive_connections=0),
    )
