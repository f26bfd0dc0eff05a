"""How fast a served model is and what it costs: measured over its own HTTP interface.

One streamed request gives the time to its first token, as a client sees it, and the
runtime's own timings give prefill and decode speed. The prompt cache is off, so that
every run does the whole work. The first run warms up and is not counted.
"""

import json
import os
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from slmops.domain.errors import InvalidInputError, SlmopsError, UnavailableError
from slmops.domain.release import Estimate, Speed
from slmops.runtimes.address import open_client
from slmops.runtimes.base import WorkerSettings, load_runtime
from slmops.runtimes.energy import EnergyMeter, Spent
from slmops.runtimes.worker import Worker

_WORDS = ("the", "old", "river", "was", "wide", "and", "slow", "like", "a", "lake")
_MIN_RUNS = 1
_P95 = 0.95
LEAST_RUNS_FOR_P95 = 20
"""With fewer, no run lies beyond the 95th percentile of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeedPlan:
    """What is asked, how often."""

    runs: int = 5
    """Counted runs, after one to warm up."""
    prompt_tokens: int = 64
    """Wanted length of the prompt; the card names the true one."""
    answer_tokens: int = 32
    """Length of the answer: the end of turn is ignored; at least 2."""

    def __post_init__(self) -> None:
        if min(self.runs, self.prompt_tokens) < _MIN_RUNS or self.answer_tokens <= 1:
            raise InvalidInputError(
                "speed.runs and .prompt_tokens must be >= 1 and .answer_tokens >= 2,"
                f" got {self.runs}, {self.prompt_tokens} and {self.answer_tokens}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class RunEnergy:
    """Energy of one run, by counters of the whole machine."""

    prefill: Spent
    """Request sent to first text received."""
    prefill_tokens: int
    """Tokens of the prompt."""
    decode: Spent
    """First text to the end of the answer."""
    decode_tokens: int
    """Tokens after the first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeedRun:
    """One run."""

    first_token_ms: float
    """Request sent to first text received."""
    prompt_tokens: int
    """True length of the prompt."""
    prefill_tokens_per_s: float
    """As the runtime says."""
    decode_tokens_per_s: float
    """As the runtime says, the first token left out: it comes out of the prefill."""
    energy: RunEnergy | None = None
    """What it took; None where nothing counts it."""


def measure_speed(
    worker: Worker, settings: WorkerSettings, plan: SpeedPlan | None = None
) -> Speed:
    """Measure a worker that nobody else uses meanwhile.

    Args:
        worker: serves the artefact.
        settings: it was started with these.
        plan: how much to ask.

    Returns:
        Medians with minimum and maximum; peak memory of these runs alone where the
        system can reset it, else since the process started.

    Raises:
        InvalidInputError: prompt and answer do not fit the context.
        UnavailableError: the worker died, did not answer, or gave no timings.
    """
    plan = plan or SpeedPlan()
    if plan.prompt_tokens + plan.answer_tokens >= settings.context_tokens:
        raise InvalidInputError(
            f"speed: {plan.prompt_tokens} + {plan.answer_tokens} tokens must fit the"
            f" context of {settings.context_tokens}"
        )
    with open_client(worker.address) as client:
        run_once(client, plan)
        worker.reset_peak()
        runs = [run_once(client, plan) for _ in range(plan.runs)]
    memory = worker.memory()
    return Speed(
        threads=settings.threads,
        context_tokens=settings.context_tokens,
        prompt_tokens=runs[0].prompt_tokens,
        first_token_ms=_spread([run.first_token_ms for run in runs]),
        first_token_tail_ms=slow_tail([run.first_token_ms for run in runs]),
        prefill_tokens_per_s=_spread([run.prefill_tokens_per_s for run in runs]),
        decode_tokens_per_s=_spread([run.decode_tokens_per_s for run in runs]),
        load_ms=worker.load_ms,
        peak_rss_mib=memory.peak_rss_mib,
        rss_anon_mib=memory.anon_mib,
        rss_file_mib=memory.file_mib,
        machine=machine_fingerprint(worker.runtime_name),
        runs=len(runs),
    )


def run_once(
    client: httpx.Client, plan: SpeedPlan, meter: EnergyMeter | None = None
) -> SpeedRun:
    """Ask one streamed question over `open_client` and time it.

    Args:
        client: of the worker.
        plan: what to ask.
        meter: counts the energy, where the machine has counters.

    Raises:
        InvalidInputError: the worker refused it.
        UnavailableError: no answer, or one without timings.
    """
    body = {
        "prompt": " ".join(
            _WORDS[n % len(_WORDS)] for n in range(max(plan.prompt_tokens - 1, 1))
        ),
        "max_tokens": plan.answer_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "cache_prompt": False,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    try:
        answer = _stream(client, body, meter or EnergyMeter(reason="not asked for"))
    except httpx.HTTPError as error:
        raise UnavailableError(
            f"speed: the worker did not answer: {type(error).__name__}"
        ) from None
    return _read_run(answer)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Answer:
    """A streamed answer: milliseconds to its first text, its chunks, what it took."""

    first_token_ms: float
    chunks: list[dict[str, Any]]
    prefill: Spent | None
    decode: Spent | None


def _stream(client: httpx.Client, body: dict[str, Any], meter: EnergyMeter) -> _Answer:
    first, chunks = 0.0, []
    sent = at_first = meter.read()
    begin = time.perf_counter()
    with client.stream("POST", "/v1/completions", json=body) as answer:
        if answer.is_client_error:
            raise InvalidInputError(f"speed: refused: {answer.read()[:200]!r}")
        answer.raise_for_status()
        for line in answer.iter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line.removeprefix("data: "))
            chunks.append(chunk)
            if not first and any(c.get("text") for c in chunk.get("choices", [])):
                first = (time.perf_counter() - begin) * 1000
                at_first = meter.read()
    return _Answer(
        first_token_ms=first,
        chunks=chunks,
        prefill=meter.between(sent, at_first),
        decode=meter.between(at_first, meter.read()),
    )


def _read_run(answer: _Answer) -> SpeedRun:
    timings: dict[str, Any] = {}
    usage: dict[str, Any] = {}
    for chunk in answer.chunks:
        timings = chunk.get("timings") or timings
        usage = chunk.get("usage") or usage
    try:
        steps = int(timings["predicted_n"]) - 1
        return SpeedRun(
            first_token_ms=answer.first_token_ms,
            prompt_tokens=int(usage["prompt_tokens"]),
            prefill_tokens_per_s=timings["prompt_n"] / timings["prompt_ms"] * 1000,
            decode_tokens_per_s=steps / timings["predicted_ms"] * 1000,
            energy=_energy(answer, int(timings["prompt_n"]), steps),
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        raise UnavailableError("speed: the worker answered without timings") from None


def _energy(answer: _Answer, prompt_tokens: int, steps: int) -> RunEnergy | None:
    if answer.prefill is None or answer.decode is None or steps < 1:
        return None
    return RunEnergy(
        prefill=answer.prefill,
        prefill_tokens=prompt_tokens,
        decode=answer.decode,
        decode_tokens=steps,
    )


def slow_tail(values: Sequence[float]) -> float:
    """Return the 95th percentile of 20 values or more, and the largest of fewer.

    A percentile between the two slowest of five runs would claim to know a tail that
    none of them has seen.

    >>> slow_tail([1.0, 9.0, 2.0])
    9.0
    """
    if len(values) < LEAST_RUNS_FOR_P95:
        return max(values)
    return quantile(values, _P95)


def quantile(values: Sequence[float], share: float) -> float:
    """Return a quantile, between neighbours in proportion.

    >>> quantile([1.0, 2.0, 3.0], 0.75)
    2.5
    """
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def machine_fingerprint(runtime_name: str) -> str:
    """Name what measured: CPU model, cores this process may use, runtime version."""
    try:
        version = load_runtime(runtime_name).version()
    except SlmopsError:
        version = "unknown"
    return f"{_cpu_model()}; {_cores()} cores; {runtime_name} {version}"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in {"model name", "Model", "Hardware"}:
            return value.strip()
    return platform.processor() or platform.machine()


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _spread(values: Sequence[float]) -> Estimate:
    return Estimate(value=statistics.median(values), low=min(values), high=max(values))
