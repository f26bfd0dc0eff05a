"""The device's way to its control plane: enrol, open a session, sync.

The network is hostile and often absent: answers are bounded in size and must be JSON
(a captive portal answers anything with a page), redirects are not followed, and
whatever counts is signed inside.
"""

import contextlib
import re
import ssl
import threading
import time
from dataclasses import dataclass
from typing import TypeVar

import httpx

from slmops.agent.clock import Clock
from slmops.agent.journal import Journal
from slmops.domain.errors import (
    ConflictError,
    InvalidInputError,
    NotFoundError,
    SlmopsError,
    UnavailableError,
    UntrustedError,
)
from slmops.domain.sync import (
    EnrolAnswer,
    EnrolRequest,
    SessionAnswer,
    SessionRequest,
    SyncAnswer,
    SyncRequest,
)
from slmops.registry.keys import SigningKey
from slmops.wire import codec

NEXT_POLL = "Slmops-Next-Poll"
MAX_ANSWER_BYTES = 1024 * 1024
_NOT_MODIFIED = 304
_TIMEOUT = httpx.Timeout(20.0, connect=10.0)
_EARLY = 0.9
"""A session is renewed after this share of its life."""
_MAX_POLL_S = 86_400.0
_MIN_POLL_S = 0.01
"""A server that says 0 must not make the device spin."""
_EXCHANGE_S = 60.0
"""Longest time for one answer's body; the client's time-outs bound its silences only."""
_TOKEN = re.compile(r"[\x21-\x7e]{1,4096}")
_PUBLIC_KEY = re.compile(r"[0-9a-f]{64}")

Document = TypeVar("Document")


@dataclass(frozen=True, kw_only=True, slots=True)
class SyncOutcome:
    """What a sync brought."""

    next_poll_s: float | None
    """When the server wants to hear of us again; None when it did not say."""
    envelope: str | None
    """New assignment, still sealed; None for nothing new."""


def http_client(server: str) -> httpx.Client:
    """Return a client for one control plane."""
    return httpx.Client(
        base_url=server,
        timeout=_TIMEOUT,
        follow_redirects=False,
        verify=_tls(server),
        # Proxies and netrc of whoever started us are not the device's business.
        trust_env=False,
        headers={"Accept": "application/json", "Accept-Encoding": "identity"},
    )


def _tls(server: str) -> ssl.SSLContext:
    """Trust the system's certificates: a fleet's own authority is installed there.

    Without TLS, a context that trusts nobody spares a device the megabytes of httpx's
    own list.
    """
    if server.startswith("https://"):
        return ssl.create_default_context()
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def enrol(client: httpx.Client, request: EnrolRequest) -> EnrolAnswer:
    """Enrol this device once.

    Raises:
        UntrustedError: the token is unknown, used or expired.
        ConflictError: a device of that name exists.
        InvalidInputError: the server finds fault with name or labels.
        UnavailableError: the server is not there, or something else answered.
    """
    answer = _post(client, "/v1/enrol", request, EnrolAnswer)
    if not _PUBLIC_KEY.fullmatch(answer.director_key):
        raise UnavailableError(
            f"{client.base_url}: the director's key must be 64 hex digits, got"
            f" {answer.director_key[:80]!r}"
        )
    return answer


class Link:
    """Keeps a session and syncs; used by one thread at a time."""

    def __init__(
        self,
        client: httpx.Client,
        *,
        device: str,
        key: SigningKey,
        journal: Journal,
        clock: Clock,
    ) -> None:
        self.client = client
        self._device = device
        self._key = key
        self._journal = journal
        self._clock = clock
        self._token: str | None = None
        self._renew_at = 0.0
        self._lock = threading.Lock()

    def sync(self, request: SyncRequest) -> SyncOutcome:
        """Say how we stand; hear what is wanted.

        Raises:
            UnavailableError: no way there now, or not the control plane that answers;
                retry later.
            UntrustedError: the control plane does not know this device.
            InvalidInputError: it refuses this very `request`.
        """
        with self._lock:
            fresh = self._token is None or self._clock.monotonic() >= self._renew_at
            if fresh:
                self._open_session()
            try:
                return self._exchange(request)
            except UntrustedError:
                # It may have forgotten the session: a new one settles it.
                self._token = None
                if fresh:
                    raise
                self._open_session()
                return self._exchange(request)

    def _open_session(self) -> None:
        counter = self._journal.next_session_counter(now=self._clock.now())
        message = f"slmops-session:{self._device}:{counter}".encode()
        request = SessionRequest(
            device=self._device, counter=counter, signature=self._key.sign(message)
        )
        try:
            answer = _post(self.client, "/v1/session", request, SessionAnswer)
        except InvalidInputError as error:
            # Says nothing about the reports that wait to be sent.
            raise UnavailableError(str(error)) from None
        if not _TOKEN.fullmatch(answer.token):
            raise UnavailableError("/v1/session: the token is no text for a header")
        self._token = answer.token
        self._renew_at = self._clock.monotonic() + answer.expires_in_s * _EARLY

    def _exchange(self, request: SyncRequest) -> SyncOutcome:
        answer = _send(
            self.client,
            "/v1/sync",
            request,
            headers={"Authorization": f"Bearer {self._token}"},
        )
        poll = answer.next_poll_s
        if answer.status == _NOT_MODIFIED:
            return SyncOutcome(next_poll_s=poll, envelope=None)
        told = _read(self.client, answer, "/v1/sync", SyncAnswer)
        return SyncOutcome(next_poll_s=poll, envelope=told.assignment)


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    body: bytes
    next_poll_s: float | None


def _post(
    client: httpx.Client, path: str, document: object, kind: type[Document]
) -> Document:
    answer = _send(client, path, document, headers={})
    return _read(client, answer, path, kind)


def _read(
    client: httpx.Client, answer: _Answer, path: str, kind: type[Document]
) -> Document:
    """Decode an answer; one that is no such document is not the control plane's."""
    try:
        return codec.decode_json(answer.body, kind, where=path, lenient=True)
    except InvalidInputError as error:
        raise UnavailableError(f"{client.base_url}: {error}") from None


def _send(
    client: httpx.Client, path: str, document: object, *, headers: dict[str, str]
) -> _Answer:
    try:
        with client.stream(
            "POST",
            path,
            content=codec.encode_json(document),
            headers={"Content-Type": "application/json", **headers},
        ) as response:
            body = _bounded(response, path)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise UnavailableError(
            f"{client.base_url}: {type(error).__name__}: {error}"
        ) from None
    if response.status_code != _NOT_MODIFIED:
        require_json(response, path)
        _raise_for_status(response.status_code, body, path)
    return _Answer(response.status_code, body, _poll(response))


def _bounded(response: httpx.Response, path: str) -> bytes:
    parts, size, begun = [], 0, time.monotonic()
    for part in response.iter_raw():
        size += len(part)
        if time.monotonic() - begun > _EXCHANGE_S:
            raise UnavailableError(f"{path}: no whole answer in {_EXCHANGE_S:g} s")
        if size > MAX_ANSWER_BYTES:
            raise UnavailableError(
                f"{path}: answer is larger than {MAX_ANSWER_BYTES} bytes"
            )
        parts.append(part)
    return b"".join(parts)


def require_json(response: httpx.Response, path: str) -> None:
    """Refuse what a captive portal or a wrong proxy answers.

    Raises:
        UnavailableError: not JSON.
    """
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise UnavailableError(
            f"{path}: status {response.status_code} with {kind[:60] or 'no type'}, not"
            " JSON: something stands between us and the control plane"
        )


_BY_STATUS: dict[int, type[SlmopsError]] = {
    401: UntrustedError,
    403: UntrustedError,
    404: NotFoundError,
    409: ConflictError,
    400: InvalidInputError,
    413: InvalidInputError,
    422: InvalidInputError,
}


def _raise_for_status(status: int, body: bytes, path: str) -> None:
    if 200 <= status < 300:  # noqa: PLR2004 - RFC 9110
        return
    said = ""
    with contextlib.suppress(InvalidInputError, LookupError, TypeError):
        said = str(codec.parse_json(body, where=path)["error"]["message"])[:500]
    kind = _BY_STATUS.get(status, UnavailableError)
    raise kind(f"{path}: {said or f'status {status}'}")


def _poll(response: httpx.Response) -> float | None:
    with contextlib.suppress(ValueError):
        seconds = float(response.headers.get(NEXT_POLL, ""))
        if 0 <= seconds <= _MAX_POLL_S:
            return max(seconds, _MIN_POLL_S)
    return None
