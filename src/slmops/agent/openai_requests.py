"""What of the OpenAI API is passed on to a model: a checked allow-list of parameters.

Unknown parameters are refused by name, as OpenAI does: a silently dropped
``response_format`` would be worse than an error. Parameters that only make sense in
their cloud (``user``, ``store``, ``metadata`` …) are accepted and dropped.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from slmops.agent import openai_checks as checks
from slmops.agent.openai_checks import Check
from slmops.agent.openai_errors import RequestRefused
from slmops.domain.errors import InvalidInputError
from slmops.wire import codec

CHAT, PLAIN = "/v1/chat/completions", "/v1/completions"
_DROPPED = frozenset(
    {
        *("user", "store", "metadata", "service_tier", "safety_identifier"),
        *("prompt_cache_key", "prompt_cache_retention", "reasoning_effort"),
        *("verbosity", "modalities", "prediction"),
    }
)
"""Without meaning on a device; accepted, not passed on, not kept."""


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
    legacy_logprobs: int | None = None
    """How many alternatives a client of `PLAIN` wants listed; None for no figures."""
    tools: bool = False
    """Do tools matter to the answer? Only some chat templates show them to a model."""


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
    if path == CHAT:
        body["messages"] = [checks.passed_on(each) for each in body["messages"]]
    options = body.pop("stream_options", None) or {}
    stream = body.get("stream") is True
    if stream:
        # Usage is always counted; the endpoint keeps it from clients that do not ask.
        body["stream_options"] = {"include_usage": True}
    _require_no_force(body)
    return Asked(
        path=path,
        body=body,
        model=body.pop("model", None),
        stream=stream,
        include_usage=options.get("include_usage") is True,
        legacy_logprobs=_legacy_logprobs(body) if path == PLAIN else None,
        tools=bool(body.get("tools")) and body.get("tool_choice") != "none",
    )


def _require_no_force(body: Mapping[str, Any]) -> None:
    """Refuse what no runtime here keeps: it would answer as if it had not been asked."""
    choice = body.get("tool_choice")
    if choice is None or choice in ("none", "auto"):
        return
    raise RequestRefused(
        "Unsupported value: 'tool_choice' cannot force a tool call on this device;"
        " use 'auto' or 'none'.",
        param="tool_choice",
        code="unsupported_value",
    )


def require_tools_shown(asked: Asked, *, shows_tools: bool) -> None:
    """Refuse tools that the model's chat template would leave out without a word.

    Raises:
        RequestRefused: the template does not mention tools.
    """
    if asked.tools and not shows_tools:
        raise RequestRefused(
            "Unsupported parameter: 'tools' is not supported with this model: its chat"
            " template does not mention tools.",
            param="tools",
            code="unsupported_parameter",
        )


def _legacy_logprobs(body: dict[str, Any]) -> int | None:
    """Return how many are to be listed; the runtime takes 0 for no figures at all."""
    listed: int | None = body.get("logprobs")
    if listed is not None:
        body["logprobs"] = max(listed, 1)
    return listed


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


_SAMPLING: dict[str, Check] = {
    "model": checks.kind(str, "a model's name"),
    "max_tokens": checks.integer(1, 1 << 20),
    "temperature": checks.number(0, 2),
    "top_p": checks.number(0, 1),
    "top_k": checks.integer(0, 1 << 20),
    "min_p": checks.number(0, 1),
    "repeat_penalty": checks.number(0.1, 10),
    "presence_penalty": checks.number(-2, 2),
    "frequency_penalty": checks.number(-2, 2),
    "seed": checks.integer(-(1 << 63), (1 << 63) - 1),
    "stop": checks.stop,
    "n": checks.only(1, "1"),
    "stream": checks.kind(bool, "true or false"),
    "stream_options": checks.kind(dict, "an object"),
    "logit_bias": checks.logit_bias,
}
_CHAT_PARAMETERS: dict[str, Check] = {
    **_SAMPLING,
    "messages": checks.messages,
    "max_completion_tokens": checks.integer(1, 1 << 20),
    "logprobs": checks.kind(bool, "true or false"),
    "top_logprobs": checks.integer(0, 20),
    "response_format": checks.response_format,
    "tools": checks.tools,
    "tool_choice": checks.tool_choice,
    "parallel_tool_calls": checks.kind(bool, "true or false"),
}
_PLAIN_PARAMETERS: dict[str, Check] = {
    **_SAMPLING,
    "prompt": checks.kind(str, "one text (lists are not supported)"),
    "logprobs": checks.integer(0, 5),
    "echo": checks.only(False, "false"),
    "best_of": checks.only(1, "1"),
    "suffix": checks.only(None, "null"),
}
