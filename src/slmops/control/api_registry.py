"""Routes for signed registry files: whole or in byte ranges, cacheable, no credential.

Names are matched against strict patterns before they touch the file system, so no path
leads outside the registry.
"""

import re
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response

from slmops.control.plane import Plane
from slmops.domain.errors import NotFoundError

_METADATA = re.compile(r"(?:\d{1,9}\.)?[a-z0-9-]{1,64}\.json")
_RELEASE = re.compile(r"[0-9a-f]{64}\.[a-z0-9][a-z0-9._-]{0,140}\.json")
_BLOB = re.compile(r"[0-9a-f]{64}")
_DELTA = re.compile(r"[0-9a-f]{64}\.[0-9a-f]{64}")

_IMMUTABLE = "public, max-age=31536000, immutable"
_FRESH = "no-cache"


async def metadata_file(plane: Plane, request: Request) -> Response:
    """Return a TUF metadata file."""
    name = _checked(request, _METADATA)
    path = plane.settings.workspace.registry / "metadata" / name
    caching = _FRESH if name == "timestamp.json" else _IMMUTABLE
    return _file(request, path, caching=caching, media_type="application/json")


async def release_file(plane: Plane, request: Request) -> Response:
    """Return a release document, named by its hash."""
    name = _checked(request, _RELEASE)
    path = plane.settings.workspace.registry / "targets" / "releases" / name
    return _file(request, path, caching=_IMMUTABLE, media_type="application/json")


async def blob_file(plane: Plane, request: Request) -> Response:
    """Return an artefact, named by its hash."""
    name = _checked(request, _BLOB)
    path = plane.settings.workspace.registry / "blobs" / "sha256" / name
    return _file(
        request, path, caching=_IMMUTABLE, media_type="application/octet-stream"
    )


async def delta_file(plane: Plane, request: Request) -> Response:
    """Return the delta of a pair; 404: none is offered (yet), take the full file."""
    path = plane.settings.workspace.registry / "deltas" / _checked(request, _DELTA)
    if path.is_file() and not path.stat().st_size:
        raise NotFoundError(f"{request.url.path} would save too little")
    return _file(request, path, caching=_FRESH, media_type="application/octet-stream")


def _checked(request: Request, pattern: re.Pattern[str]) -> str:
    name: str = request.path_params["file"]
    if not pattern.fullmatch(name):
        raise NotFoundError(f"{request.url.path[:200]} is no registry file")
    return name


def _file(request: Request, path: Path, *, caching: str, media_type: str) -> Response:
    try:
        stat = path.stat()
    except OSError:
        raise NotFoundError(f"{request.url.path} is not published") from None
    # Immutable files are named by hash or version; timestamp.json changes its mtime.
    etag = f'"{path.name}-{stat.st_size:x}-{stat.st_mtime_ns:x}"'
    headers = {"ETag": etag, "Cache-Control": caching}
    known = request.headers.get("if-none-match", "")
    if etag in {part.strip().removeprefix("W/") for part in known.split(",")}:
        return Response(status_code=304, headers=headers)
    return FileResponse(path, headers=headers, media_type=media_type, stat_result=stat)
