"""What of the OpenAI API is passed on to a model: a checked allow-list of parameters.

Unknown parameters are refused by name, as OpenAI does: a silently dropped
``response_format`` would be worse than an error. Parameters that only make sense in
their cloud (``user``, ``store``, ``metadata`` …) are accepted and dropped.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from slmops.agent.openai_errors import RequestRefused
from slmops.domain.errors import InvalidInputError
from slmops.wire import codec

CHAT, PLAIN = "/v1/chat/completions", "/v1/completions"
_MAX_LISTED = 2048
_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_DROPPED = frozenset(
    {
        *("user", "store", "metadata", "service_tier", "safety_identifier"),
        *("prompt_cache_key", "prompt_cache_retention", "reasoning_effort"),
        *("verbosity", "modalities", "prediction"),
    }
)
"""Without meaning on a device; accepted, not passed on, not kept."""

Check = Callable[[Any], str | None]
"""Returns what was expected when the value is wrong, else None."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A checked request."""

    path: str
    """`CHAT` or `PLAIN`."""
    body: dict[str, Any]
    """What the runtime gets."""
    model: str | None
    """What the client named."""
    stream: bool
    """Server-sent events?"""
    include_usage: bool
    """Does the client want a last event with usage?"""


def read_request(path: str, raw: bytes) -> Asked:
    """Check a body of either route.

    Raises:
        RequestRefused: naming the parameter, what was expected and what came.
    """
    try:
        tree = codec.parse_json(raw, where="body")
    except InvalidInputError as error:
        raise RequestRefused(f"We could not parse the JSON body: {error}") from None
    if not isinstance(tree, dict):
        raise RequestRefused(
            f"the body must be a JSON object, got {type(tree).__name__}"
        )
    known = _CHAT_PARAMETERS if path == CHAT else _PLAIN_PARAMETERS
    body = _checked(tree, known)
    _require(body, "messages" if path == CHAT else "prompt")
    options = body.pop("stream_options", None) or {}
    stream = body.get("stream") is True
    if stream:
        # Usage is always counted; the endpoint keeps it from clients that do not ask.
        body["stream_options"] = {"include_usage": True}
    return Asked(
        path=path,
        body=body,
        model=body.pop("model", None),
        stream=stream,
        include_usage=options.get("include_usage") is True,
    )


def _checked(tree: Mapping[str, Any], known: Mapping[str, Check]) -> dict[str, Any]:
    body = {}
    for name, value in tree.items():
        if name in _DROPPED or (value is None and name in known):
            continue
        check = known.get(name)
        if check is None:
            raise RequestRefused(
                f"Unrecognized request argument supplied: {name[:80]}",
                param=name[:80],
                code="unknown_parameter",
            )
        expected = check(value)
        if expected is not None:
            raise RequestRefused(
                f"Invalid value for {name!r}: expected {expected}, got {_shown(value)}",
                param=name,
                code="invalid_value",
            )
        body[name] = value
    return body


def _require(body: Mapping[str, Any], name: str) -> None:
    if name not in body:
        raise RequestRefused(
            f"Missing required parameter: {name!r}.",
            param=name,
            code="missing_required_parameter",
        )


def _shown(value: object) -> str:
    """Name a wrong value without repeating text that may be a prompt."""
    if isinstance(value, bool | int | float):
        return str(value)[:40]
    names: dict[type, str] = {str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), "null")


def _number(low: float, high: float) -> Check:
    def check(value: Any) -> str | None:  # noqa: ANN401 - untrusted JSON
        good = isinstance(value, int | float) and not isinstance(value, bool)
        return (
            None if good and low <= value <= high else f"a number {low:g} to {high:g}"
        )

    return check


def _integer(low: int, high: int) -> Check:
    def check(value: Any) -> str | None:  # noqa: ANN401 - untrusted JSON
        good = isinstance(value, int) and not isinstance(value, bool)
        if good and low <= value <= high:
            return None
        return f"an integer {low} to {high}"

    return check


def _kind(kind: type, expected: str) -> Check:
    def check(value: Any) -> str | None:  # noqa: ANN401 - untrusted JSON
        return None if isinstance(value, kind) else expected

    return check


def _only(*allowed: object) -> Check:
    def check(value: Any) -> str | None:  # noqa: ANN401 - untrusted JSON
        good = any(value is one or value == one for one in allowed)
        return None if good else " or ".join(str(one) for one in allowed)

    return check


def _stop(value: Any) -> str | None:  # noqa: ANN401 - untrusted JSON
    texts = value if isinstance(value, list) else [value]
    good = len(texts) <= 16 and all(isinstance(text, str) for text in texts)  # noqa: PLR2004
    return None if good else "text or a list of at most 16 texts"


def _prompt(value: Any) -> str | None:  # noqa: ANN401 - untrusted JSON
    return None if isinstance(value, str) else "one text (lists are not supported)"


def _messages(value: Any) -> str | None:  # noqa: ANN401 - untrusted JSON
    if not isinstance(value, list) or not 0 < len(value) <= _MAX_LISTED:
        return f"a list of 1 to {_MAX_LISTED} messages"
    for index, message in enumerate(value):
        expected = _message(message)
        if expected is not None:
            return f"messages[{index}] to be {expected}"
    return None


def _message(message: Any) -> str | None:  # noqa: ANN401 - untrusted JSON
    if not isinstance(message, dict):
        return "an object"
    if message.get("role") not in _ROLES:
        return f"of a role among {', '.join(_ROLES)}"
    content = message.get("content")
    if content is None and message.get("role") == "assistant":
        return None if message.get("tool_calls") else "with content or tool_calls"
    if isinstance(content, str):
        return None
    parts = content if isinstance(content, list) else [None]
    if parts and all(_is_text_part(part) for part in parts):
        return None
    return "with content of text, or a list of text parts (this model reads text only)"


def _is_text_part(part: Any) -> bool:  # noqa: ANN401 - untrusted JSON
    return (
        isinstance(part, dict)
        and part.get("type") == "text"
        and isinstance(part.get("text"), str)
    )


_SAMPLING: dict[str, Check] = {
    "model": _kind(str, "a model's name"),
    "max_tokens": _integer(1, 1 << 20),
    "temperature": _number(0, 2),
    "top_p": _number(0, 1),
    "top_k": _integer(0, 1 << 20),
    "min_p": _number(0, 1),
    "repeat_penalty": _number(0.1, 10),
    "presence_penalty": _number(-2, 2),
    "frequency_penalty": _number(-2, 2),
    "seed": _integer(-(1 << 63), (1 << 63) - 1),
    "stop": _stop,
    "n": _only(1),
    "stream": _kind(bool, "true or false"),
    "stream_options": _kind(dict, "an object"),
    "logit_bias": _kind(dict, "an object"),
}
_CHAT_PARAMETERS: dict[str, Check] = {
    **_SAMPLING,
    "messages": _messages,
    "max_completion_tokens": _integer(1, 1 << 20),
    "logprobs": _kind(bool, "true or false"),
    "top_logprobs": _integer(0, 20),
    "response_format": _kind(dict, "an object"),
    "tools": _kind(list, "a list"),
    "tool_choice": _kind((str, dict), "text or an object"),  # type: ignore[arg-type]
    "parallel_tool_calls": _kind(bool, "true or false"),
}
_PLAIN_PARAMETERS: dict[str, Check] = {
    **_SAMPLING,
    "prompt": _prompt,
    "logprobs": _integer(0, 5),
    "echo": _only(False),
    "best_of": _only(1),
    "suffix": _only(None),
}
