"""What the endpoint makes of a runtime's answers, over real sockets."""

import json
import socket
import time

from slmops.testing.endpoint_in_process import LocalEndpoint
from slmops.testing.raw_server import (
    RawServer,
    Received,
    head,
    raw,
)
from slmops.testing.runtime_replies import (
    DONE,
    SSE,
    USAGE,
    ask,
    completion,
    event,
    events_of,
    is_openai_error,
    piece,
    whole,
)


def test_an_answer_carries_the_release_s_name_and_no_runtime_s_figures(
    endpoint: LocalEndpoint,
) -> None:
    tree = ask(endpoint).json()
    assert tree["model"] == "sample-1"
    assert "timings" not in tree
    assert tree["usage"]["completion_tokens"] == 5
    (report,) = endpoint.reports()
    assert (report.requests, report.failures, report.output_tokens) == (1, 0, 5)
    assert sum(report.first_token_ms) == 1
    assert sum(report.decode_tokens_per_s) == 1


def test_a_stream_ends_with_done_and_hides_usage_from_those_who_did_not_ask(
    endpoint: LocalEndpoint, runtime: RawServer
) -> None:
    stream = raw(head(kind=SSE) + piece("Hel") + piece("lo") + USAGE + DONE)
    runtime.replies = [stream]
    plain = events_of(ask(endpoint, stream=True))
    asking = events_of(
        ask(endpoint, stream=True, stream_options={"include_usage": True})
    )
    assert [json.loads(each)["model"] for each in plain[:-1]] == ["sample-1"] * 2
    assert plain[-1] == asking[-1] == "[DONE]"
    assert json.loads(asking[-2])["usage"]["completion_tokens"] == 2
    assert "usage" not in "".join(plain)
    assert "timings" not in "".join(plain + asking)


def test_events_cut_anywhere_by_the_network_are_put_together(
    endpoint: LocalEndpoint, runtime: RawServer
) -> None:
    content = piece("grün") + piece("🙂") + USAGE + DONE

    def byte_by_byte(connection: socket.socket, _: Received) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(head(kind=SSE))
        for byte in content:
            connection.sendall(bytes([byte]))
            time.sleep(0.0002)

    runtime.replies = [byte_by_byte]
    events = events_of(ask(endpoint, stream=True))
    texts = [json.loads(each)["choices"][0]["delta"]["content"] for each in events[:-1]]
    assert texts == ["grün", "🙂"]


def test_odd_but_harmless_fields_do_not_break_an_answer(
    endpoint: LocalEndpoint, runtime: RawServer
) -> None:
    runtime.replies = [
        whole(completion(timings="fast", usage="much", choices=3, __verbose={"a": 1})),
        raw(
            head(kind=SSE)
            + b": a comment\n\n\n\nid: 4\n\n"
            + event({"choices": [3], "usage": {"completion_tokens": -4}})
            + event({"choices": "none", "timings": {"predicted_per_second": "x"}})
            + DONE
        ),
    ]
    tree = ask(endpoint).json()
    assert "__verbose" not in tree
    assert events_of(ask(endpoint, stream=True))[-1] == "[DONE]"
    (report,) = endpoint.reports()
    assert (report.requests, report.failures, report.output_tokens) == (2, 0, 0)


def test_connections_to_the_runtime_are_never_used_twice(
    endpoint: LocalEndpoint, runtime: RawServer
) -> None:
    for _ in range(3):
        ask(endpoint)
    assert len(runtime.received) == 3  # this server takes one request a connection


def test_tools_reach_only_a_model_whose_chat_template_shows_them(
    endpoint: LocalEndpoint, runtime: RawServer
) -> None:
    tools = [{"type": "function", "function": {"name": "look"}}]
    refused = ask(endpoint, tools=tools)
    assert is_openai_error(refused, 400)
    assert refused.json()["error"]["param"] == "tools"
    assert runtime.received == []
    endpoint.serve(runtime.url, shows_tools=True)
    assert ask(endpoint, tools=tools).status_code == 200
    assert json.loads(runtime.received[0].body)["tools"] == tools
    assert is_openai_error(ask(endpoint, tools=tools, tool_choice="required"), 400)
