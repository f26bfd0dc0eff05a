"""Composition root of the control plane: real store, real clock, real server."""

import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import FrameType

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException

from slmops.control import http
from slmops.control.auth import load_operator_token
from slmops.control.engine import Engine
from slmops.control.occupancy import announced, only_plane
from slmops.control.openapi import openapi
from slmops.control.plane import Plane
from slmops.control.releases import KnownReleases
from slmops.control.routes import server_routes
from slmops.control.settings import ControlSettings
from slmops.control.snapshot import take_snapshot
from slmops.control.store_sql import open_sqlite_store
from slmops.domain.errors import SlmopsError, UnavailableError
from slmops.registry.catalog import Catalog
from slmops.registry.key_folder import PINNED_ROOT, read_pinned_root
from slmops.registry.keys import key_passphrase
from slmops.registry.signing import OnlineKeys, ReleaseKeys
from slmops.registry.workspace import Workspace
from slmops.wire import codec

DATABASE = "control.db"
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - is replaced
"""Where to reach a server on this machine that listens on all its addresses."""
_ROOT_LOOK_S = 1.0
"""How often a next root is looked for: one stat."""
_ROOT_RETRY_S = 60.0
_LEAST_BETWEEN_SNAPSHOTS_S = 0.25
_log = logging.getLogger("slmops.control")


def create_app(settings: ControlSettings) -> Starlette:
    """Build the control plane of a workspace; its folders are made when missing.

    Raises:
        ConflictError: the database is newer than this program.
        UnavailableError: the database cannot be opened.
    """
    plane = _build_plane(settings)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        jobs = [
            asyncio.create_task(job(plane))
            for job in (
                *(_run_engine, _publish, _flush_seen),
                *(_refresh_timestamp, _follow_root),
            )
        ]
        yield
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)
        await plane.flush_seen()
        plane.close()

    app = Starlette(
        routes=server_routes(plane),
        lifespan=lifespan,
        exception_handlers={
            SlmopsError: http.on_slmops_error,
            HTTPException: http.on_http_error,
            Exception: http.on_unexpected_error,
        },
    )
    app.state.plane = plane
    app.state.openapi = openapi()
    return app


def serve(
    settings: ControlSettings, *, announce: Callable[[str], None] = lambda _url: None
) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Args:
        settings: where and how.
        announce: called with the address once it answers and minds signals.

    Raises:
        ConflictError: another control plane serves this workspace.
        UnavailableError: the port is taken.
    """
    with only_plane(settings.workspace.control):
        _serve(settings, announce)


def _serve(settings: ControlSettings, announce: Callable[[str], None]) -> None:
    app = create_app(settings)
    listener = _listen(settings)
    host, port = listener.getsockname()[:2]
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=_log.isEnabledFor(logging.DEBUG),
        server_header=False,
        timeout_graceful_shutdown=5,
    )
    url = f"http://{_in_url(host)}:{port}"
    local = f"http://{_in_url(_LOOPBACK.get(host, host))}:{port}"
    with announced(settings.workspace.control, local):
        _Server(config, app.state.plane, ready=lambda: announce(url)).run(
            sockets=[listener]
        )


def configure_logging(*, debug: bool) -> None:
    """Log problems to standard error; one line a request only when debugging."""
    logging.basicConfig(
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        level=logging.INFO if debug else logging.WARNING,
    )
    if debug:
        _log.setLevel(logging.DEBUG)


class _Server(uvicorn.Server):
    """Ends live streams at the first signal: they would hold the exit up for ever."""

    def __init__(
        self, config: uvicorn.Config, plane: Plane, *, ready: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._plane = plane
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        # Only now: whoever reads the address may send a signal, and it is handled.
        if self.started:
            self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._plane.live.close()
        super().handle_exit(sig, frame)
        # The signal was obeyed: do not raise it again after a clean exit.
        self._captured_signals = [
            one for one in self._captured_signals if one != signal.SIGTERM
        ]


def _listen(settings: ControlSettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server(
            (settings.host, settings.port), family=family, backlog=2048
        )
    except OSError as error:
        raise UnavailableError(
            f"cannot listen on {settings.host}:{settings.port}: {_why(error)}"
        ) from None


def _why(error: OSError) -> str:
    """Say it once: Python repeats the address in the text of a failed bind."""
    number = error.errno
    if number is None or isinstance(error, socket.gaierror):
        return str(error.strerror)
    return os.strerror(number)


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def load_online_keys(workspace: Workspace, *, now: float) -> OnlineKeys:
    """Return the keys that live with the control plane.

    A workspace without any gets its whole set here, so that devices can enrol before
    the first release; the offline ones may then be moved away.
    """
    passphrase = key_passphrase(os.environ)
    if not (workspace.keys / PINNED_ROOT).exists():
        ReleaseKeys.load_or_create(workspace.keys, now=now, passphrase=passphrase)
    root = _registry(workspace).newest_root()
    return OnlineKeys.load(workspace.keys, passphrase=passphrase, root=root)


def follow_root(plane: Plane) -> bool:
    """Take other keys when a newer root was published; return whether it was.

    Raises:
        NotFoundError: a key that it names is not here; the old ones go on.
    """
    workspace = plane.settings.workspace
    following = f"{plane.keys.newest_root.version + 1}.root.json"
    if not (workspace.registry / "metadata" / following).exists():
        return False
    plane.take_keys(load_online_keys(workspace, now=plane.clock()))
    return True


def _registry(workspace: Workspace) -> Catalog:
    return Catalog(workspace.registry, pinned_root=read_pinned_root(workspace.keys))


def _build_plane(settings: ControlSettings) -> Plane:
    workspace = settings.workspace
    keys = load_online_keys(workspace, now=time.time())
    catalog = _registry(workspace)
    timestamp = workspace.registry / "metadata" / "timestamp.json"
    releases = KnownReleases(
        catalog,
        # Replacing this file is what publishes, so its times tell whether anything did.
        stamp=lambda: timestamp.stat().st_mtime_ns if timestamp.exists() else 0,
    )
    store = open_sqlite_store(workspace.control / DATABASE)
    return Plane(
        settings,
        store=store,
        engine=Engine(store, releases, poll_s=settings.poll_s),
        keys=keys,
        operator_token=load_operator_token(workspace.control),
        clock=time.time,
    )


async def _run_engine(plane: Plane) -> None:
    while True:
        try:
            if await plane.run(plane.engine.run_pass, plane.clock()):
                plane.live.poke()
                continue
        except Exception:  # noqa: BLE001 - the loop must outlive any one pass
            # A pass that fails is tried again; the log says why.
            _log.exception("engine pass failed")
        plane.wake.clear()
        try:
            await asyncio.wait_for(plane.wake.wait(), plane.settings.engine_s)
        except TimeoutError:
            continue


async def _publish(plane: Plane) -> None:
    while await plane.live.wait_for_news():
        try:
            snapshot = await plane.run(
                take_snapshot,
                plane.store,
                plane.releases,
                poll_s=plane.settings.poll_s,
            )
            await plane.live.publish(codec.encode_json(snapshot).decode())
        except Exception:  # noqa: BLE001 - the loop must outlive any one pass
            _log.exception("snapshot failed")
        await asyncio.sleep(_LEAST_BETWEEN_SNAPSHOTS_S)
    await plane.live.end()


async def _flush_seen(plane: Plane) -> None:
    while True:
        await asyncio.sleep(plane.settings.seen_flush_s)
        try:
            await plane.flush_seen()
        except Exception:  # noqa: BLE001 - the loop must outlive any one pass
            _log.exception("last-seen times could not be written")


async def _follow_root(plane: Plane) -> None:
    while True:
        wait_s = _ROOT_LOOK_S
        try:
            if await plane.run(follow_root, plane):
                _log.warning(
                    "root version %d: other keys sign", plane.keys.newest_root.version
                )
        except (SlmopsError, OSError):
            wait_s = _ROOT_RETRY_S
            _log.exception("the newest root's keys cannot be used")
        await asyncio.sleep(wait_s)


async def _refresh_timestamp(plane: Plane) -> None:
    catalog = _registry(plane.settings.workspace)
    while True:
        try:
            await plane.run(catalog.refresh_timestamp, plane.keys, plane.clock())
        except (SlmopsError, OSError):
            _log.exception("the registry's timestamp could not be signed anew")
        await asyncio.sleep(plane.settings.timestamp_s)
