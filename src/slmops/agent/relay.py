"""One request on its way to the model and back: whole or as server-sent events.

The runtime's answer is rewritten in passing: the model's name is the release's label,
usage reaches only clients that asked for it, and a failure in mid-stream is said in the
stream (https://html.spec.whatwg.org/multipage/server-sent-events.html).
"""

import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
from starlette.types import Send

from slmops.agent.clock import Stopwatch
from slmops.agent.openai_errors import (
    RequestRefused,
    refusal_of_runtime,
    unavailable_body,
)
from slmops.agent.openai_legacy import LegacyLogprobs
from slmops.agent.openai_requests import Asked
from slmops.agent.telemetry import Answered
from slmops.agent.upstream import Upstream
from slmops.domain.errors import InvalidInputError, UnavailableError
from slmops.wire import codec

MAX_ANSWER_BYTES = 32 << 20
_MAX_EVENT_BYTES = 4 << 20
_OK = 200
_NOT_OURS = ("timings", "__verbose")
"""llama-server's additions at the top level: not the OpenAI API."""
_OTHERS_MAY_SHOW = ("prompt_tokens_details",)
"""Parts of usage that tell what came before: ``cached_tokens`` counts how far a prompt
agrees with the last one in the runtime's cache, which may be another application's."""
_MIN_DECODED = 3
_SSE_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]


class BrokenStreamError(Exception):
    """The answer broke off after it had begun; the client has been told."""


class Relay:
    """Passes one checked request on; made anew for each."""

    def __init__(
        self, client: httpx.AsyncClient, upstream: Upstream, asked: Asked
    ) -> None:
        self._client = client
        self._upstream = upstream
        self._asked = asked
        self._watch = Stopwatch()
        self._first_ms: float | None = None
        self._timings: dict[str, Any] = {}
        self._output_tokens = 0
        self._legacy = (
            None
            if asked.legacy_logprobs is None
            else LegacyLogprobs(asked.legacy_logprobs)
        )

    async def whole(self) -> tuple[dict[str, Any], Answered]:
        """Return the complete answer.

        Raises:
            RequestRefused: the runtime finds fault with the request.
            UnavailableError: the runtime died or failed.
        """
        async with self._open() as response:
            raw = await self._read(response)
        tree = _object(raw)
        if response.status_code != _OK:
            raise _failure(response.status_code, tree)
        tree = self._ours(tree)
        return tree, self._answered()

    async def stream(self, send: Send) -> Answered:
        """Send the answer as events while it is generated; `end_stream` is to follow.

        Raises:
            RequestRefused, UnavailableError: before anything was sent.
            BrokenStreamError: after; `end_stream` is to follow all the same.
        """
        async with self._open() as response:
            if response.status_code != _OK:
                raw = await self._read(response)
                raise _failure(response.status_code, _object(raw))
            await send(
                {"type": "http.response.start", "status": _OK, "headers": _SSE_HEADERS}
            )
            try:
                await self._send_events(response, send)
            except (httpx.HTTPError, UnavailableError) as error:
                self._suspect(error)
                gone = UnavailableError(f"the model's process ended: {error}")
                await _send_event(send, codec.encode_json(unavailable_body(gone)))
                raise BrokenStreamError(str(error)) from None
        await _send_event(send, b"[DONE]")
        return self._answered()

    async def _read(self, response: httpx.Response) -> bytes:
        parts, size = [], 0
        try:
            async for part in self._parts(response):
                size += len(part)
                if size > MAX_ANSWER_BYTES:
                    raise UnavailableError("the runtime's answer is too large")
                parts.append(part)
        except httpx.HTTPError as error:
            self._suspect(error)
            raise UnavailableError(_said(error)) from None
        return b"".join(parts)

    async def _parts(self, response: httpx.Response) -> AsyncIterator[bytes]:
        async for part in response.aiter_raw():
            self._upstream.heard_at = time.monotonic()
            yield part

    def _suspect(self, error: Exception) -> None:
        """Let the supervisor see whether a model that gave no answer hangs."""
        if isinstance(error, httpx.ReadTimeout):
            self._upstream.suspected = True

    def _open(self) -> "_Response":
        request = self._client.build_request(
            "POST",
            self._upstream.address.url + self._asked.path,
            content=codec.encode_json(self._asked.body),
            headers={
                "Content-Type": "application/json",
                **self._upstream.address.headers,
            },
        )
        return _Response(self._client, request, self._suspect)

    async def _send_events(self, response: httpx.Response, send: Send) -> None:
        complete = False
        async for data in _events(self._parts(response)):
            if data == b"[DONE]":
                complete = True
                continue
            tree = _object(data)
            if "error" in tree:
                raise UnavailableError("the runtime broke the answer off")
            self._note_first(tree)
            chunk = self._ours(tree)
            if chunk.get("choices") or self._asked.include_usage:
                await _send_event(send, codec.encode_json(chunk))
        if not complete:
            raise UnavailableError("the answer ended early")

    def _note_first(self, tree: dict[str, Any]) -> None:
        if self._first_ms is None and _has_text(tree):
            self._first_ms = self._watch.ms()

    def _ours(self, tree: dict[str, Any]) -> dict[str, Any]:
        """Take figures out, put our name in."""
        timings, usage = tree.get("timings"), tree.get("usage")
        if isinstance(timings, dict):
            self._timings = timings
        if isinstance(usage, dict):
            tokens = usage.get("completion_tokens")
            self._output_tokens = tokens if isinstance(tokens, int) else 0
            for name in _OTHERS_MAY_SHOW:
                usage.pop(name, None)
        for name in _NOT_OURS:
            tree.pop(name, None)
        if self._asked.stream and not self._asked.include_usage:
            tree.pop("usage", None)
        if self._legacy is not None:
            self._legacy.rewrite(tree)
        tree["model"] = self._upstream.release
        return tree

    def _answered(self) -> Answered:
        prompt_ms = _positive(self._timings.get("prompt_ms"))
        speed = _positive(self._timings.get("predicted_per_second"))
        return Answered(
            output_tokens=max(self._output_tokens, 0),
            # Not streamed: what the runtime spent before its first token.
            first_token_ms=self._first_ms
            or (None if self._asked.stream else prompt_ms),
            decode_tokens_per_s=speed if self._output_tokens >= _MIN_DECODED else None,
        )


class _Response:
    """``async with``: a streamed response, closed (and so cancelled) at the end."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        request: httpx.Request,
        on_error: Callable[[Exception], None],
    ) -> None:
        self._client = client
        self._request = request
        self._on_error = on_error
        self._response: httpx.Response | None = None

    async def __aenter__(self) -> httpx.Response:
        try:
            self._response = await self._client.send(self._request, stream=True)
        except httpx.HTTPError as error:
            self._on_error(error)
            raise UnavailableError(_said(error)) from None
        return self._response

    async def __aexit__(self, *_: object) -> None:
        if self._response is not None:
            await self._response.aclose()


async def _events(parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the data of each event; the runtime sends one data line an event."""
    buffer = bytearray()
    async for part in parts:
        searched = max(len(buffer) - 1, 0)
        buffer += part
        while (end := buffer.find(b"\n\n", searched)) >= 0:
            event, buffer, searched = bytes(buffer[:end]), buffer[end + 2 :], 0
            for line in event.splitlines():
                name, _, data = line.partition(b":")
                if name == b"data":
                    yield data.strip()
                elif name == b"error":
                    raise UnavailableError("the runtime broke the answer off")
        if len(buffer) > _MAX_EVENT_BYTES:
            raise UnavailableError("the runtime's event is too large")


def _failure(status: int, tree: dict[str, Any]) -> RequestRefused | UnavailableError:
    refusal = refusal_of_runtime(status, tree)
    if refusal is not None:
        return refusal
    return UnavailableError(f"the runtime answered {status}")


def _object(raw: bytes) -> dict[str, Any]:
    try:
        tree = codec.parse_json(raw, where="runtime")
    except InvalidInputError:
        tree = None
    if not isinstance(tree, dict):
        raise UnavailableError("the runtime's answer is no JSON object")
    return tree


def _has_text(tree: dict[str, Any]) -> bool:
    choices = tree.get("choices")
    if not isinstance(choices, list) or not choices:
        return False
    choice = choices[0] if isinstance(choices[0], dict) else {}
    delta = choice.get("delta")
    said = delta if isinstance(delta, dict) else choice
    return bool(said.get("content") or said.get("text") or said.get("tool_calls"))


def _positive(value: object) -> float | None:
    good = isinstance(value, int | float) and value > 0
    return float(value) if good and isinstance(value, int | float) else None


def _said(error: httpx.HTTPError) -> str:
    return f"its process does not answer ({type(error).__name__})"


async def _send_event(send: Send, data: bytes) -> None:
    await send(
        {
            "type": "http.response.body",
            "body": b"data: " + data + b"\n\n",
            "more_body": True,
        }
    )


async def end_stream(send: Send) -> None:
    """End the answer: the client may go, and what it waits for is then cancelled."""
    await send({"type": "http.response.body", "body": b"", "more_body": False})
