"""The whole device side on a real model: quantized, signed, shipped, tried, served.

SmolLM2-135M-Instruct as Q4_0, one control plane and one agent, each a process of its
own. Every test leaves the device serving release 1.
"""

import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletion

from slmops.domain.device import Budget, DeviceClass
from slmops.domain.ids import Digest
from slmops.domain.release import GoldenSet, ModelRecord, Release
from slmops.registry.blobs import BlobStore
from slmops.runtimes.base import WorkerSettings
from slmops.runtimes.child import STACKS_MIB
from slmops.runtimes.golden import ask_golden, record_golden
from slmops.runtimes.worker import start_worker
from slmops.testing.sample_release import publish_sample, sample_release
from slmops.testing.stage import Stage, stage, wait_until
from slmops.workshop.models import import_model, reference_path
from slmops.workshop.quantize import quantize_gguf

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]

PROMPTS = (
    "What is the capital of France?",
    "Name the colour of the sky on a clear day.",
)
CONTEXT = 512
BUDGET = Budget(memory_mib=400, decode_tokens_per_s=2)
_MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Artefact:
    """A real variant and what a release says of it."""

    model: ModelRecord
    digest: Digest
    bytes: int
    golden: GoldenSet
    logprobs: tuple[float, ...]
    peak_rss_mib: float


@dataclass(frozen=True, kw_only=True)
class Device:
    """One device that serves release 1."""

    stage: Stage
    state: Path
    artefact: Artefact
    first_rollout: str

    def ask(self, question: str) -> ChatCompletion:
        """Ask through the openai client."""
        with self.client() as client:
            return client.chat.completions.create(
                model="sample",
                messages=[{"role": "user", "content": question}],
                temperature=0,
                max_tokens=12,
            )

    def client(self) -> openai.OpenAI:
        """Return a new client: the endpoint's port changes when the agent restarts."""
        url = f"{self.stage.endpoint(self.state)}/v1"
        return openai.OpenAI(base_url=url, api_key="local", max_retries=0)

    def answers(self) -> bool:
        try:
            return bool(self.ask("Hello!").choices[0].message.content)
        except openai.InternalServerError:
            return False

    def model_process(self) -> int:
        """Return the process id of the one model there is."""
        wait_until(lambda: len(self.stage.children("till-1")) == 1, "one model")
        return self.stage.children("till-1")[0]


def make_artefact(built: Stage, source: Path) -> Artefact:
    """Import, quantize and measure: the workshop's parts on the real model."""
    workspace = built.workspace
    model = import_model(str(source), workspace, name="smol")
    blobs = BlobStore(workspace.blobs)
    with blobs.writer() as sink:
        quantize_gguf(reference_path(workspace, model), "Q4_0", sink)
    settings = WorkerSettings(context_tokens=CONTEXT, chat_template=model.chat_template)
    with start_worker("llamacpp", reference_path(workspace, model), settings) as worker:
        golden = record_golden(worker.address, PROMPTS, 4)
    path = blobs.path(sink.digest)
    with start_worker("llamacpp", path, settings) as worker:
        scores = ask_golden(worker.address, golden).scores
        peak = worker.memory().peak_rss_mib
    return Artefact(
        model=model,
        digest=sink.digest,
        bytes=path.stat().st_size,
        golden=golden,
        logprobs=tuple(score.logprobs[0] for score in scores),
        peak_rss_mib=peak,
    )


def publish(
    built: Stage, version: int, artefact: Artefact, everybody: DeviceClass, peak: float
) -> Release:
    """Sign and publish a release of the one variant; its card claims `peak` MiB."""
    release = sample_release(version, classes=(everybody,), runtime="llamacpp")
    (variant,) = release.variants
    (speed,) = variant.card.speed
    measured = replace(
        speed, context_tokens=everybody.context_tokens, peak_rss_mib=peak
    )
    release = replace(
        release,
        model=artefact.model,
        golden=artefact.golden,
        blueprint=replace(release.blueprint, rollout=built.policy),
        variants=(
            replace(
                variant,
                digest=artefact.digest,
                bytes=artefact.bytes,
                golden_logprobs=artefact.logprobs,
                card=replace(
                    variant.card,
                    quantization="Q4_0",
                    bytes=artefact.bytes,
                    speed=(measured,),
                ),
            ),
        ),
    )
    publish_sample(built.workspace.root, [release], now=time.time())
    return release


@pytest.fixture(scope="module")
def device(
    tmp_path_factory: pytest.TempPathFactory, smollm2_gguf: Path
) -> Iterator[Device]:
    with stage(tmp_path_factory.mktemp("real")) as built:
        artefact = make_artefact(built, smollm2_gguf)
        everybody = DeviceClass(
            name="any", runtime="llamacpp", context_tokens=CONTEXT, budget=BUDGET
        )
        publish(built, 1, artefact, everybody, artefact.peak_rss_mib)
        built.serve()
        state = built.enrol("till-1", memory_mib=512)
        built.start_agent(state)
        rollout = built.roll_out("sample-1")
        wait_until(
            lambda: built.operator("GET", f"/v1/rollouts/{rollout}")["state"] == "done",
            "rollout done",
        )
        yield Device(stage=built, state=state, artefact=artefact, first_rollout=rollout)


def test_it_is_committed_after_a_trial_that_measured_every_budget(
    device: Device,
) -> None:
    status = device.stage.status(device.state)
    installation, trial = status["installation"], status["installation"]["trial"]
    assert installation["state"] == "committed"
    assert installation["bytes_downloaded"] == device.artefact.bytes
    assert status["active"]["variant"] == device.artefact.digest
    assert trial["passed"]
    assert trial["card_delta"] < 0.05  # the same bytes on the same kind of processor
    assert trial["decode_tokens_per_s"] > 2
    assert 100 < trial["peak_rss_mib"] < 400
    (member,) = device.stage.operator("GET", f"/v1/rollouts/{device.first_rollout}")[
        "members"
    ]
    assert member["outcome"] == "succeeded"


def test_the_openai_client_gets_an_answer_whole_and_streamed(device: Device) -> None:
    question = "What is the capital of France?"
    whole = device.ask(question)
    text = whole.choices[0].message.content
    assert text is not None
    assert "Paris" in text
    assert whole.model == "sample-1"
    assert whole.usage is not None
    assert 0 < whole.usage.completion_tokens <= 12
    with device.client() as client:
        chunks = list(
            client.chat.completions.create(
                model="sample",
                messages=[{"role": "user", "content": question}],
                temperature=0,
                max_tokens=12,
                stream=True,
                stream_options={"include_usage": True},
            )
        )
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    assert "".join(piece or "" for piece in pieces) == text
    assert sum(bool(piece) for piece in pieces) > 3
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_a_prompt_beyond_the_context_is_refused_in_openais_words(
    device: Device,
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        device.ask("river " * 2 * CONTEXT)
    assert caught.value.code == "context_length_exceeded"
    assert device.answers()


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"role": "user", "content": "x", "name": 3}]},
        {"messages": [{"role": "assistant", "tool_calls": [3]}]},
        {"tools": [{"type": "function", "function": {}}]},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": 3}}},
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"schema": {"$ref": "#/x"}},
            }
        },
        {"top_logprobs": 3},
    ],
    ids=["name", "calls", "tools", "schema", "reference", "logprobs"],
)
def test_a_client_s_mistake_is_a_400_and_no_failure_of_the_model(
    device: Device, body: dict[str, object]
) -> None:
    question = {"messages": [{"role": "user", "content": "Hello!"}], **body}
    url = f"{device.stage.endpoint(device.state)}/v1/chat/completions"
    answer = httpx.post(url, json=question, timeout=20)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_a_killed_model_gives_503_with_a_reason_and_comes_back(device: Device) -> None:
    killed = device.model_process()
    os.kill(killed, signal.SIGKILL)
    with pytest.raises(openai.InternalServerError) as caught:
        device.ask("Hello!")
    assert caught.value.status_code == 503
    assert caught.value.code == "model_unavailable"
    assert caught.value.response.headers["Retry-After"]
    wait_until(device.answers, "recovery")
    assert device.model_process() != killed
    assert device.stage.serving(device.state) == "sample-1"


def test_the_model_s_process_cannot_take_more_memory_than_its_class_allows(
    device: Device,
) -> None:
    limits = Path(f"/proc/{device.model_process()}/limits").read_text()
    (line,) = [line for line in limits.splitlines() if line.startswith("Max data size")]
    assert BUDGET.memory_mib is not None
    expected = int((BUDGET.memory_mib + STACKS_MIB) * _MIB)
    assert line.split()[3:5] == [str(expected), str(expected)]

    # A release whose card claims less than its context takes: 189 MB of keys and values.
    greedy = DeviceClass(
        name="any",
        runtime="llamacpp",
        context_tokens=8192,
        budget=Budget(memory_mib=60),
    )
    label = publish(device.stage, 2, device.artefact, greedy, peak=55).label
    rollout = device.stage.roll_out(label)
    wait_until(
        lambda: (
            device.stage.operator("GET", f"/v1/rollouts/{rollout}")["state"] == "halted"
        ),
        "rollout halted",
    )
    installation = device.stage.status(device.state)["installation"]
    assert installation["state"] == "rolled_back"
    assert (
        "needs more private memory than the limit of 60 MiB" in installation["reason"]
    )
    wait_until(device.answers, "still serving")
    assert device.stage.serving(device.state) == "sample-1"


def test_without_its_control_plane_and_after_a_restart_it_still_serves(
    device: Device,
) -> None:
    port = int(device.stage.url.rpartition(":")[2])
    device.stage.kill("control")
    assert device.answers()
    model = device.model_process()
    device.stage.kill("till-1")
    wait_until(lambda: not Path(f"/proc/{model}").exists(), "no stray model")
    device.stage.start_agent(device.state)
    wait_until(device.answers, "serving offline")
    assert "Paris" in str(device.ask("What is the capital of France?").choices)
    device.stage.serve(port=port)
