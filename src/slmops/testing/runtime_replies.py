"""What a runtime may answer the endpoint with, and how to ask: for raw servers."""

import json

import httpx

from slmops.testing.endpoint_in_process import LocalEndpoint
from slmops.testing.raw_server import Reply, answer

CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "Hi"}]}
SSE = "text/event-stream"


def completion(text: str = "Hello", **other: object) -> dict[str, object]:
    """Return a chat completion as llama-server gives it, figures included."""
    return {
        "id": "x",
        "object": "chat.completion",
        "model": "/secret/path.gguf",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8},
        "timings": {"prompt_ms": 120.0, "predicted_per_second": 40.0},
        **other,
    }


def whole(tree: object, status: int = 200) -> Reply:
    """Answer with one JSON document."""
    return answer(status, json.dumps(tree).encode())


def event(tree: object) -> bytes:
    """Return one server-sent event."""
    return b"data: " + json.dumps(tree).encode() + b"\n\n"


def piece(text: str) -> bytes:
    """Return one piece of a streamed chat answer."""
    return event({"model": "m", "choices": [{"index": 0, "delta": {"content": text}}]})


USAGE = event(
    {
        "choices": [],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
        "timings": {"predicted_per_second": 30.0},
    }
)
DONE = b"data: [DONE]\n\n"


def ask(endpoint: LocalEndpoint, path: str = CHAT, **more: object) -> httpx.Response:
    """Ask the endpoint for a chat completion."""
    return httpx.post(endpoint.url + path, json={**BODY, **more}, timeout=10)


def is_openai_error(answer: httpx.Response, status: int) -> bool:
    """Tell whether it is an error of that status in OpenAI's form."""
    error = answer.json()["error"]
    return answer.status_code == status and set(error) == {
        *("message", "type", "param", "code")
    }


def events_of(answer: httpx.Response) -> list[str]:
    """Return the data of all events of a streamed answer."""
    lines = answer.text.split("\n\n")
    assert lines[-1] == ""
    return [line.removeprefix("data: ") for line in lines[:-1]]
