"""Errors as the OpenAI API says them.

Reference: https://platform.openai.com/docs/guides/error-codes and the `openai` client's
`_exceptions.py`: ``{"error": {"message", "type", "param", "code"}}``.
"""

from typing import Any

from starlette.responses import Response

from slmops.domain.errors import InvalidInputError, UnavailableError
from slmops.wire import codec

_NOT_UNDERSTOOD = ("Failed to parse messages", "Failed to parse tools")
"""How llama-server begins a 500 that is the request's fault, not the model's."""
_KEY_REFUSED = (401, 403)
"""Between the agent and the runtime alone: no client has that key."""
RETRY_AFTER_S = 1
"""What a client is told to wait while a model is loaded or restarted."""


class RequestRefused(InvalidInputError):  # noqa: N818 - names the answer, not a fault
    """A request the endpoint does not pass on, with the fields its answer needs."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        kind: str = "invalid_request_error",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.error_code = code
        self.kind = kind


def refused_body(error: RequestRefused) -> dict[str, Any]:
    """Return the error document of a refused request."""
    return _document(str(error), error.kind, error.param, error.error_code)


def unavailable_body(error: UnavailableError) -> dict[str, Any]:
    """Return the error document for: no model serves now."""
    return _document(
        f"the model is not available now: {error}",
        "server_error",
        None,
        "model_unavailable",
    )


def internal_body() -> dict[str, Any]:
    """Return the error document for what should not happen."""
    return _document("internal error", "server_error", None, "internal_error")


def json_response(
    tree: object, *, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """Answer with JSON that nobody may store."""
    return Response(
        codec.encode_json(tree),
        status_code=status,
        media_type="application/json",
        headers={"Cache-Control": "no-store", **(headers or {})},
    )


def refused_response(error: RequestRefused) -> Response:
    """Answer a refused request."""
    return json_response(refused_body(error), status=error.status)


def unavailable_response(error: UnavailableError) -> Response:
    """Answer 503 and say when to come back (RFC 9110, section 10.2.3)."""
    return json_response(
        unavailable_body(error),
        status=503,
        headers={"Retry-After": str(RETRY_AFTER_S)},
    )


def refusal_of_runtime(status: int, tree: object) -> RequestRefused | None:
    """Translate a runtime's refusal; None when it is the runtime's own failure.

    Args:
        status: what the runtime answered.
        tree: its body, parsed; anything.
    """
    if status in _KEY_REFUSED:
        return None
    error = tree.get("error") if isinstance(tree, dict) else None
    said = error if isinstance(error, dict) else {}
    message = str(said.get("message") or f"the runtime refused it with {status}")
    if not 400 <= status < 500 and not message.startswith(_NOT_UNDERSTOOD):  # noqa: PLR2004 - RFC 9110
        return None
    if said.get("type") == "exceed_context_size_error":
        return RequestRefused(
            f"This model's maximum context length is {said.get('n_ctx')} tokens;"
            f" your request has {said.get('n_prompt_tokens')} in the prompt.",
            param="messages",
            code="context_length_exceeded",
        )
    return RequestRefused(message[:500])


def _document(
    message: str, kind: str, param: str | None, code: str | None
) -> dict[str, Any]:
    # Input may hold lone surrogates, which UTF-8 cannot spell.
    text = message.encode("utf-8", "replace").decode()
    return {"error": {"message": text, "type": kind, "param": param, "code": code}}
