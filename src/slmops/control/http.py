"""HTTP shell shared by all routes: bodies in, documents and errors out."""

import logging
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from slmops.domain.errors import InvalidInputError, SlmopsError, UnavailableError
from slmops.wire import codec

MAX_BODY_BYTES = 1024 * 1024
"""Larger bodies are refused while they arrive."""

Document = TypeVar("Document")
_log = logging.getLogger("slmops.control")


async def read_document(request: Request, kind: type[Document]) -> Document:
    """Read and check a JSON body; keys of newer agents are ignored.

    Raises:
        InvalidInputError: too large, no JSON, or not a `kind`.
    """
    body = await read_body(request)
    return codec.decode_json(body, kind, where=request.url.path, lenient=True)


async def read_body(request: Request) -> bytes:
    """Read at most `MAX_BODY_BYTES`.

    Raises:
        InvalidInputError: there is more.
    """
    parts, size = [], 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > MAX_BODY_BYTES:
                raise InvalidInputError(
                    f"{request.url.path}: body must be at most {MAX_BODY_BYTES} bytes"
                )
            parts.append(part)
    except ClientDisconnect:
        raise InvalidInputError(f"{request.url.path}: body ended early") from None
    return b"".join(parts)


def bearer(request: Request) -> str | None:
    """Return the bearer token (RFC 6750, section 2.1), or None."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token else None


def json_answer(document: object, *, status: int = 200) -> Response:
    """Answer with canonical JSON."""
    return Response(
        codec.encode_json(document),
        status_code=status,
        media_type="application/json",
        headers={"Cache-Control": "no-store"},
    )


def error_answer(error: SlmopsError) -> Response:
    """Answer with the one form all errors have."""
    # Input may hold lone surrogates, which UTF-8 cannot spell.
    message = str(error).encode("utf-8", "replace").decode()
    answer = json_answer(
        {"error": {"code": error.code, "message": message}}, status=error.http_status
    )
    if isinstance(error, UnavailableError):
        answer.headers["Retry-After"] = "1"
    return answer


async def on_slmops_error(_request: Request, error: Exception) -> Response:
    """Turn an error raised on purpose into its answer."""
    assert isinstance(error, SlmopsError)  # noqa: S101 - registered for it only
    return error_answer(error)


async def on_unexpected_error(request: Request, error: Exception) -> Response:
    """Log what should not happen; tell the client no detail."""
    _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return json_answer(
        {"error": {"code": "internal", "message": "internal error; see the log"}},
        status=500,
    )


async def on_http_error(request: Request, error: Exception) -> Response:
    """Give the framework's own refusals (404, 405) the common form."""
    status = getattr(error, "status_code", 500)
    code = {404: "not_found", 405: "method_not_allowed"}.get(status, "invalid_input")
    detail = f"{request.method} {request.url.path}: {getattr(error, 'detail', '')}"
    answer = json_answer({"error": {"code": code, "message": detail}}, status=status)
    answer.headers.update(getattr(error, "headers", None) or {})
    return answer
