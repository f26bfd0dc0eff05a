"""How a value of the OpenAI API must look before a model's runtime sees it.

Runtimes answer a malformed message with a 500 (llama-server does), which would count
against the model: a client's mistake must not roll a good release back. What a runtime
would silently ignore is refused too.
"""

from collections.abc import Callable, Mapping
from typing import Any

Check = Callable[[Any], str | None]
"""Returns what was expected when the value is wrong, else None."""

MAX_LISTED = 2048
"""Messages in one request."""
MAX_TOOLS = 128
"""As OpenAI allows."""
_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_MAX_STOPS = 16
_MAX_BIAS = 100
_TOKEN_DIGITS = 9


def number(low: float, high: float) -> Check:
    """Check for a number in a closed range."""

    def check(value: Any) -> str | None:  # noqa: ANN401 - untrusted JSON
        good = isinstance(value, int | float) and not isinstance(value, bool)
        return (
            None if good and low <= value <= high else f"a number {low:g} to {high:g}"
        )

    return check


def integer(low: int, high: int) -> Check:
    """Check for a whole number in a closed range."""

    def check(value: Any) -> str | None:  # noqa: ANN401 - untrusted JSON
        good = isinstance(value, int) and not isinstance(value, bool)
        if good and low <= value <= high:
            return None
        return f"an integer {low} to {high}"

    return check


def kind(wanted: type, expected: str) -> Check:
    """Check for a type."""

    def check(value: Any) -> str | None:  # noqa: ANN401 - untrusted JSON
        return None if isinstance(value, wanted) else expected

    return check


def only(allowed: object, expected: str) -> Check:
    """Check for one value of one type: ``true`` is not 1, and 0 is not ``false``."""

    def check(value: Any) -> str | None:  # noqa: ANN401 - untrusted JSON
        same = type(value) is type(allowed) and value == allowed
        return None if same else expected

    return check


def stop(value: Any) -> str | None:  # noqa: ANN401 - untrusted JSON
    """Check texts that end an answer."""
    texts = value if isinstance(value, list) else [value]
    good = len(texts) <= _MAX_STOPS and all(isinstance(text, str) for text in texts)
    return None if good else f"text or a list of at most {_MAX_STOPS} texts"


def logit_bias(value: Any) -> str | None:  # noqa: ANN401 - untrusted JSON
    """Check biases: token ids as text, like every key of JSON."""
    weigh = number(-_MAX_BIAS, _MAX_BIAS)
    good = isinstance(value, dict) and all(
        key.isdecimal() and len(key) <= _TOKEN_DIGITS and weigh(bias) is None
        for key, bias in value.items()
    )
    return None if good else f"an object of token ids and -{_MAX_BIAS} to {_MAX_BIAS}"


def response_format(value: Any) -> str | None:  # noqa: ANN401 - untrusted JSON
    """Check a format; the runtime itself checks the schema's content."""
    named = value.get("type") if isinstance(value, dict) else None
    if named in ("text", "json_object"):
        return None
    if named != "json_schema":
        return "an object with type text, json_object or json_schema"
    wrapped = value.get("json_schema")
    if isinstance(wrapped, dict) and isinstance(wrapped.get("schema"), dict):
        return None
    return "json_schema with an object called schema"


def tools(value: Any) -> str | None:  # noqa: ANN401 - untrusted JSON
    """Check tools: functions with names."""
    if not isinstance(value, list) or len(value) > MAX_TOOLS:
        return f"a list of at most {MAX_TOOLS} tools"
    for index, tool in enumerate(value):
        function = _function_of(tool)
        if function is None or not isinstance(function.get("name"), str):
            return f"tools[{index}] to be of type function, with a name"
        wrong = _wrong_field(function, _FUNCTION_FIELDS)
        if wrong is not None:
            return f"tools[{index}].function to be {wrong}"
    return None


def tool_choice(value: Any) -> str | None:  # noqa: ANN401 - untrusted JSON
    """Check a choice among tools."""
    if isinstance(value, str) and value in ("none", "auto", "required"):
        return None
    function = _function_of(value)
    if function is not None and isinstance(function.get("name"), str):
        return None
    return "none, auto, required, or a function's name in an object"


def messages(value: Any) -> str | None:  # noqa: ANN401 - untrusted JSON
    """Check a conversation."""
    if not isinstance(value, list) or not 0 < len(value) <= MAX_LISTED:
        return f"a list of 1 to {MAX_LISTED} messages"
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
    wrong = _wrong_field(message, _MESSAGE_FIELDS)
    if wrong is not None:
        return wrong
    if message.get("content") is not None:
        return None
    if message["role"] == "assistant" and message.get("tool_calls"):
        return None
    return (
        "with content or tool_calls"
        if message["role"] == "assistant"
        else f"with {_CONTENT}"
    )


def passed_on(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a runtime gets of a checked message: no nulls, nothing it ignores."""
    return {
        name: value
        for name, value in message.items()
        if name == "content" or (value is not None and name not in _HANDED_BACK)
    }


def _content(value: Any) -> str | None:  # noqa: ANN401 - untrusted JSON
    if isinstance(value, str):
        return None
    good = isinstance(value, list) and value and all(map(_is_text_part, value))
    return None if good else _CONTENT


_CONTENT = "content of text, or a list of text parts (this model reads text only)"


def _is_text_part(part: Any) -> bool:  # noqa: ANN401 - untrusted JSON
    return (
        isinstance(part, dict)
        and part.get("type") == "text"
        and isinstance(part.get("text"), str)
    )


def _tool_calls(value: Any) -> str | None:  # noqa: ANN401 - untrusted JSON
    calls = value if isinstance(value, list) else [None]
    for call in calls:
        function = _function_of(call)
        good = (
            function is not None
            and isinstance(function.get("name"), str)
            and isinstance(function.get("arguments"), str)
        )
        if not good:
            return "a list of calls of type function, with name and arguments as text"
    return None


def _function_of(value: Any) -> dict[str, Any] | None:  # noqa: ANN401 - untrusted JSON
    """Return what ``{"type": "function", "function": {…}}`` holds."""
    if not isinstance(value, dict) or value.get("type") != "function":
        return None
    function = value.get("function")
    return function if isinstance(function, dict) else None


def _wrong_field(tree: Mapping[str, Any], known: Mapping[str, Check]) -> str | None:
    """Say what is wrong with the first wrong field; null is like not given."""
    for name, value in tree.items():
        check = known.get(name)
        if check is None:
            return f"without {name[:80]!r}"
        expected = None if value is None else check(value)
        if expected is not None:
            return (
                f"with {expected}" if name == "content" else f"with {name}: {expected}"
            )
    return None


_ANY_TEXT = kind(str, "text")
_MESSAGE_FIELDS: dict[str, Check] = {
    "role": _ANY_TEXT,
    "content": _content,
    "name": _ANY_TEXT,
    "tool_calls": _tool_calls,
    "tool_call_id": _ANY_TEXT,
    "reasoning_content": _ANY_TEXT,
    "refusal": _ANY_TEXT,
    "annotations": kind(list, "a list"),
    "audio": only(None, "null"),
    "function_call": only(None, "null"),
}
_HANDED_BACK = ("refusal", "annotations", "audio", "function_call")
"""Parts of an answer that clients hand back as they came."""
_FUNCTION_FIELDS: dict[str, Check] = {
    "name": _ANY_TEXT,
    "description": _ANY_TEXT,
    "parameters": kind(dict, "an object"),
    "strict": kind(bool, "true or false"),
}
