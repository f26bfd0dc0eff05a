"""The endpoint seen by the real `openai` client."""

from collections.abc import Iterator

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from slmops.testing.stage import Stage, echo_artefact, stage, wait_until

pytestmark = pytest.mark.slow


def said(text: str) -> list[ChatCompletionMessageParam]:
    return [{"role": "user", "content": text}]


QUESTION = said("Name a colour.")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with stage(tmp_path_factory.mktemp("openai")) as built:
        yield serving(built)


def serving(built: Stage) -> str:
    built.publish(1, echo_artefact())
    built.serve()
    state = built.enrol("till-1")
    built.start_agent(state)
    built.roll_out("sample-1")
    wait_until(lambda: built.serving(state) == "sample-1", "sample-1")
    return built.endpoint(state)


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="local", max_retries=0) as client:
        yield client


def test_models_are_listed_under_the_releases_label(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["sample-1"]
    assert client.models.retrieve("sample-1").owned_by == "slmops"


def test_a_chat_completion_has_text_usage_and_the_releases_name(
    client: openai.OpenAI,
) -> None:
    answer = client.chat.completions.create(
        model="sample-1", messages=QUESTION, max_tokens=3, temperature=0, user="me"
    )
    assert answer.choices[0].message.content == "You said:"
    assert answer.model == "sample-1"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 3
    assert not (answer.model_extra or {}).get("timings")


@pytest.mark.parametrize("model", ["sample-1", "sample", "sample-7"])
def test_the_product_and_other_versions_of_it_name_the_model_too(
    client: openai.OpenAI, model: str
) -> None:
    answer = client.chat.completions.create(model=model, messages=QUESTION)
    assert answer.model == "sample-1"


def test_a_streamed_chat_is_the_same_text_in_pieces(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="sample", messages=QUESTION)
    chunks = list(
        client.chat.completions.create(model="sample", messages=QUESTION, stream=True)
    )
    text = "".join(
        chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices
    )
    assert text == whole.choices[0].message.content
    assert len(chunks) > 3
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_streamed_usage_comes_last_for_those_who_ask(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="sample",
            messages=QUESTION,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 0


def test_completions_work_streamed_and_whole(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="sample", prompt="one two", max_tokens=4)
    assert whole.choices[0].text
    pieces = client.completions.create(
        model="sample", prompt="one two", max_tokens=4, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in pieces) == whole.choices[0].text


def test_several_streams_at_once_do_not_mix(client: openai.OpenAI) -> None:
    streams = [
        client.chat.completions.create(
            model="sample",
            messages=said(f"number {index}"),
            stream=True,
        )
        for index in range(4)
    ]
    for index, chunks in enumerate(streams):
        text = "".join(
            chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices
        )
        assert text == f"You said: number {index}"


def test_an_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-4o", messages=QUESTION)
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_beyond_the_context_is_refused_in_openais_words(
    client: openai.OpenAI, stream: bool
) -> None:
    long = said("word " * 400)
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="sample", messages=long, stream=stream)
    assert caught.value.code == "context_length_exceeded"
    assert "256 tokens" in caught.value.message


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 2}, "n"),
        ({"grammar": "root ::= x"}, "grammar"),
        ({"cache_prompt": False}, "cache_prompt"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages"),
    ],
)
def test_a_wrong_parameter_is_named(
    client: openai.OpenAI, extra: dict[str, object], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model="sample", messages=QUESTION, extra_body=extra
        )
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"[]", "application/json", 400),
        (b"\xff\xfe", "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b"{}", "application/json", 400),
        (b"{}", "text/plain", 415),
        (b'{"a": "' + b"x" * 1_100_000 + b'"}', "application/json", 413),
    ],
    ids=["cut", "list", "bytes", "deep", "empty", "form", "large"],
)
def test_a_bad_body_gets_an_error_in_openais_form_and_the_next_request_works(
    url: str, content: bytes, kind: str, status: int
) -> None:
    answer = httpx.post(
        f"{url}/v1/chat/completions", content=content, headers={"Content-Type": kind}
    )
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert httpx.get(f"{url}/healthz").status_code == 200


def test_a_foreign_host_name_is_refused(url: str) -> None:
    answer = httpx.get(f"{url}/v1/models", headers={"Host": "evil.example"})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "host_not_allowed"


def test_an_unknown_route_and_method_are_errors_in_openais_form(url: str) -> None:
    assert "error" in httpx.get(f"{url}/v1/embeddings").json()
    answer = httpx.get(f"{url}/v1/chat/completions")
    assert answer.status_code == 405
    assert "error" in answer.json()


def test_before_any_release_the_endpoint_says_so(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with stage(tmp_path_factory.mktemp("empty")) as built:
        built.publish(1, echo_artefact())
        built.serve()
        state = built.enrol("till-1")
        built.start_agent(state)
        url = built.endpoint(state)
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0)
        with client:
            with pytest.raises(openai.InternalServerError) as caught:
                client.chat.completions.create(model="sample", messages=QUESTION)
            assert list(client.models.list()) == []
        assert caught.value.status_code == 503
        assert caught.value.code == "model_unavailable"
        assert caught.value.response.headers["Retry-After"] == "1"
