"""A site's cache: one fetch from the control plane for all devices behind a thin link.

It serves blobs and nothing else. Devices do not trust it: they verify every digest, take
signed metadata from the control plane itself (a cache could only make it stale), and go
there for blobs, too, when this one is gone, slow or wrong. It holds no credential and
no secret, so it needs none from its clients.

A blob is served from a whole file with the right digest. Whoever asks earlier waits a
little, and then hears 503 with ``Retry-After`` (RFC 9110, section 10.2.3) for as long
as the fetch goes on; any other refusal means: ask the control plane.
"""

import asyncio
import fcntl
import logging
import re
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from slmops.agent.cache_store import CacheStore
from slmops.agent.download import Downloads, Wanted
from slmops.agent.link import http_client
from slmops.domain.errors import (
    ConflictError,
    NotFoundError,
    SlmopsError,
    UnavailableError,
    UntrustedError,
)
from slmops.domain.ids import Digest, digest_hex

_BLOB = re.compile(r"[0-9a-f]{64}")
_AT_ONCE = 4
"""Fetches from the control plane at the same time: the link is thin."""
_MOST_FLIGHTS = 64
_TRIES = 5
_RETRY_S = 1.0
_log = logging.getLogger("slmops.cache")


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheSettings:
    """What a site's cache is told."""

    server: str
    """Address of the control plane."""
    folder: Path
    """For the blobs; may be emptied while the cache does not run."""
    most_bytes: int
    """Bound of what lies there."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 8810
    """TCP port; 0 takes a free one."""
    hold_s: float = 5.0
    """Longest wait of a request for a blob that is being fetched."""


class SiteCache:
    """Blobs by digest, from the disk or from the control plane."""

    def __init__(self, client: httpx.Client, store: CacheStore) -> None:
        self.store = store
        self.fetched = 0
        """Blobs that came whole from the control plane."""
        self._client = client
        self._flights: dict[Digest, asyncio.Task[None]] = {}
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="fetch")
        self._stop = threading.Event()

    async def find(self, digest: Digest, *, hold_s: float) -> Path | None:
        """Return a whole, checked file; None while it is still being fetched.

        Raises:
            NotFoundError: the control plane has no such blob.
            UnavailableError: it does not answer, answers wrongly, or there is no room.
        """
        path = await asyncio.to_thread(self.store.used, digest)
        if path is not None:
            return path
        flight = self._flight(digest)
        # Never cancelled with one who waits: others wait, too, or will.
        done, _ = await asyncio.wait({flight}, timeout=hold_s)
        if not done:
            return None
        flight.result()
        path = await asyncio.to_thread(self.store.used, digest)
        if path is None:
            raise UnavailableError("cache: the blob had to leave again")
        return path

    def close(self) -> None:
        """Let running fetches end at their next block; what arrived is kept."""
        self._stop.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _flight(self, digest: Digest) -> "asyncio.Task[None]":
        flight = self._flights.get(digest)
        if flight is None:
            if len(self._flights) >= _MOST_FLIGHTS:
                raise UnavailableError(f"cache: {_MOST_FLIGHTS} fetches wait already")
            flight = asyncio.create_task(self._fly(digest))
            self._flights[digest] = flight
            flight.add_done_callback(lambda done: self._land(digest, done))
        return flight

    async def _fly(self, digest: Digest) -> None:
        await asyncio.get_running_loop().run_in_executor(
            self._pool, self._bring, digest
        )

    def _land(self, digest: Digest, flight: "asyncio.Task[None]") -> None:
        del self._flights[digest]
        if flight.cancelled():
            return
        error = flight.exception()
        if error is not None:
            _log.warning("%s…: %s", digest[:19], error)

    def _bring(self, digest: Digest) -> None:
        """Fetch a blob; runs in the pool's threads."""
        wanted = Wanted(digest=digest, length=self._length(digest))
        with self.store.room_for(digest, wanted.length):
            try:
                self._bring_all(wanted)
            except UntrustedError as error:
                raise UnavailableError(f"control plane: {error}") from None
            except OSError as error:
                reason = error.strerror or str(error)
                raise UnavailableError(f"cache: {reason}") from None
            self.store.came_sound(digest)
        self.fetched += 1
        _log.info("%s…: %d bytes fetched", digest[:19], wanted.length)

    def _bring_all(self, wanted: Wanted) -> None:
        downloads = Downloads(self._client, self.store.blobs, self.store.incoming)
        tries = 0
        while not downloads.finish(wanted):
            before = downloads.missing_bytes(wanted)
            try:
                downloads.fetch(wanted, pause=self._stop.is_set)
            except UnavailableError:
                # One that moved on begins to count anew: poor links break often.
                moved = downloads.missing_bytes(wanted) < before
                tries = 0 if moved else tries + 1
                if tries >= _TRIES or self._stop.wait(_RETRY_S):
                    raise
            if self._stop.is_set():
                raise UnavailableError("cache: stopping")

    def _length(self, digest: Digest) -> int:
        """Ask how long it is; believed for the room only, the digest decides later."""
        try:
            answer = self._client.head(
                f"/v1/registry/blobs/sha256/{digest_hex(digest)}"
            )
        except httpx.HTTPError as error:
            raise UnavailableError(f"control plane: {type(error).__name__}") from None
        if answer.status_code == httpx.codes.NOT_FOUND:
            raise NotFoundError(f"{digest} is not published")
        said = answer.headers.get("content-length", "")
        if answer.status_code != httpx.codes.OK or not re.fullmatch(r"\d{1,15}", said):
            raise UnavailableError(
                f"control plane: status {answer.status_code}, length {said[:20]!r}"
            )
        return int(said)


def cache_app(cache: SiteCache, *, hold_s: float) -> Starlette:
    """Return the HTTP side of a cache."""

    async def blob(request: Request) -> Response:
        name = request.path_params["file"]
        if not _BLOB.fullmatch(name):
            raise NotFoundError("no blob has such a name")
        path = await cache.find(Digest(f"sha256:{name}"), hold_s=hold_s)
        if path is None:
            return _refusal(503, "unavailable", "being fetched", retry_after="1")
        headers = {"ETag": f'"{name}"', "Cache-Control": "public, immutable"}
        return FileResponse(
            path, headers=headers, media_type="application/octet-stream"
        )

    async def health(_request: Request) -> Response:
        count, size = await asyncio.to_thread(
            lambda: (cache.store.count(), cache.store.bytes_used())
        )
        return JSONResponse({"blobs": count, "bytes": size, "fetched": cache.fetched})

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        yield
        cache.close()

    return Starlette(
        routes=[
            Route("/v1/registry/blobs/sha256/{file}", blob, methods=["GET"]),
            Route("/healthz", health, methods=["GET"]),
        ],
        lifespan=lifespan,
        exception_handlers={SlmopsError: _on_error},
    )


def serve_cache(settings: CacheSettings, *, announce: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; may be killed at any moment.

    Raises:
        ConflictError: another cache runs on this folder.
        UnavailableError: the port is taken.
    """
    store = CacheStore(settings.folder, most_bytes=settings.most_bytes)
    with (
        _only_cache(settings.folder),
        _listening(settings) as listener,
        http_client(settings.server) as client,
    ):
        cache = SiteCache(client, store)
        config = uvicorn.Config(
            cache_app(cache, hold_s=settings.hold_s),
            log_config=None,
            access_log=False,
            server_header=False,
            ws="none",
            timeout_graceful_shutdown=2,
        )
        host, port = listener.getsockname()[:2]
        announce(f"http://{f'[{host}]' if ':' in host else host}:{port}")
        asyncio.run(_serve(_Server(config), listener))


async def _serve(server: "_Server", listener: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, setattr, server, "should_exit", True)
    await server.serve(sockets=[listener])


class _Server(uvicorn.Server):
    """Leaves signals to us: uvicorn would raise them again at the end."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextmanager
def _only_cache(folder: Path) -> Iterator[None]:
    with (folder / ".lock").open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConflictError(f"another cache runs on {folder}") from None
        yield


@contextmanager
def _listening(settings: CacheSettings) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        listener = socket.create_server(
            (settings.host, settings.port), family=family, backlog=512
        )
    except OSError as error:
        raise UnavailableError(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror}"
        ) from None
    with listener:
        yield listener


async def _on_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, SlmopsError)  # noqa: S101 - registered for it only
    # 502, not 503: to wait here would not help, the control plane may.
    status = 404 if isinstance(error, NotFoundError) else 502
    return _refusal(status, error.code, str(error))


def _refusal(
    status: int, code: str, message: str, *, retry_after: str | None = None
) -> Response:
    headers = {"Cache-Control": "no-store"}
    if retry_after is not None:
        headers["Retry-After"] = retry_after
    error = {"error": {"code": code, "message": message}}
    return JSONResponse(error, status_code=status, headers=headers)
