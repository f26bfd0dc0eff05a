"""Routes for people: dashboard, live events, health, the API's document."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response, StreamingResponse

from slmops import __version__
from slmops.control.http import json_answer
from slmops.control.plane import Plane
from slmops.domain.errors import NotFoundError

DASHBOARD = Path(__file__).parent / "dashboard"
_FILES = {
    "dashboard.css": "text/css",
    "dashboard.js": "text/javascript",
    "render.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}
_HEARTBEAT_S = 15.0
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
    " img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_SAFE = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Health:
    """The control plane works."""

    status: str
    """``ok``."""
    version: str
    """Of slmops."""


async def healthz(plane: Plane, _request: Request) -> Response:
    """Tell whether the database answers."""
    await plane.run(plane.store.audit, limit=1)
    return json_answer(Health(status="ok", version=__version__))


async def openapi_document(_plane: Plane, request: Request) -> Response:
    """Return the API's document, which the app made from its routes."""
    return json_answer(request.app.state.openapi)


async def dashboard(_plane: Plane, _request: Request) -> Response:
    """Return the dashboard's page."""
    return FileResponse(DASHBOARD / "index.html", media_type="text/html", headers=_SAFE)


async def dashboard_file(_plane: Plane, request: Request) -> Response:
    """Return one of the dashboard's files."""
    name = request.path_params["file"]
    if name not in _FILES:
        raise NotFoundError(f"{request.url.path[:200]} is no file of the dashboard")
    return FileResponse(DASHBOARD / name, media_type=_FILES[name], headers=_SAFE)


async def events(plane: Plane, _request: Request) -> Response:
    """Stream snapshots (WHATWG HTML, server-sent events)."""

    async def stream() -> AsyncIterator[str]:
        yield "retry: 1000\n\n"
        async for text in plane.live.listen(heartbeat_s=_HEARTBEAT_S):
            # JSON has no raw line breaks, so one data line holds it.
            yield ": still here\n\n" if text is None else f"data: {text}\n\n"

    return StreamingResponse(
        stream(),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )
