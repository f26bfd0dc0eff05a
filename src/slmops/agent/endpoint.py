"""The local endpoint: the OpenAI API on a socket the agent owns for its whole life.

``/v1/models``, ``/v1/chat/completions``, ``/v1/completions`` and ``/healthz``. Models
come and go behind it. No prompt or answer is logged or stored here; loopback is no
protection against web pages, so bodies must be JSON and host names are checked
(cross-site requests, DNS rebinding).
"""

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from slmops.agent.host_check import AllowedHosts
from slmops.agent.openai_errors import (
    RequestRefused,
    internal_body,
    json_response,
    refused_body,
    refused_response,
    unavailable_response,
)
from slmops.agent.openai_requests import (
    CHAT,
    PLAIN,
    Asked,
    read_request,
    require_tools_shown,
)
from slmops.agent.relay import BrokenStreamError, Relay, end_stream
from slmops.agent.telemetry import Telemetry
from slmops.agent.upstream import Gateway, NotServingError, Upstream
from slmops.domain.errors import UnavailableError

_log = logging.getLogger("slmops.agent")


@dataclass(frozen=True, kw_only=True, slots=True)
class EndpointLimits:
    """Bounds that keep one client from starving the device."""

    body_bytes: int = 1 << 20
    """Largest request; longer than any context a small model has."""
    body_s: float = 30.0
    """Longest time a request may take to arrive."""
    in_flight: int = 64
    """Requests accepted at the same time; they queue in the runtime."""
    answer_s: float = 300.0
    """Longest silence of the runtime inside one answer."""


class Endpoint:
    """Builds the application around a gateway."""

    def __init__(
        self,
        gateway: Gateway,
        telemetry: Telemetry,
        limits: EndpointLimits,
        *,
        allowed_hosts: tuple[str, ...],
        trouble: Callable[[], str | None] = lambda: None,
    ) -> None:
        """Take what stands behind it.

        Args:
            gateway: decides which model answers.
            telemetry: counts.
            limits: of requests.
            allowed_hosts: host names that requests may be addressed to.
            trouble: says why nothing is installed or reported now, None while it is.
        """
        self._trouble = trouble
        self._gateway = gateway
        self._telemetry = telemetry
        self._limits = limits
        self._allowed_hosts = allowed_hosts
        # No keep-alive towards the child: after a streamed answer a reused connection
        # may carry the rest of the last one.
        self._client = httpx.AsyncClient(
            limits=httpx.Limits(max_keepalive_connections=0),
            timeout=httpx.Timeout(limits.answer_s, connect=5.0),
            trust_env=False,
            # Loopback only: no certificates to load, and none would be trusted.
            verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
        )
        self._in_flight = 0

    def application(self) -> Starlette:
        """Return the ASGI application."""
        return Starlette(
            routes=[
                Route("/v1/models", self._models),
                Route("/v1/models/{model:path}", self._model),
                Route(CHAT, _Completions(self, CHAT), methods=["POST"]),
                Route(PLAIN, _Completions(self, PLAIN), methods=["POST"]),
                Route("/healthz", self._health),
            ],
            exception_handlers={
                HTTPException: _on_http_error,
                RequestRefused: _on_refused,
                Exception: _on_unexpected,
            },
            middleware=[Middleware(AllowedHosts, allowed=self._allowed_hosts)],
        )

    async def _models(self, _request: Request) -> Response:
        current = self._gateway.current
        listed = [] if current is None else [_model_entry(current)]
        return json_response({"object": "list", "data": listed})

    async def _model(self, request: Request) -> Response:
        current = self._gateway.current
        asked: str = request.path_params["model"]
        if current is None or not _names(asked, current.release):
            raise _unknown_model(asked)
        return json_response(_model_entry(current))

    async def _health(self, _request: Request) -> Response:
        current = self._gateway.current
        if current is None:
            return unavailable_response(UnavailableError(self._gateway.reason))
        health = {"status": "ok", "model": current.release}
        trouble = self._trouble()
        if trouble is not None:
            health["updates"] = f"stopped: {trouble}"
        return json_response(health)

    async def complete(
        self, path: str, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Answer one completion request, whatever happens to it."""
        request = Request(scope, receive)
        release: str | None = None
        try:
            asked = await self._read(request, path)
            with self._one_more():
                async with self._gateway.lease() as upstream:
                    release = upstream.release
                    await self._relay(asked, upstream, receive, send)
        except RequestRefused as error:
            await refused_response(error)(scope, receive, send)
        except NotServingError as error:
            self._telemetry.failed(error.release)
            await unavailable_response(error)(scope, receive, send)
        except UnavailableError as error:
            # Of the model that had the request, whichever serves by now: an old model's
            # failure must not count against the new one's trial.
            self._telemetry.failed(release)
            await unavailable_response(error)(scope, receive, send)
        except ClientDisconnect:
            return

    async def _read(self, request: Request, path: str) -> Asked:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise RequestRefused(
                f"Content-Type must be application/json, got {kind[:60] or 'none'}",
                status=415,
            )
        try:
            async with asyncio.timeout(self._limits.body_s):
                raw = await self._body(request)
        except TimeoutError:
            raise RequestRefused(
                "the body did not arrive in time", status=408
            ) from None
        return read_request(path, raw)

    async def _body(self, request: Request) -> bytes:
        most = self._limits.body_bytes
        said = request.headers.get("content-length", "")
        if said.isdecimal() and int(said) > most:
            raise _too_large(most)
        parts, size = [], 0
        async for part in request.stream():
            size += len(part)
            if size > most:
                raise _too_large(most)
            parts.append(part)
        return b"".join(parts)

    @contextlib.contextmanager
    def _one_more(self) -> Any:  # noqa: ANN401 - a generator of nothing
        if self._in_flight >= self._limits.in_flight:
            raise RequestRefused(
                f"{self._in_flight} requests are in flight; try again later",
                status=429,
                kind="rate_limit_error",
                code="rate_limit_exceeded",
            )
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1

    async def _relay(
        self, asked: Asked, upstream: Upstream, receive: Receive, send: Send
    ) -> None:
        if asked.model is not None and not _names(asked.model, upstream.release):
            raise _unknown_model(asked.model)
        require_tools_shown(asked, shows_tools=upstream.shows_tools)
        await _unless_gone(self._exchange(asked, upstream, send), receive)

    async def _exchange(self, asked: Asked, upstream: Upstream, send: Send) -> None:
        """Relay and count; a client that leaves is no failure.

        Counted before the end is sent: a client that has all of it may go, which
        cancels what still runs here.
        """
        relay = Relay(self._client, upstream, asked)
        if asked.stream:
            try:
                answer = await relay.stream(send)
            except BrokenStreamError as error:
                _log.warning("stream: %s", error)
                self._telemetry.failed(upstream.release)
            else:
                self._telemetry.answered(upstream.release, answer)
            await end_stream(send)
            return
        tree, answer = await relay.whole()
        self._telemetry.answered(upstream.release, answer)
        await _send_response(json_response(tree), send)


class _Completions:
    """An ASGI application: it watches the client leave, which a handler cannot."""

    def __init__(self, endpoint: Endpoint, path: str) -> None:
        self._endpoint = endpoint
        self._path = path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._endpoint.complete(self._path, scope, receive, send)


async def _unless_gone(work: Coroutine[Any, Any, None], receive: Receive) -> None:
    """Run `work`; cancel it, and so the model's, when the client disconnects."""
    relay = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({relay, gone}, return_when=asyncio.FIRST_COMPLETED)
        if relay.done():
            relay.result()
            return
        raise ClientDisconnect
    finally:
        for task in (relay, gone):
            task.cancel()
        await asyncio.gather(relay, gone, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send_response(response: Response, send: Send) -> None:
    await send(
        {
            "type": "http.response.start",
            "status": response.status_code,
            "headers": response.raw_headers,
        }
    )
    await send({"type": "http.response.body", "body": response.body})


def _names(asked: str, release: str) -> bool:
    """Tell whether a client means this model.

    The product's name and every version of it do: applications that name a version must
    not fail at the moment an update is committed.
    """
    product = release.rpartition("-")[0]
    base, _, version = asked.rpartition("-")
    return asked in {release, product} or (base == product and version.isdecimal())


def _unknown_model(asked: str) -> RequestRefused:
    return RequestRefused(
        f"The model {asked[:80]!r} does not exist on this device; GET /v1/models lists"
        " what it serves.",
        status=404,
        param="model",
        code="model_not_found",
    )


def _model_entry(upstream: Upstream) -> dict[str, Any]:
    return {
        "id": upstream.release,
        "object": "model",
        "created": 0,
        "owned_by": "slmops",
        "context_window": upstream.context_tokens,
    }


def _too_large(most: int) -> RequestRefused:
    return RequestRefused(f"the body must be at most {most} bytes", status=413)


async def _on_http_error(request: Request, error: Exception) -> Response:
    """Give the framework's own refusals (404, 405) the common form."""
    status = getattr(error, "status_code", 500)
    refusal = RequestRefused(
        f"Invalid URL ({request.method} {request.url.path[:200]})", status=status
    )
    return json_response(
        refused_body(refusal),
        status=status,
        headers=dict(getattr(error, "headers", None) or {}),
    )


async def _on_refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestRefused)  # noqa: S101 - registered for it only
    return refused_response(error)


async def _on_unexpected(request: Request, error: Exception) -> Response:
    """Log what should not happen, without the request's body."""
    _log.error("%s failed", request.url.path, exc_info=error)
    return json_response(internal_body(), status=500)
