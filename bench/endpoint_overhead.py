"""The agent's endpoint against the bare runtime server behind it: TTFT and decode speed.

    python bench/endpoint_overhead.py [--rounds 12] [--kind Q4_K_M] [--json FILE]

One real agent serves SmolLM2-135M on one thread, installed by a real rollout; then the
echo runtime, which sleeps 10 ms a token and leaves the processor to the agent. The same
requests go in turn to the agent and to a bare server: the same runtime with the same
artefact and settings, started beside it (the agent's own child answers to nobody else).
Cases and sides are interleaved, every round swaps who is first. Each request begins with words of its own, so that no
prompt cache helps the second, and has a connection of its own.

Times are the client's. Client, agent and model share the machine's cores. Ratios and
differences are taken pair by pair; shown are their medians with 95 % intervals.
"""

import http.client
import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from device import CONTEXT_TOKENS, install, publish_model
from measure import (
    Column,
    main_thread_cpu_ms,
    median_interval,
    options,
    print_table,
    shown,
    write_json,
)
from model import import_smollm2, quantized

from slmops.domain.release import Estimate
from slmops.runtimes.address import Address
from slmops.runtimes.base import WorkerSettings
from slmops.runtimes.worker import Worker, start_worker
from slmops.testing.stage import Stage, echo_artefact, stage

CHAT, PLAIN = "/v1/chat/completions", "/v1/completions"
ANSWER_TOKENS = 32
ECHO_TOKEN_MS = 10.0
_TEXT = "The old river was wide and slow, and the boats on it were older still. "
_END_TOKENS = {"0": -100, "2": -100}
"""SmolLM2's ends of turn and of text: without them all answers are equally long."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One kind of request."""

    path: str
    """Route."""
    stream: bool
    """Server-sent events?"""
    repeats: int
    """How often the text is in the prompt: about 16 tokens each."""


CASES: Mapping[str, Case] = {
    "chat, streamed": Case(path=CHAT, stream=True, repeats=1),
    "chat, streamed, longer": Case(path=CHAT, stream=True, repeats=8),
    "completion, streamed": Case(path=PLAIN, stream=True, repeats=4),
    "chat, whole": Case(path=CHAT, stream=False, repeats=1),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Serving:
    """An agent that serves a model."""

    bare: Address
    """Of a server of the same model without an agent."""
    agent: Address
    """Of the agent's endpoint."""
    agent_pid: int
    """Its process; the endpoint runs in its main thread."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Timed:
    """One answer as a client sees it."""

    first_ms: float
    """Request to first text; to the end when it is not streamed."""
    decode_per_s: float
    """Tokens a second after the first; over the whole answer when not streamed."""
    prompt_tokens: int
    """As the server counts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """The same kind of request, both ways, one right after the other."""

    bare: Timed
    """Past the agent."""
    agent: Timed
    """Through it."""
    agent_cpu_ms: float
    """CPU time that the endpoint's thread spent on it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Overhead:
    """One case; medians with 95 % intervals."""

    prompt_tokens: int
    """Median length of the prompts."""
    bare_first_ms: Estimate
    """TTFT of the bare server; of whole answers: their time."""
    added_first_ms: Estimate
    """What the agent adds to it."""
    first_ratio: Estimate
    """Agent / bare."""
    bare_decode_per_s: Estimate
    """Decode speed of the bare server."""
    decode_ratio: Estimate
    """Agent / bare."""
    agent_cpu_ms: Estimate
    """CPU time of the endpoint per request."""


def ask(address: Address, case: Case, number: int) -> Timed:
    """Send one request and time its answer."""
    body = json.dumps(_body(case, number))
    place = address.url.removeprefix("http://")
    connection = http.client.HTTPConnection(place, timeout=60)
    headers = {"Content-Type": "application/json", "Connection": "close"}
    headers |= address.headers
    begun = time.perf_counter()
    connection.request("POST", case.path, body, headers)
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    timed = _read_stream(answer, begun) if case.stream else _read_whole(answer, begun)
    connection.close()
    return timed


def _body(case: Case, number: int) -> dict[str, Any]:
    # Digits that no other request of this run begins with, in equally many tokens.
    text = f"{number:04d} " + _TEXT * case.repeats
    body: dict[str, Any] = {
        "max_tokens": ANSWER_TOKENS,
        "temperature": 0,
        "logit_bias": _END_TOKENS,
        "stream": case.stream,
    }
    if case.path == CHAT:
        # The system turn comes first in the template.
        turns = (("system", text), ("user", "Go on."))
        body["messages"] = [{"role": role, "content": said} for role, said in turns]
    else:
        body["prompt"] = text
    if case.stream:
        body["stream_options"] = {"include_usage": True}
    return body


def _read_stream(answer: http.client.HTTPResponse, begun: float) -> Timed:
    first = last = 0.0
    usage: dict[str, Any] = {}
    for line in answer:
        if not line.startswith(b"data: {"):
            continue
        now = time.perf_counter()
        chunk = json.loads(line[6:])
        usage = chunk.get("usage") or usage
        if any(_text(choice) for choice in chunk["choices"]):
            first, last = first or now, now
    return Timed(
        first_ms=1000 * (first - begun),
        decode_per_s=(_length(usage) - 1) / (last - first),
        prompt_tokens=usage["prompt_tokens"],
    )


def _read_whole(answer: http.client.HTTPResponse, begun: float) -> Timed:
    usage = json.loads(answer.read())["usage"]
    total = time.perf_counter() - begun
    return Timed(
        first_ms=1000 * total,
        decode_per_s=_length(usage) / total,
        prompt_tokens=usage["prompt_tokens"],
    )


def _text(choice: Mapping[str, Any]) -> bool:
    return bool(choice.get("text") or choice.get("delta", {}).get("content"))


def _length(usage: Mapping[str, Any]) -> int:
    assert usage["completion_tokens"] == ANSWER_TOKENS, usage
    return ANSWER_TOKENS


def compare(serving: Serving, rounds: int) -> dict[str, Overhead]:
    """Ask the bare server and the agent in turn, every case, round after round."""
    pairs: dict[str, list[Pair]] = {name: [] for name in CASES}
    number = 0
    for index in range(rounds + 1):
        for name, case in CASES.items():
            number += 2
            pairs[name].append(_pair(serving, case, number, agent_first=index % 2 == 0))
    return {name: _overhead(found[1:]) for name, found in pairs.items()}


def _pair(serving: Serving, case: Case, number: int, *, agent_first: bool) -> Pair:
    def through_agent() -> tuple[Timed, float]:
        before = main_thread_cpu_ms(serving.agent_pid)
        timed = ask(serving.agent, case, number + 1)
        return timed, main_thread_cpu_ms(serving.agent_pid) - before

    if agent_first:
        agent, spent = through_agent()
        bare = ask(serving.bare, case, number)
    else:
        bare = ask(serving.bare, case, number)
        agent, spent = through_agent()
    return Pair(bare=bare, agent=agent, agent_cpu_ms=spent)


def _overhead(pairs: list[Pair]) -> Overhead:
    return Overhead(
        prompt_tokens=sorted(p.bare.prompt_tokens for p in pairs)[len(pairs) // 2],
        bare_first_ms=median_interval([p.bare.first_ms for p in pairs]),
        added_first_ms=median_interval(
            [p.agent.first_ms - p.bare.first_ms for p in pairs]
        ),
        first_ratio=median_interval(
            [p.agent.first_ms / p.bare.first_ms for p in pairs]
        ),
        bare_decode_per_s=median_interval([p.bare.decode_per_s for p in pairs]),
        decode_ratio=median_interval(
            [p.agent.decode_per_s / p.bare.decode_per_s for p in pairs]
        ),
        agent_cpu_ms=median_interval([p.agent_cpu_ms for p in pairs]),
    )


@contextmanager
def serving_model(folder: Path, kind: str) -> Iterator[Serving]:
    """Let a device install SmolLM2 and serve it."""
    workspace, record = import_smollm2(folder / "models")
    artefact = quantized(workspace, record, kind)
    settings = WorkerSettings(
        context_tokens=CONTEXT_TOKENS, chat_template=record.chat_template
    )
    with (
        stage(folder / "real") as fleet,
        start_worker("llamacpp", artefact, settings) as bare,
    ):
        yield _installed(fleet, publish_model(fleet, record, artefact), bare)


@contextmanager
def serving_echo(folder: Path) -> Iterator[Serving]:
    """Let a device install an echo model and serve it."""
    artefact = echo_artefact(delay_ms=ECHO_TOKEN_MS, answer=_TEXT * 4)
    path = folder / "echo.json"
    path.write_bytes(artefact)
    settings = WorkerSettings(context_tokens=CONTEXT_TOKENS)
    with (
        stage(folder / "echo") as fleet,
        start_worker("echo", path, settings) as bare,
    ):
        yield _installed(fleet, fleet.publish(1, artefact).label, bare)


def _installed(fleet: Stage, label: str, bare: Worker) -> Serving:
    fleet.serve()
    state = fleet.enrol("device")
    fleet.start_agent(state)
    install(fleet, state, label)
    # Its quick polls are not what is measured; the agent serves on.
    fleet.kill("control")
    return Serving(
        bare=bare.address,
        agent=Address(fleet.endpoint(state)),
        agent_pid=fleet.process(state.name).pid,
    )


def _show(title: str, results: Mapping[str, Overhead]) -> None:
    print_table(
        (
            Column(title=title, width=28),
            Column(title="prompt", width=6),
            Column(title="bare TTFT ms", width=19),
            Column(title="agent adds ms", width=16),
            Column(title="TTFT ratio", width=16),
            Column(title="bare tok/s", width=16),
            Column(title="decode ratio", width=16),
            Column(title="agent CPU ms", width=16),
        ),
        [
            (
                name,
                str(row.prompt_tokens),
                shown(row.bare_first_ms),
                shown(row.added_first_ms),
                shown(row.first_ratio, 2),
                shown(row.bare_decode_per_s),
                shown(row.decode_ratio, 2),
                shown(row.agent_cpu_ms),
            )
            for name, row in results.items()
        ],
    )


def main() -> None:
    """Measure, print, write."""
    parser = options(__doc__, rounds=12)
    parser.add_argument("--kind", default="Q4_K_M")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        with serving_echo(Path(name)) as serving:
            echo = compare(serving, chosen.rounds)
        with serving_model(Path(name), chosen.kind) as serving:
            model = compare(serving, chosen.rounds)
    _show(f"SmolLM2 {chosen.kind}, 1 thread", model)
    print()
    _show(f"echo, {ECHO_TOKEN_MS:g} ms a token", echo)
    write_json(chosen.json, {"smollm2": model, "echo": echo})


if __name__ == "__main__":
    main()
