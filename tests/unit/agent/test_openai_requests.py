"""Requests: what is passed on, what is dropped, and how a wrong one is named."""

from typing import Any

import pytest

from slmops.agent.openai_errors import (
    RequestRefused,
    refusal_of_runtime,
    refused_body,
    unavailable_body,
)
from slmops.agent.openai_requests import (
    CHAT,
    PLAIN,
    Asked,
    read_request,
    require_tools_shown,
)
from slmops.domain.errors import UnavailableError
from slmops.wire import codec

USER = {"role": "user", "content": "Hi"}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {}}}
CALL = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}


def read(path: str = CHAT, /, **body: object) -> Asked:
    return read_request(path, codec.encode_json(body))


def refused(path: str = CHAT, /, **body: object) -> RequestRefused:
    with pytest.raises(RequestRefused) as caught:
        read(path, **body)
    document = refused_body(caught.value)
    assert set(document) == {"error"}
    assert set(document["error"]) == {"message", "type", "param", "code"}
    assert document["error"]["type"] == "invalid_request_error"
    return caught.value


def test_known_parameters_are_passed_on_and_the_model_is_taken_out() -> None:
    asked = read(messages=[USER], model="sample", temperature=0, stop=["a", "b"])
    assert asked.body == {"messages": [USER], "temperature": 0, "stop": ["a", "b"]}
    assert asked.model == "sample"
    assert not asked.stream


def test_parameters_of_the_cloud_and_nulls_are_dropped() -> None:
    asked = read(messages=[USER], user="me", store=True, metadata={}, seed=None, n=None)
    assert asked.body == {"messages": [USER]}


def test_usage_is_always_counted_but_only_shown_to_those_who_ask() -> None:
    plain = read(messages=[USER], stream=True)
    asking = read(messages=[USER], stream=True, stream_options={"include_usage": True})
    assert plain.body["stream_options"] == {"include_usage": True}
    assert (plain.include_usage, asking.include_usage) == (False, True)
    whole = read(messages=[USER], stream_options={"include_usage": True})
    assert "stream_options" not in whole.body


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", "warm"),
        ("temperature", True),
        ("temperature", 10**300),
        ("top_p", 1.5),
        ("top_k", -1),
        ("top_k", 1.5),
        ("min_p", []),
        ("max_tokens", 0),
        ("max_tokens", 1 << 40),
        ("max_completion_tokens", "many"),
        ("presence_penalty", 3),
        ("frequency_penalty", -3),
        ("repeat_penalty", 0),
        ("seed", 1 << 63),
        ("n", 2),
        ("n", True),
        ("n", 1.0),
        ("stream", "yes"),
        ("stream_options", True),
        ("stop", 3),
        ("stop", ["x"] * 17),
        ("stop", ["x", None]),
        ("logprobs", 1),
        ("top_logprobs", 21),
        ("logit_bias", [1]),
        ("logit_bias", {"word": 1}),
        ("logit_bias", {"5": "much"}),
        ("logit_bias", {"5": 101}),
        ("logit_bias", {"9" * 30: 1}),
        ("response_format", "json"),
        ("response_format", {"type": "xml"}),
        ("response_format", {"type": 3}),
        ("response_format", {"type": "json_schema"}),
        ("response_format", {"type": "json_schema", "json_schema": {"schema": 3}}),
        ("tools", {}),
        ("tools", ["look"]),
        ("tools", [{"type": "magic", "function": {"name": "look"}}]),
        ("tools", [{"type": "function", "function": {}}]),
        ("tools", [{"type": "function", "function": {"name": "x", "parameters": 3}}]),
        ("tools", [{"type": "function", "function": {"name": "x", "extra": 3}}]),
        ("tools", [TOOL] * 129),
        ("tool_choice", "sometimes"),
        ("tool_choice", {"x": 1}),
        ("parallel_tool_calls", 1),
        ("model", 3),
    ],
)
def test_a_wrong_value_is_refused_by_name(name: str, value: object) -> None:
    error = refused(messages=[USER], **{name: value})
    assert error.status == 400
    assert error.param == name
    assert error.error_code == "invalid_value"
    assert f"{name!r}: expected" in str(error)


@pytest.mark.parametrize(
    "message",
    [
        "text",
        {},
        {"role": "robot", "content": "x"},
        {"role": ["user"], "content": "x"},
        {"role": "user"},
        {"role": "user", "content": None},
        {"role": "user", "content": 3},
        {"role": "user", "content": []},
        {"role": "user", "content": [{"type": "image_url", "image_url": "x"}]},
        {"role": "user", "content": [{"type": "text"}]},
        {"role": "user", "content": "x", "name": 3},
        {"role": "user", "content": "x", "grammar": "root ::= x"},
        {"role": "assistant"},
        {"role": "assistant", "tool_calls": []},
        {"role": "assistant", "tool_calls": "x"},
        {"role": "assistant", "tool_calls": [3]},
        {"role": "assistant", "tool_calls": [{"function": CALL["function"]}]},
        {"role": "assistant", "content": "x", "reasoning_content": 3},
        {"role": "tool", "content": "x", "tool_call_id": 3},
    ],
)
def test_a_malformed_message_never_reaches_the_runtime(message: object) -> None:
    error = refused(messages=[USER, message])
    assert error.param == "messages"
    assert "messages[1]" in str(error)


def test_an_answer_handed_back_as_it_came_is_understood() -> None:
    answer: dict[str, object] = {
        "role": "assistant",
        "content": "Hello",
        "refusal": None,
        "annotations": [],
        "audio": None,
        "function_call": None,
        "tool_calls": None,
        "name": None,
    }
    called = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    result = {"role": "tool", "content": "3", "tool_call_id": "1"}
    asked = read(messages=[USER, answer, called, result])
    assert asked.body["messages"] == [
        USER,
        {"role": "assistant", "content": "Hello"},
        called,
        result,
    ]


@pytest.mark.parametrize(
    "extra",
    [
        {"tools": [TOOL], "tool_choice": "auto"},
        {"tools": [TOOL], "tool_choice": "none"},
        {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
        {"logit_bias": {"15": -100, "16": 2.5}},
        {"stop": "x"},
        {"logprobs": True, "top_logprobs": 20},
    ],
)
def test_good_values_are_passed_on_unchanged(extra: dict[str, object]) -> None:
    assert read(messages=[USER], **extra).body == {"messages": [USER], **extra}


@pytest.mark.parametrize("choice", ["required", TOOL])
def test_a_tool_call_cannot_be_forced_and_is_refused_not_dropped(
    choice: object,
) -> None:
    refusal = refused(messages=[USER], tools=[TOOL], tool_choice=choice)
    assert (refusal.status, refusal.param) == (400, "tool_choice")
    assert refusal.error_code == "unsupported_value"


@pytest.mark.parametrize(
    ("extra", "passes"),
    [
        ({}, True),
        ({"tools": []}, True),
        ({"tools": [TOOL]}, False),
        ({"tools": [TOOL], "tool_choice": "auto"}, False),
        ({"tools": [TOOL], "tool_choice": "none"}, True),
    ],
)
def test_tools_are_refused_where_the_chat_template_leaves_them_out(
    extra: dict[str, object], passes: bool
) -> None:
    asked = read(messages=[USER], **extra)
    require_tools_shown(asked, shows_tools=True)
    if passes:
        require_tools_shown(asked, shows_tools=False)
        return
    with pytest.raises(RequestRefused) as caught:
        require_tools_shown(asked, shows_tools=False)
    assert (caught.value.status, caught.value.param) == (400, "tools")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": 3}, "prompt"),
        ({"prompt": "x", "echo": True}, "echo"),
        ({"prompt": "x", "echo": 0}, "echo"),
        ({"prompt": "x", "best_of": 2}, "best_of"),
        ({"prompt": "x", "suffix": "y"}, "suffix"),
        ({"prompt": "x", "logprobs": 6}, "logprobs"),
        ({"prompt": "x", "messages": [USER]}, "messages"),
        ({}, "prompt"),
    ],
)
def test_a_plain_completion_is_checked_too(body: dict[str, Any], param: str) -> None:
    assert refused(PLAIN, **body).param == param


def test_unknown_and_missing_parameters_have_codes_of_their_own() -> None:
    unknown = refused(messages=[USER], grammar="root ::= x")
    assert (unknown.param, unknown.error_code) == ("grammar", "unknown_parameter")
    missing = refused(model="sample")
    assert missing.error_code == "missing_required_parameter"
    assert missing.param == "messages"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b"3",
        b"null",
        b"\xff\xfe{}",
        b"\xef\xbb\xbf{}",
        b'{"a": NaN}',
        b'{"a": 1e400}',
        b'{"a": "\\ud800"}',
        b'{"a": ' + b"9" * 6000 + b"}",
        b"[" * 100_000,
    ],
)
def test_what_is_no_json_object_is_refused(raw: bytes) -> None:
    with pytest.raises(RequestRefused) as caught:
        read_request(CHAT, raw)
    assert caught.value.status == 400


def test_a_refusal_never_repeats_text_of_the_request() -> None:
    secret = "zebra-4711"
    for body in (
        {"messages": [{"role": "user", "content": 3, "x": secret}]},
        {"messages": [USER], "stop": {"x": secret}},
        {"messages": [USER], "temperature": secret},
        {"messages": secret},
    ):
        assert secret not in str(refused(**body))


def test_the_runtime_s_4xx_and_what_it_could_not_parse_are_the_client_s_fault() -> None:
    too_long = refusal_of_runtime(
        400,
        {
            "error": {
                "type": "exceed_context_size_error",
                "message": "x",
                "n_ctx": 256,
                "n_prompt_tokens": 300,
            }
        },
    )
    assert too_long is not None
    assert too_long.error_code == "context_length_exceeded"
    # llama-server answers 500 here; counted as failures, they would fail a good trial.
    parse = {"error": {"code": 500, "message": "Failed to parse messages: type"}}
    assert refusal_of_runtime(500, parse) is not None
    assert refusal_of_runtime(500, {"error": {"message": "out of memory"}}) is None
    assert refusal_of_runtime(503, "busy") is None
    bare = refusal_of_runtime(404, None)
    assert bare is not None
    assert "404" in str(bare)


def test_lone_surrogates_in_a_message_do_not_break_the_answer() -> None:
    body = unavailable_body(UnavailableError("odd \ud800 text"))
    assert b"odd ? text" in codec.encode_json(body)
