"""What every inference runtime promises, as tests.

Subclass `RuntimeContract` in a test module and give it a `subject` fixture; pytest then
runs every promise against real worker processes. A third party's runtime can do the same.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from slmops.domain.errors import InvalidInputError, UnavailableError
from slmops.runtimes.address import Address, open_client
from slmops.runtimes.base import WorkerSettings, load_runtime
from slmops.runtimes.golden import ask_golden, record_golden
from slmops.runtimes.speed import SpeedPlan, measure_speed
from slmops.runtimes.worker import Worker, start_worker
from slmops.testing.contracts.malformed import malformed_artefacts
from slmops.testing.stage import wait_until

CHAT = "/v1/chat/completions"
_OK, _CLIENT_ERROR, _UNAUTHORIZED = 200, 400, 401
_GONE_S = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class RuntimeSubject:
    """The runtime under test and something it can serve."""

    runtime: str
    """Its name."""
    artefact: Path
    """A good artefact."""
    settings: WorkerSettings = field(
        default_factory=lambda: WorkerSettings(context_tokens=256, parallel=2)
    )
    """How to serve it; at least two requests at a time."""
    unicode_answer: tuple[str, str] = ("Repeat this: 🙂🙂", "🙂")
    """A prompt, and a character of several tokens to force into its answer."""


def ask(worker: Worker, path: str = CHAT, **body: object) -> httpx.Response:
    """Send one request without streaming."""
    if path == CHAT and "messages" not in body:
        body["messages"] = [{"role": "user", "content": str(body.pop("prompt"))}]
    body = {"temperature": 0, **body}
    with open_client(worker.address, timeout_s=60) as client:
        return client.post(path, json=body)


def answer_text(response: httpx.Response) -> str:
    """Return the answer of a response that must be good."""
    assert response.status_code == _OK, response.text
    return str(response.json()["choices"][0]["message"]["content"])


def stream(worker: Worker, **body: object) -> list[dict[str, Any]]:
    """Send one streamed chat request; return its chunks."""
    chunks = []
    prompt = str(body.pop("prompt"))
    body = {
        "messages": [{"role": "user", "content": prompt}],
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        **body,
    }
    ended = False
    with (
        open_client(worker.address, timeout_s=60) as client,
        client.stream("POST", CHAT, json=body) as response,
    ):
        assert response.status_code == _OK
        for line in response.iter_lines():
            if line == "data: [DONE]":
                ended = True
            elif line.startswith("data: "):
                chunks.append(json.loads(line.removeprefix("data: ")))
    assert ended, "a stream must end with [DONE]"
    return chunks


def streamed_text(chunks: list[dict[str, Any]]) -> str:
    """Join the text of a chat stream."""
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


def is_running(pid: int) -> bool:
    """Return whether a process runs; one that only waits to be reaped does not."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] != "Z"


_PARENT = """
import sys, time
from pathlib import Path
from slmops.runtimes.base import WorkerSettings
from slmops.runtimes.worker import start_worker
worker = start_worker(sys.argv[1], Path(sys.argv[2]), WorkerSettings(context_tokens=256))
print(worker.pid, flush=True)
time.sleep(60)
"""


class RuntimeContract:
    """Inherit, and give a module- or class-scoped fixture `subject`."""

    @pytest.fixture(scope="class")
    @classmethod
    def worker(cls, subject: RuntimeSubject) -> Iterator[Worker]:
        """Serve the good artefact."""
        with start_worker(
            subject.runtime, subject.artefact, subject.settings
        ) as worker:
            yield worker

    def test_it_names_its_version_and_formats(self, subject: RuntimeSubject) -> None:
        runtime = load_runtime(subject.runtime)
        assert runtime.name == subject.runtime
        assert runtime.version()
        assert runtime.formats

    def test_it_is_healthy_and_lists_one_model_once_ready(self, worker: Worker) -> None:
        assert worker.alive()
        assert worker.load_ms > 0
        assert httpx.get(worker.url + "/health").status_code == _OK
        with open_client(worker.address) as client:
            assert len(client.get("/v1/models").json()["data"]) == 1

    def test_only_its_parent_may_ask_it(self, worker: Worker) -> None:
        body = {"prompt": "Hi", "messages": [{"role": "user", "content": "Hi"}]}
        for key in (None, "wrong", f"{worker.api_key}x"):
            for path in (CHAT, "/v1/completions", "/completion"):
                with open_client(Address(worker.url, key), timeout_s=60) as client:
                    response = client.post(path, json={**body, "max_tokens": 1})
                assert response.status_code == _UNAUTHORIZED, (key, path)
                assert "choices" not in response.text

    def test_its_key_is_its_own_and_shown_to_no_other_process(
        self, worker: Worker, subject: RuntimeSubject
    ) -> None:
        key = worker.api_key
        assert key
        assert len(key) >= 43  # 256 bits in base64
        for name in ("cmdline", "environ"):
            assert key.encode() not in Path(f"/proc/{worker.pid}/{name}").read_bytes()
        assert key not in worker.log_tail()
        assert key not in repr(worker.address)
        with start_worker(
            subject.runtime, subject.artefact, subject.settings
        ) as another:
            assert another.api_key != key

    def test_greedy_answers_repeat(self, worker: Worker) -> None:
        prompt = "Write one sentence about rain."
        texts = {
            answer_text(ask(worker, prompt=prompt, max_tokens=12)) for _ in range(3)
        }
        assert len(texts) == 1

    def test_a_shorter_greedy_answer_is_a_prefix_of_a_longer(
        self, worker: Worker
    ) -> None:
        prompt = "Name three fruits, please."
        short = answer_text(ask(worker, prompt=prompt, max_tokens=4))
        long = answer_text(ask(worker, prompt=prompt, max_tokens=12))
        assert short
        assert long.startswith(short)

    def test_an_answer_ends_before_the_stop_text(self, worker: Worker) -> None:
        prompt = "Write one sentence about rain."
        full = answer_text(ask(worker, prompt=prompt, max_tokens=12))
        stop = full[len(full) // 2 :][:3]
        response = ask(worker, prompt=prompt, max_tokens=12, stop=[stop])
        assert answer_text(response) == full[: full.index(stop)]
        assert response.json()["choices"][0]["finish_reason"] == "stop"

    def test_streaming_gives_the_same_text_and_usage(self, worker: Worker) -> None:
        prompt = "What do bees make?"
        whole = ask(worker, prompt=prompt, max_tokens=12)
        chunks = stream(worker, prompt=prompt, max_tokens=12)
        assert streamed_text(chunks) == answer_text(whole)
        usage = [chunk["usage"] for chunk in chunks if chunk.get("usage")][-1]
        for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
            assert usage[name] == whole.json()["usage"][name]

    def test_usage_counts_add_up(self, worker: Worker) -> None:
        response = ask(worker, prompt="Count to ten.", max_tokens=5).json()
        usage = response["usage"]
        assert usage["completion_tokens"] == len("12345")
        assert usage["total_tokens"] == usage["prompt_tokens"] + 5
        assert response["choices"][0]["finish_reason"] == "length"

    def test_plain_completions_answer_too(self, worker: Worker) -> None:
        response = ask(worker, "/v1/completions", prompt="Once upon", max_tokens=4)
        assert response.status_code == _OK
        assert response.json()["choices"][0]["text"]

    def test_log_probabilities_come_in_openai_form(self, worker: Worker) -> None:
        response = ask(
            worker, prompt="Hello", max_tokens=4, logprobs=True, top_logprobs=3
        )
        entries = response.json()["choices"][0]["logprobs"]["content"]
        assert len(entries) == len("1234")
        for entry in entries:
            assert entry["logprob"] <= 0
            listed = [item["logprob"] for item in entry["top_logprobs"]]
            assert listed == sorted(listed, reverse=True)
            assert len(listed) == len("123")
            assert entry["logprob"] == pytest.approx(listed[0])

    def test_characters_of_several_tokens_arrive_whole(
        self, worker: Worker, subject: RuntimeSubject
    ) -> None:
        prompt, character = subject.unicode_answer
        options: dict[str, Any] = {
            "grammar": f'root ::= "a{character}b{character}"',
            "max_tokens": 40,
        }
        text = answer_text(ask(worker, prompt=prompt, **options))
        chunks = stream(worker, prompt=prompt, **options)
        assert text == f"a{character}b{character}"
        assert streamed_text(chunks) == text
        assert all("\ufffd" not in json.dumps(chunk) for chunk in chunks)

    def test_a_prompt_longer_than_the_context_is_a_clear_client_error(
        self, worker: Worker
    ) -> None:
        response = ask(worker, prompt="word " * 2000, max_tokens=4)
        assert response.status_code == _CLIENT_ERROR
        error = response.json()["error"]
        assert error["type"] == "exceed_context_size_error"
        assert "context" in error["message"]
        assert answer_text(ask(worker, prompt="Still there?", max_tokens=4))

    def test_an_answer_ends_where_the_context_does(self, worker: Worker) -> None:
        response = ask(worker, prompt="word " * 150, max_tokens=500, ignore_eos=True)
        assert response.status_code == _OK
        assert worker.alive()

    def test_requests_that_are_no_json_are_client_errors(self, worker: Worker) -> None:
        for raw in (b"", b"{", b"[]", b"\xff\xfe", b'{"messages": 3}'):
            with open_client(worker.address, timeout_s=20) as client:
                response = client.post(CHAT, content=raw)
            assert _CLIENT_ERROR <= response.status_code < 500 or raw == b"[]"
        assert answer_text(ask(worker, prompt="Still there?", max_tokens=4))

    def test_requests_at_once_get_the_answers_they_get_alone(
        self, worker: Worker
    ) -> None:
        prompts = ["What do bees make?", "How many days are in a week?"]
        alone = [answer_text(ask(worker, prompt=p, max_tokens=10)) for p in prompts]
        together: dict[int, str] = {}

        def run(index: int) -> None:
            response = ask(worker, prompt=prompts[index], max_tokens=10)
            together[index] = answer_text(response)

        threads = [threading.Thread(target=run, args=(n,)) for n in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert [together[n] for n in range(2)] == alone

    def test_a_caller_who_leaves_frees_the_slot(self, worker: Worker) -> None:
        body = {
            "messages": [{"role": "user", "content": "Tell a long story. " * 8}],
            "max_tokens": 150,
            "stream": True,
            "ignore_eos": True,
        }
        for _ in range(4):
            with (
                contextlib.suppress(httpx.HTTPError),
                open_client(worker.address, timeout_s=60) as client,
                client.stream("POST", CHAT, json=body) as gone,
            ):
                next(gone.iter_lines())
        begin = time.monotonic()
        assert answer_text(ask(worker, prompt="Still there?", max_tokens=2))
        assert time.monotonic() - begin < 20

    def test_golden_answers_score_as_they_were_recorded(self, worker: Worker) -> None:
        golden = record_golden(worker.address, ["What do bees make?", "Say hello."], 6)
        run = ask_golden(worker.address, golden)
        for prompt, score in zip(golden.prompts, run.scores, strict=True):
            expected = [token.logprob for token in prompt.answer]
            assert score.logprobs == pytest.approx(expected, abs=0.02), (
                f"recorded {expected}, asked {score.logprobs}"
            )
        assert run.decode_tokens_per_s
        assert run.decode_tokens_per_s > 0

    def test_an_unlikely_golden_answer_scores_lower(self, worker: Worker) -> None:
        golden = record_golden(worker.address, ["What do bees make?"], 4)
        odd = tuple(replace(token, text=" zebra") for token in golden.prompts[0].answer)
        strange = replace(golden, prompts=(replace(golden.prompts[0], answer=odd[:1]),))
        good = ask_golden(worker.address, golden).scores[0].logprobs[0]
        assert ask_golden(worker.address, strange).scores[0].logprobs[0] < good - 1

    def test_its_speed_and_memory_can_be_measured(
        self, worker: Worker, subject: RuntimeSubject
    ) -> None:
        plan = SpeedPlan(runs=2, prompt_tokens=16, answer_tokens=8)
        speed = measure_speed(worker, subject.settings, plan)
        assert speed.first_token_ms.value > 0
        assert speed.decode_tokens_per_s.low > 0
        assert speed.peak_rss_mib >= speed.rss_anon_mib > 0
        assert subject.runtime in speed.machine

    def test_malformed_artefacts_are_refused_and_leave_nothing_behind(
        self, subject: RuntimeSubject, tmp_path: Path
    ) -> None:
        served = []
        settings = replace(subject.settings, memory_limit_mib=1024, start_timeout_s=30)
        for name, path in malformed_artefacts(subject.artefact, tmp_path):
            try:
                start_worker(subject.runtime, path, settings).stop()
            except InvalidInputError as error:
                assert path.name in str(error)
            else:
                served.append(name)
        assert served == []

    def test_stopping_ends_the_process_and_gives_its_memory_back(
        self, subject: RuntimeSubject
    ) -> None:
        worker = start_worker(subject.runtime, subject.artefact, subject.settings)
        memory = worker.memory()
        assert 0 < memory.anon_mib <= memory.rss_mib <= memory.peak_rss_mib
        begin = time.monotonic()
        worker.stop()
        assert time.monotonic() - begin < _GONE_S
        assert not worker.alive()
        assert worker.exit_reason() == "exit code 0"
        assert not is_running(worker.pid)
        with pytest.raises(UnavailableError):
            worker.memory()
        worker.stop()

    def test_a_killed_worker_is_seen_and_golden_questions_say_so(
        self, subject: RuntimeSubject
    ) -> None:
        with start_worker(
            subject.runtime, subject.artefact, subject.settings
        ) as worker:
            golden = record_golden(worker.address, ["Say hello."], 2)
            os.kill(worker.pid, signal.SIGKILL)
            with pytest.raises(UnavailableError):
                ask_golden(worker.address, golden)
            wait_until(lambda: not worker.alive(), "the end of the worker")
            assert worker.exit_reason() == "signal SIGKILL"

    def test_the_child_ends_when_its_parent_is_killed(
        self, subject: RuntimeSubject
    ) -> None:
        command = [
            sys.executable,
            "-c",
            _PARENT,
            subject.runtime,
            str(subject.artefact),
        ]
        parent = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert is_running(child)
        parent.kill()
        parent.wait()
        parent.stdout.close()
        deadline = time.monotonic() + _GONE_S
        while is_running(child) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not is_running(child)
