"""Credentials: operator token, one-time tokens, session tokens, rate limits.

Tokens are 256 random bits. Only their SHA-256 is stored: such tokens cannot be guessed,
so a slow password hash would add nothing.
"""

import contextlib
import hashlib
import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from slmops.domain.errors import UnavailableError, UntrustedError
from slmops.registry.blobs import write_atomically

OPERATOR_TOKEN_FILE = "operator-token"  # noqa: S105 - a file name
_REMEMBERED = 200_000
_LEAST_TOKEN = 16


def new_token(kind: str) -> str:
    """Return a fresh random token; `kind` shows in front so that people know it.

    >>> new_token("enrol").startswith("enrol_")
    True
    """
    return f"{kind}_{secrets.token_urlsafe(32)}"


def hash_token(token: str) -> str:
    """Return what is stored in place of a token."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def load_operator_token(folder: Path) -> str:
    """Return the operator's token, made at first use, in a file only its owner reads.

    Raises:
        UntrustedError: the file holds no token: an empty one would let everybody in.
    """
    path = folder / OPERATOR_TOKEN_FILE
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not path.exists():
        content = (new_token("operator") + "\n").encode("ascii")
        with contextlib.suppress(FileExistsError):  # of two starting at once, one wins
            write_atomically(path, content, mode=0o600, replace=False)
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UntrustedError(f"{path} cannot be read: {error}") from None
    if len(token) < _LEAST_TOKEN:
        raise UntrustedError(
            f"{path} must hold a token of at least {_LEAST_TOKEN} characters,"
            f" got {len(token)}; remove it to get a new one"
        )
    return token


def require_newer(counter: int, *, than: int) -> None:
    """Refuse a session request that was made before the device's newest session.

    Raises:
        UntrustedError: `counter` is not greater: a replay.
    """
    if counter <= than:
        raise UntrustedError(
            f"session counter must be > {than}, got {counter}: a replay"
        )


OWNER = "operator"
"""Name of whoever holds the token in the workspace: adds and removes the others."""


class OperatorDoor:
    """Knows the owner's token."""

    def __init__(self, token: str) -> None:
        self._hash = hash_token(token)

    def is_owner(self, token: str) -> bool:
        """Check a token in constant time."""
        return hmac.compare_digest(hash_token(token), self._hash)


def refused_operator() -> UntrustedError:
    """Return what a caller without a good operator token is told."""
    return UntrustedError(
        "operator token is missing or wrong: send 'Authorization: Bearer …' with the"
        f" content of control/{OPERATOR_TOKEN_FILE}, or your own token"
    )


class KnownSessions:
    """Sessions of the database that were asked for lately; every step is O(1)."""

    def __init__(self, *, most: int = 100_000) -> None:
        self._most = most
        self._sessions: OrderedDict[str, tuple[str, float]] = OrderedDict()
        self._tokens: dict[str, str] = {}

    def find(self, token_hash: str) -> tuple[str, float] | None:
        """Return the device and expiry of a session, or None."""
        return self._sessions.get(token_hash)

    def keep(self, token_hash: str, session: tuple[str, float]) -> None:
        """Remember a session; the device's older one is replaced, as in the database."""
        device = session[0]
        if self._tokens.get(device) != token_hash:
            self.forget(device)
        self._sessions[token_hash] = session
        self._tokens[device] = token_hash
        if len(self._sessions) > self._most:
            _, (oldest, _) = self._sessions.popitem(last=False)
            self._tokens.pop(oldest, None)

    def forget(self, device: str) -> None:
        """Drop the session of a device."""
        token_hash = self._tokens.pop(device, None)
        if token_hash is not None:
            self._sessions.pop(token_hash, None)


class RateLimit:
    """A token bucket per device, never per address: a site sits behind one NAT."""

    def __init__(
        self,
        *,
        burst: int,
        rate_per_s: float,
        what: str = "requests",
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._burst = float(burst)
        self._rate = rate_per_s
        self._what = what
        self._monotonic = monotonic
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, device: str) -> None:
        """Count one.

        Raises:
            UnavailableError: the device asks too often; it should wait and try again.
        """
        self.require(device, least=1.0)
        self.spend(device, 1.0)

    def require(self, device: str, *, least: float = 0.0) -> None:
        """Check that a device has something left.

        Raises:
            UnavailableError: it has not; it should wait and try again.
        """
        left, _ = self._left(device)
        if left < least:
            raise UnavailableError(
                f"device {device} may make {self._rate:g} {self._what} a second:"
                " slow down"
            )

    def spend(self, device: str, amount: float) -> None:
        """Count what was used; it may be more than what was left, and is owed then."""
        left, now = self._left(device)
        self._buckets.pop(device, None)
        self._buckets[device] = (left - amount, now)
        if len(self._buckets) > _REMEMBERED:
            self._buckets.popitem(last=False)

    def _left(self, device: str) -> tuple[float, float]:
        now = self._monotonic()
        left, at = self._buckets.get(device, (self._burst, now))
        return min(self._burst, left + (now - at) * self._rate), now
