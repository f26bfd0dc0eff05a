"""Requests without a pause while a real agent exchanges its model again and again.

``python -m slmops.testing.swap_load --requests 10000 --swaps 20`` is the long run.
Every version answers with a text of its own, so that an answer made by two models, or
named after another one than made it, is seen. Long streams run across every swap.
"""

import asyncio
import json
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import click
import httpx

from slmops.testing.stage import Stage, echo_artefact, stage, wait_until

_WORDS, _LONG_WORDS = 4, 150
_CLIENTS = 6
_PATH = "/v1/chat/completions"
MEMORY_MIB = {"overlap": 1024, "queue": 241}
"""What a device has for models; the sample's card promises a peak of 240 MiB."""


def answer_of(version: int) -> str:
    """Return what a version answers; all begin alike, so that every trial passes."""
    return "This is the answer of one model alone:" + f" v{version}" * _LONG_WORDS


@dataclass(kw_only=True, slots=True)
class LoadResult:
    """What became of the requests."""

    swaps: int = 0
    """Models exchanged."""
    answered: Counter[str] = field(default_factory=Counter)
    """Release → whole and right answers."""
    failed: list[str] = field(default_factory=list)
    """Why a request got no whole answer."""
    mixed: list[str] = field(default_factory=list)
    """Answers that no single version gives, or under another one's name."""
    long_streams: int = 0
    """Streams of half a second and more, whole and right."""
    slowest_s: float = 0.0
    """Longest wait for a short answer."""

    @property
    def requests(self) -> int:
        """All that were sent."""
        return sum(self.answered.values()) + len(self.failed) + len(self.mixed)


def swap_under_load(
    folder: Path, *, requests: int, swaps: int, policy: str
) -> LoadResult:
    """Send at least `requests` while the model is exchanged `swaps` times.

    Args:
        folder: for all files of the fleet.
        requests: at least; more until the last swap is done.
        swaps: rollouts, one after the other.
        policy: ``overlap`` or ``queue``: whether two models fit into the device.
    """
    result = LoadResult()
    with stage(folder) as built:
        _publish(built, 1)
        built.serve()
        state = built.enrol("till-1", memory_mib=MEMORY_MIB[policy])
        built.start_agent(state)
        first = built.roll_out("sample-1")
        wait_until(_done(built, first), "sample-1: rollout", timeout_s=120)
        assert built.serving(state) == "sample-1"
        over = threading.Event()
        load = threading.Thread(
            target=lambda: asyncio.run(
                _load(built.endpoint(state), result, over.is_set, requests)
            )
        )
        load.start()
        try:
            for version in range(2, swaps + 2):
                label = _publish(built, version)
                rollout = built.roll_out(label)
                wait_until(_done(built, rollout), f"{label}: rollout", timeout_s=120)
                assert built.serving(state) == label
                result.swaps += 1
        finally:
            over.set()
            load.join()
    return result


def _done(built: Stage, rollout: str) -> Callable[[], bool]:
    def done() -> bool:
        state = built.operator("GET", f"/v1/rollouts/{rollout}")["state"]
        assert state in {"running", "done"}, state
        return bool(state == "done")

    return done


def _publish(built: Stage, version: int) -> str:
    artefact = echo_artefact(answer=answer_of(version), delay_ms=1)
    return built.publish(version, artefact).label


async def _load(
    url: str, result: LoadResult, over: Callable[[], bool], least: int
) -> None:
    async def ask(number: int) -> None:
        while not over() or result.requests < least:
            await _ask(client, result, stream=number % 2 == 0, words=_WORDS)

    async def ask_long() -> None:
        while not over():
            await _ask(client, result, stream=True, words=_LONG_WORDS)

    async with httpx.AsyncClient(base_url=url, timeout=120, trust_env=False) as client:
        await asyncio.gather(*(ask(number) for number in range(_CLIENTS)), ask_long())


async def _ask(
    client: httpx.AsyncClient, result: LoadResult, *, stream: bool, words: int
) -> None:
    body = {
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 11 + 3 * words,
        "stream": stream,
    }
    begin = time.monotonic()
    try:
        names, text = await (_streamed if stream else _whole)(client, body)
    except (httpx.HTTPError, ValueError, KeyError) as error:
        result.failed.append(repr(error))
        return
    name = names.pop() if len(names) == 1 else f"several: {sorted(names)}"
    expected = answer_of(int(name.rpartition("-")[2])) if not names else ""
    if not (len(text) > len("This is the") and expected.startswith(text)):
        result.mixed.append(f"{name}: {text[:60]!r} … {text[-20:]!r}")
        return
    result.answered[name] += 1
    if words == _LONG_WORDS:
        result.long_streams += 1
    else:
        result.slowest_s = max(result.slowest_s, time.monotonic() - begin)


async def _whole(
    client: httpx.AsyncClient, body: dict[str, object]
) -> tuple[set[str], str]:
    answer = await client.post(_PATH, json=body)
    if answer.status_code != httpx.codes.OK:
        raise ValueError(f"{answer.status_code}: {answer.text[:200]}")
    tree = answer.json()
    return {tree["model"]}, tree["choices"][0]["message"]["content"]


async def _streamed(
    client: httpx.AsyncClient, body: dict[str, object]
) -> tuple[set[str], str]:
    names: set[str] = set()
    parts: list[str] = []
    ended = False
    async with client.stream("POST", _PATH, json=body) as answer:
        if answer.status_code != httpx.codes.OK:
            raise ValueError(f"{answer.status_code}")
        async for line in answer.aiter_lines():
            data = line.removeprefix("data: ")
            if data == "[DONE]":
                ended = True
            elif line.startswith("data: "):
                tree = json.loads(data)
                names.add(tree["model"])
                parts += [
                    choice["delta"].get("content") or "" for choice in tree["choices"]
                ]
    if not ended:
        raise ValueError("the stream ended early")
    return names, "".join(parts)


@click.command()
@click.option("--requests", type=int, default=1000, show_default=True)
@click.option("--swaps", type=int, default=4, show_default=True)
@click.option("--policy", type=click.Choice(list(MEMORY_MIB)), default="overlap")
def main(requests: int, swaps: int, policy: str) -> None:
    """Exchange models under load, and say what became of the requests."""
    with tempfile.TemporaryDirectory() as folder:
        result = swap_under_load(
            Path(folder), requests=requests, swaps=swaps, policy=policy
        )
    click.echo(
        f"{policy}: {result.requests} requests across {result.swaps} swaps,"
        f" {len(result.failed)} failed, {len(result.mixed)} mixed,"
        f" {result.long_streams} long streams, slowest short answer"
        f" {result.slowest_s:.1f} s"
    )
    for why in (*result.failed[:5], *result.mixed[:5]):
        click.echo(f"  {why}")


if __name__ == "__main__":
    main()
