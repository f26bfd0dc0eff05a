"""Echo's HTTP server: llama-server's dialect of the OpenAI API on loopback."""

import codecs
import contextlib
import hmac
import json
import select
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from slmops.domain.errors import InvalidInputError
from slmops.runtimes.base import WorkerSettings
from slmops.runtimes.echo_answer import (
    Question,
    Token,
    answer_tokens,
    held_back,
    literal_of,
    stop_at,
)
from slmops.runtimes.echo_model import EchoModel, abort

MAX_BODY_BYTES = 8 << 20
_CHAT, _PLAIN = "/v1/chat/completions", "/v1/completions"


class EchoServer(ThreadingHTTPServer):
    """Answers requests, `settings.parallel` at a time."""

    daemon_threads = True

    def __init__(self, model: EchoModel, settings: WorkerSettings, name: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.model = model
        self.settings = settings
        self.model_name = name
        self.slots = threading.BoundedSemaphore(settings.parallel)


class _ContextError(Exception):
    def __init__(self, tokens: int, context: int) -> None:
        super().__init__(
            f"request ({tokens} tokens) exceeds the available context size"
            f" ({context} tokens), try increasing it"
        )
        self.fields = {"n_prompt_tokens": tokens, "n_ctx": context}


class _GoneError(Exception):
    """The caller closed the connection."""


@dataclass(kw_only=True, slots=True)
class _Answer:
    """One answer while it is generated."""

    question: Question
    tokens: list[Token] = field(default_factory=list)
    finish: str = "stop"
    begin: float = 0.0
    end: float = 0.0

    def usage(self) -> dict[str, Any]:
        asked, given = self.question.prompt_tokens, len(self.tokens)
        return {
            "prompt_tokens": asked,
            "completion_tokens": given,
            "total_tokens": asked + given,
            "prompt_tokens_details": {"cached_tokens": 0},
        }

    def timings(self) -> dict[str, Any]:
        """Return them as llama-server does: the first token belongs to the prompt."""
        ms = max((self.end - self.begin) * 1000, 0.001)
        steps = max(len(self.tokens) - 1, 0)
        return {
            "cache_n": 0,
            "prompt_n": self.question.prompt_tokens,
            "prompt_ms": 0.001,
            "prompt_per_second": self.question.prompt_tokens * 1e6,
            "predicted_n": len(self.tokens),
            "predicted_ms": ms,
            "predicted_per_second": steps / ms * 1000,
        }


class _Handler(BaseHTTPRequestHandler):
    server: EchoServer
    protocol_version = "HTTP/1.1"
    server_version = "echo"
    sys_version = ""
    timeout = 60

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name
        """Log nothing: requests hold prompts."""

    def do_GET(self) -> None:
        if self.path == "/health":
            self._send_json(200, {"status": "ok"})
        elif not self._knows_key():
            self._refuse_key()
        elif self.path == "/v1/models":
            entry = {
                "id": self.server.model_name,
                "object": "model",
                "owned_by": "echo",
            }
            self._send_json(200, {"object": "list", "data": [{**entry, "created": 0}]})
        else:
            self._send_error(404, "not_found_error", "File Not Found")

    def do_POST(self) -> None:
        if not self._knows_key():
            self._refuse_key()
            return
        try:
            body = self._body()
            if self.path not in (_CHAT, _PLAIN):
                self._send_error(404, "not_found_error", "File Not Found")
                return
            question = read_question(body, chat=self.path == _CHAT)
            self._check_context(question)
        except _ContextError as error:
            self._send_error(
                400, "exceed_context_size_error", str(error), **error.fields
            )
            return
        except InvalidInputError as error:
            self._send_error(400, "invalid_request_error", str(error))
            return
        crash_on = self.server.model.crash_on
        if crash_on is not None and crash_on in question.prompt:
            abort()
        with self.server.slots, contextlib.suppress(_GoneError, ConnectionError):
            self._answer(question, body)

    def _knows_key(self) -> bool:
        key = self.server.settings.api_key
        if key is None:
            return True
        shown = self.headers.get("Authorization", "").removeprefix("Bearer ")
        return hmac.compare_digest(shown.encode(), key.encode())

    def _refuse_key(self) -> None:
        self.close_connection = True  # its body was not read
        self._send_error(401, "authentication_error", "Invalid API Key")

    def _body(self) -> dict[str, Any]:
        size = self.headers.get("Content-Length", "")
        if not size.isdecimal() or int(size) > MAX_BODY_BYTES:
            self.close_connection = True
            raise InvalidInputError(f"Content-Length must be <= {MAX_BODY_BYTES}")
        try:
            body = json.loads(self.rfile.read(int(size)))
        except (ValueError, RecursionError):
            raise InvalidInputError("the body is not valid JSON") from None
        if not isinstance(body, dict):
            raise InvalidInputError("the body must be an object")
        return body

    def _check_context(self, question: Question) -> None:
        context = self.server.settings.context_tokens
        if question.prompt_tokens >= context:
            raise _ContextError(question.prompt_tokens, context)

    def _answer(self, question: Question, body: dict[str, Any]) -> None:
        answer = _Answer(question=question)
        pieces = self._generate(answer)
        if body.get("stream") is True:
            self._stream(answer, pieces, body)
            return
        text = "".join(pieces)
        message = self._envelope(answer, body, text)
        self._send_json(200, message)

    def _generate(self, answer: _Answer) -> Iterator[str]:
        """Yield text as it becomes certain: whole characters, no part of a stop text."""
        question, decoder = answer.question, codecs.getincrementaldecoder("utf-8")
        tokens = answer_tokens(
            question, self.server.model.answer, self.server.model.logprob
        )
        limit = self._limit(question)
        decode, shown, text = decoder("replace").decode, 0, ""
        answer.begin = answer.end = time.perf_counter()
        for number, token in enumerate(tokens):
            if number == limit:
                answer.finish = "length"
                break
            self._pause()
            answer.tokens.append(token)
            answer.end = time.perf_counter()
            text += decode(token.raw)
            cut = stop_at(text, question.stop)
            if cut is not None:
                yield text[shown:cut]
                return
            sure = len(text) - held_back(text, question.stop)
            if sure > shown:
                yield text[shown:sure]
                shown = sure
        yield text[shown:]

    def _limit(self, question: Question) -> int:
        room = self.server.settings.context_tokens - question.prompt_tokens
        return room if question.max_tokens is None else min(room, question.max_tokens)

    def _pause(self) -> None:
        """Take a token's time; stop when the caller has gone."""
        wait = self.server.model.delay_ms / 1000
        if select.select([self.connection], [], [], wait)[
            0
        ] and not self.connection.recv(1, socket.MSG_PEEK):
            self.close_connection = True
            raise _GoneError

    def _stream(
        self, answer: _Answer, pieces: Iterator[str], body: dict[str, Any]
    ) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        if self.path == _CHAT:
            self._event(self._chunk(body, {"role": "assistant", "content": None}))
        done = 0
        for piece in pieces:
            part = {"content": piece}
            chunk = self._chunk(body, part)
            if body.get("logprobs"):
                chunk["choices"][0]["logprobs"] = _logprobs(answer.tokens[done:], body)
                done = len(answer.tokens)
            if piece:
                self._event(chunk)
        last = self._chunk(body, {}, answer.finish)
        last["timings"] = answer.timings()
        self._event(last)
        if (body.get("stream_options") or {}).get("include_usage"):
            usage = self._chunk(body, {})
            self._event({**usage, "choices": [], "usage": answer.usage()})
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, chunk: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
        self.wfile.flush()

    def _chunk(
        self, body: dict[str, Any], delta: dict[str, Any], finish: str | None = None
    ) -> dict[str, Any]:
        chat = self.path == _CHAT
        content = {"delta": delta} if chat else {"text": delta.get("content") or ""}
        return {
            "id": "echo",
            "object": "chat.completion.chunk" if chat else "text_completion",
            "created": 0,
            "model": str(body.get("model") or self.server.model_name),
            "choices": [{"index": 0, "finish_reason": finish, **content}],
        }

    def _envelope(
        self, answer: _Answer, body: dict[str, Any], text: str
    ) -> dict[str, Any]:
        chat = self.path == _CHAT
        choice: dict[str, Any] = {"index": 0, "finish_reason": answer.finish}
        if chat:
            choice["message"] = {"role": "assistant", "content": text}
        else:
            choice["text"] = text
        if body.get("logprobs"):
            choice["logprobs"] = _logprobs(answer.tokens, body)
        return {
            "id": "echo",
            "object": "chat.completion" if chat else "text_completion",
            "created": 0,
            "model": str(body.get("model") or self.server.model_name),
            "choices": [choice],
            "usage": answer.usage(),
            "timings": answer.timings(),
        }

    def _send_json(self, status: int, document: dict[str, Any]) -> None:
        raw = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def _send_error(self, status: int, kind: str, text: str, **more: object) -> None:
        error = {"code": status, "message": text, "type": kind, **more}
        self._send_json(status, {"error": error})


def read_question(body: dict[str, Any], *, chat: bool) -> Question:
    """Check a request of either endpoint.

    Raises:
        InvalidInputError: naming the field.
    """
    limit = body.get("max_completion_tokens", body.get("max_tokens"))
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool)):
        raise InvalidInputError("max_tokens must be a whole number")
    stop = body.get("stop") or ()
    stops = (stop,) if isinstance(stop, str) else tuple(str(text) for text in stop)
    grammar = body.get("grammar")
    options: dict[str, Any] = {
        "forced": literal_of(str(grammar)) if grammar else None,
        "max_tokens": None if limit is None or limit < 0 else limit,
        "stop": stops,
    }
    if not chat:
        prompt = body.get("prompt")
        if not isinstance(prompt, str):
            raise InvalidInputError("prompt must be text")
        return Question(prompt=prompt, said=prompt, **options)
    turns = _turns(body.get("messages"))
    role, last = turns[-1]
    users = [text for who, text in turns if who == "user"]
    prefix = last if role == "assistant" else ""
    texts = [text for _, text in (turns[:-1] if prefix else turns)]
    return Question(
        prompt="\n".join(texts),
        said=users[-1] if users else "",
        prefix=prefix,
        turns=len(turns),
        **options,
    )


def _turns(messages: object) -> list[tuple[str, str]]:
    if not isinstance(messages, list) or not messages:
        raise InvalidInputError("messages must be a list of at least one message")
    turns = []
    for message in messages:
        role = message.get("role") if isinstance(message, dict) else None
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, list):
            parts = [part.get("text") for part in content if isinstance(part, dict)]
            content = "".join(part for part in parts if isinstance(part, str))
        if not isinstance(role, str) or not isinstance(content, str):
            raise InvalidInputError("messages[].role and .content must be text")
        turns.append((role, content))
    return turns


def _logprobs(tokens: list[Token], body: dict[str, Any]) -> dict[str, Any]:
    asked = body.get("top_logprobs", body.get("logprobs"))
    top = 0 if isinstance(asked, bool) or not isinstance(asked, int) else asked
    return {"content": [token.entry(top) for token in tokens]}
