"""Job ``generate``: a teacher writes the answers that a student will learn from.

Sequence-level distillation (Kim & Rush 2016): it needs no common tokenizer. The teacher
speaks in the runtime that serves, so it may be quantized, and torch is not needed.

Inputs ``model`` (the teacher, any GGUF) and ``prompts`` (JSON Lines, see `data`).
Parameters are the fields of `GenerateSettings`. Outputs ``data`` (JSON Lines of chats, for
``finetune`` or ``distill``) and ``log``. Answers that are empty or were cut off by
``max_tokens`` are left out and counted: a student would learn to stop in mid-sentence.

Prompts are asked one at a time, each from an empty context, so an answer depends on its
prompt and seed alone and a killed run goes on with the next prompt.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import httpx

from slmops.domain.errors import InvalidInputError, UnavailableError
from slmops.runtimes.address import open_client
from slmops.runtimes.base import WorkerSettings
from slmops.runtimes.worker import start_worker
from slmops.wire.codec import encode_json, encode_json_pretty
from slmops.workshop.jobs.job import Job
from slmops.workshop.training.data import Example, is_readable, read_prompts
from slmops.workshop.training.settings import input_file, read_settings

_TIMEOUT_S = 600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerateSettings:
    """How a teacher answers."""

    runtime: str = "llamacpp"
    """What it runs in."""
    max_tokens: int = 256
    """Longest answer; longer ones are left out."""
    context_tokens: int = 2048
    """Room for prompt and answer."""
    temperature: float = 0.0
    """0 takes the likeliest token; above, tokens are drawn."""
    top_p: float = 1.0
    """Smallest set of tokens with this mass is drawn from."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise InvalidInputError(
                f"parameter max_tokens must be >= 1, got {self.max_tokens}"
            )
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise InvalidInputError(
                "parameters temperature and top_p must be >= 0 and in (0, 1],"
                f" got {self.temperature:g} and {self.top_p:g}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerateLog:
    """What came of the prompts."""

    prompts: int
    """Asked."""
    answers: int
    """Written."""
    cut_off: int
    """Left out: longer than ``max_tokens``."""
    unusable: int
    """Left out: empty, or characters that no example may hold."""
    answer_tokens: int
    """Of those written."""
    seed: int
    """Of drawing."""


def run(job: Job) -> Mapping[str, Path]:
    """Let the teacher answer; see `slmops.workshop.jobs.job`.

    Raises:
        InvalidInputError: a prompt is not as it should be or does not fit the context,
            the teacher does not load, or no answer could be kept.
        UnavailableError: the runtime is not installed or failed.
    """
    settings = read_settings(job, GenerateSettings)
    prompts = read_prompts(input_file(job, "prompts"))
    job.state.mkdir(parents=True, exist_ok=True)
    known = job.state / "answers.jsonl"
    found = _whole_lines(known)
    if len(found) < len(prompts):
        _ask_all(job, settings, prompts[len(found) :], known, len(found))
        found = _whole_lines(known)
    return _written(job, prompts, found)


def _ask_all(
    job: Job,
    settings: GenerateSettings,
    prompts: tuple[Example, ...],
    known: Path,
    done: int,
) -> None:
    worker_settings = WorkerSettings(
        threads=job.threads, context_tokens=settings.context_tokens
    )
    total = done + len(prompts)
    with (
        start_worker(
            settings.runtime, input_file(job, "model"), worker_settings
        ) as worker,
        open_client(worker.address, timeout_s=_TIMEOUT_S) as http,
        known.open("ab") as file,
    ):
        for number, prompt in enumerate(prompts, start=done):
            # Each prompt its own seed: a resumed run draws what the first would have.
            seed = (job.seed * 1_000_003 + number) % (1 << 31)
            answer = _ask(http, prompt, settings, seed)
            _append(file, answer)
            job.report(number + 1, total)


def _ask(
    http: httpx.Client, prompt: Example, settings: GenerateSettings, seed: int
) -> dict[str, Any]:
    body = {
        "messages": [{"role": m.role, "content": m.content} for m in prompt.messages],
        "max_tokens": settings.max_tokens,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "top_k": 0,
        "min_p": 0.0,
        "seed": seed,
        "cache_prompt": False,
    }
    try:
        answer = http.post("/v1/chat/completions", json=body)
    except httpx.HTTPError as error:
        raise UnavailableError(
            f"{prompt.where}: the teacher did not answer: {type(error).__name__}"
        ) from None
    if answer.is_client_error:
        raise InvalidInputError(f"{prompt.where}: refused: {answer.text[:200]}")
    try:
        tree = answer.raise_for_status().json()
        choice = tree["choices"][0]
        return {
            "text": str(choice["message"]["content"] or ""),
            "finish": str(choice["finish_reason"]),
            "tokens": int(tree["usage"]["completion_tokens"]),
        }
    except (httpx.HTTPError, ValueError, KeyError, TypeError, IndexError):
        raise UnavailableError(
            f"{prompt.where}: the teacher's answer is no chat completion"
            f" (status {answer.status_code})"
        ) from None


def _append(file: IO[bytes], answer: dict[str, Any]) -> None:
    file.write(json.dumps(answer).encode() + b"\n")
    file.flush()


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """Read answers, and cut off the one that a kill left half written."""
    if not path.is_file():
        return []
    raw = path.read_bytes()
    whole = raw[: raw.rfind(b"\n") + 1]
    if len(whole) < len(raw):
        path.write_bytes(whole)
    return [json.loads(line) for line in whole.splitlines()]


def _written(
    job: Job, prompts: tuple[Example, ...], answers: list[dict[str, Any]]
) -> Mapping[str, Path]:
    data = job.output / "data.jsonl"
    kept = cut_off = unusable = tokens = 0
    with data.open("wb") as file:
        for prompt, answer in zip(prompts, answers, strict=True):
            if answer["finish"] == "length":
                cut_off += 1
            elif not is_readable(answer["text"]):
                unusable += 1
            else:
                turns = [
                    {"role": m.role, "content": m.content} for m in prompt.messages
                ]
                turns.append({"role": "assistant", "content": answer["text"]})
                file.write(encode_json({"messages": turns}) + b"\n")
                kept, tokens = kept + 1, tokens + answer["tokens"]
    if kept == 0:
        raise InvalidInputError(
            f"none of {len(prompts)} answers can be learnt from: {cut_off} were cut off"
            f" by max_tokens, {unusable} were empty or unreadable"
        )
    log = GenerateLog(
        prompts=len(prompts),
        answers=kept,
        cut_off=cut_off,
        unusable=unusable,
        answer_tokens=tokens,
        seed=job.seed,
    )
    path = job.output / "log.json"
    path.write_text(encode_json_pretty(log))
    return {"data": data, "log": path}
