"""What the type of the KV cache and a draft model cost and bring, measured.

    python bench/runtime_settings.py --text TEXT [--contexts 2048,4096,8192] [--rounds 3]
        [--part cache|draft] [--json FILE]

SmolLM2-135M-Instruct as Q8_0, one thread, in the runtime that serves it.

*cache*: KL divergence from the same artefact with a 16-bit cache, so that nothing but
the cache differs, over windows of 512 tokens of TEXT; private memory with each context
loaded and a short request answered; its peak once `FILL` tokens were in a context of
that size; decode speed with a short and with a long prompt.

*draft*: greedy answers to openings of TEXT's paragraphs with and without a draft: Q2_K
of the model itself, and the model without ten of its blocks, as Q4_0. Accepted is the
share of drafted tokens that the model would have written itself.

Speed is tokens per second of the worker's CPU time, as the machine may be shared; all
settings are asked in turn, round by round, and the median stands for them.
"""

import statistics
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from measure import Column, cpu_ms, options, print_table, write_json
from model import import_smollm2, quantized

from slmops.registry.blobs import BlobStore
from slmops.runtimes.address import open_client
from slmops.runtimes.base import Scorer, WorkerSettings, load_runtime
from slmops.runtimes.speed import SpeedPlan, run_once
from slmops.runtimes.worker import Worker, start_worker
from slmops.workshop.jobs.job import unheard
from slmops.workshop.models import reference_path
from slmops.workshop.quantize import quantize_gguf
from slmops.workshop.score_file import cut_windows
from slmops.workshop.score_job import candidate_scores, reference_scores
from slmops.workshop.structure.depth import remove_blocks
from slmops.workshop.structure.model_edit import read_source

CACHES = ("f16", "k-q8_0", "q8_0", "k-q4_0", "q4_0")
FILL = 2000
_CONTEXT_OF_FILL = 2048
_SCORED, _WINDOW = 1024, 512
_SHORT, _ANSWER = 64, 24
_OPENING_WORDS, _DRAFT_ANSWER = 40, 64
_REMOVED = range(10, 20)
_SLOW = httpx.Timeout(900)


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheRow:
    """One type of cache."""

    kv_cache: str
    mean_kld: float
    p99_kld: float
    same_top1: float
    anon_mib: dict[int, float]
    """Context → private memory after a short request."""
    filled_peak_mib: float
    """Peak with `FILL` tokens in a context of 2048."""
    decode_short: float
    """Tokens per CPU second behind a prompt of 64 tokens."""
    decode_long: float
    """Behind `FILL` tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DraftRow:
    """One way to draft."""

    draft: str
    draft_mb: float
    tokens_at_once: int
    accepted: float
    decode: float
    """Tokens per CPU second."""
    wall: float
    """Tokens per second as the server says."""
    peak_mib: float
    same_answers: int
    """Answers equal to those without a draft, of all."""
    answers: int


def main() -> None:
    """Measure and print."""
    parser = options(__doc__, rounds=3)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--contexts", default="2048,4096,8192")
    parser.add_argument("--part", choices=("cache", "draft"))
    arguments = parser.parse_args()
    text = arguments.text.read_text(encoding="utf-8")
    contexts = [int(each) for each in arguments.contexts.split(",")]
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        workspace, record = import_smollm2(Path(name) / "ws")
        target = quantized(workspace, record, "Q8_0")
        if arguments.part != "draft":
            results["cache"] = _caches(target, text, contexts, arguments.rounds)
        if arguments.part != "cache":
            reference = reference_path(workspace, record)
            few = quantized(workspace, record, "Q2_K")
            short = _without_blocks(reference, Path(name), BlobStore(workspace.blobs))
            drafts = {"none": None, "Q2_K": few, "20 blocks, Q4_0": short}
            results["draft"] = _drafts(target, drafts, text, arguments.rounds)
    write_json(arguments.json, results)


def _caches(
    target: Path, text: str, contexts: Sequence[int], rounds: int
) -> list[CacheRow]:
    klds = _divergences(target, text)
    memory = {kv: {c: _anon(target, kv, c) for c in contexts} for kv in CACHES}
    speeds = _speeds(target, rounds)
    rows = [
        CacheRow(
            kv_cache=kv,
            mean_kld=klds[kv][0],
            p99_kld=klds[kv][1],
            same_top1=klds[kv][2],
            anon_mib=memory[kv],
            filled_peak_mib=speeds[kv][2],
            decode_short=speeds[kv][0],
            decode_long=speeds[kv][1],
        )
        for kv in CACHES
    ]
    print_table(
        (
            _column("cache", left=True),
            *map(_column, ("mean KLD", "p99", "same top-1")),
            *(_column(f"MiB at {context}") for context in contexts),
            *map(_column, (f"peak MiB, {FILL} filled", "tok/CPU-s", f"after {FILL}")),
        ),
        [
            (
                row.kv_cache,
                f"{row.mean_kld:.5f}",
                f"{row.p99_kld:.4f}",
                f"{row.same_top1:.3f}",
                *(f"{row.anon_mib[context]:.1f}" for context in contexts),
                f"{row.filled_peak_mib:.1f}",
                f"{row.decode_short:.1f}",
                f"{row.decode_long:.1f}",
            )
            for row in rows
        ],
    )
    return rows


def _column(title: str, *, left: bool = False) -> Column:
    return Column(title=title, width=max(len(title), 16 if left else 9))


def _divergences(target: Path, text: str) -> dict[str, tuple[float, float, float]]:
    def opened(kv_cache: str) -> Scorer:
        settings = WorkerSettings(context_tokens=_WINDOW, kv_cache=kv_cache)
        return load_runtime("llamacpp").open_scorer(target, settings)

    scorer = opened(CACHES[0])
    windows = cut_windows(scorer.tokenize(text), _WINDOW, _SCORED)
    reference = reference_scores(scorer, windows, unheard)
    scorer.close()
    found = {}
    for kv_cache in CACHES:
        scorer = opened(kv_cache)
        scores = candidate_scores(scorer, reference, unheard)
        scorer.close()
        ordered = sorted(scores.kld.tolist())
        found[kv_cache] = (
            statistics.fmean(ordered),
            ordered[int(0.99 * (len(ordered) - 1))],
            float(scores.same_top1.mean()),
        )
    return found


def _anon(target: Path, kv_cache: str, context: int) -> float:
    settings = WorkerSettings(context_tokens=context, kv_cache=kv_cache)
    with (
        start_worker("llamacpp", target, settings) as worker,
        open_client(worker.address) as client,
    ):
        run_once(client, SpeedPlan(runs=1, prompt_tokens=_SHORT, answer_tokens=2))
        return worker.memory().anon_mib


def _speeds(target: Path, rounds: int) -> dict[str, tuple[float, float, float]]:
    found: dict[str, tuple[float, float, float]] = {}
    with ExitStack() as stack:
        workers = {}
        for kv in CACHES:
            settings = WorkerSettings(context_tokens=_CONTEXT_OF_FILL, kv_cache=kv)
            worker = stack.enter_context(start_worker("llamacpp", target, settings))
            client = stack.enter_context(open_client(worker.address))
            client.timeout = _SLOW
            workers[kv] = (worker, client)
        short: dict[str, list[float]] = {kv: [] for kv in CACHES}
        for _ in range(rounds):
            for kv, (worker, client) in workers.items():
                short[kv].append(_decode(worker, client, _words(_SHORT)))
        for kv, (worker, client) in workers.items():
            worker.reset_peak()
            prompt = _words(FILL)
            begun = _decode(worker, client, prompt, cached=True)
            peak = worker.memory().peak_rss_mib
            found[kv] = (statistics.median(short[kv]), begun, peak)
    return found


def _decode(
    worker: Worker, client: httpx.Client, prompt: str, *, cached: bool = False
) -> float:
    """Tokens per CPU second: of a long answer less a short one to the same prompt."""
    if cached:
        _ask(client, prompt, 1, cached=True)
    used = []
    for tokens in (2, 2 + _ANSWER):
        before = cpu_ms(worker.pid)
        _ask(client, prompt, tokens, cached=cached)
        used.append(cpu_ms(worker.pid) - before)
    return _ANSWER / (used[1] - used[0]) * 1000


def _words(tokens: int) -> str:
    return " ".join(["one", "two", "three", "four"][n % 4] for n in range(tokens - 1))


def _ask(
    client: httpx.Client, prompt: str, tokens: int, *, cached: bool = False
) -> dict[str, Any]:
    body = {
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "cache_prompt": cached,
        "timings_per_token": False,
    }
    answer = client.post("/v1/completions", json=body)
    answer.raise_for_status()
    document: dict[str, Any] = answer.json()
    return document


def _without_blocks(reference: Path, folder: Path, blobs: BlobStore) -> Path:
    pruned = remove_blocks(read_source(reference), _REMOVED, folder / "pruned.gguf")
    with blobs.writer() as writer:
        quantize_gguf(pruned, "Q4_0", writer)
    return blobs.path(writer.digest)


def _drafts(
    target: Path, drafts: dict[str, Path | None], text: str, rounds: int
) -> list[DraftRow]:
    prompts = _openings(text, rounds)
    rows: list[DraftRow] = []
    plain: list[str] = []
    for name, path in drafts.items():
        for at_once in (3,) if path is None else (2, 4):
            settings = WorkerSettings(
                context_tokens=512,
                draft=None if path is None else str(path),
                draft_tokens=at_once,
            )
            with (
                start_worker("llamacpp", target, settings) as worker,
                open_client(worker.address) as client,
            ):
                client.timeout = _SLOW
                row, texts = _drafted(worker, client, prompts)
            plain = plain or texts
            rows.append(
                DraftRow(
                    draft=name,
                    draft_mb=0.0 if path is None else path.stat().st_size / 1e6,
                    tokens_at_once=0 if path is None else at_once,
                    same_answers=sum(a == b for a, b in zip(texts, plain, strict=True)),
                    answers=len(texts),
                    **row,
                )
            )
    print_table(
        tuple(
            map(
                _column,
                (
                    *("draft", "MB", "at once", "accepted", "tok/CPU-s", "tok/s"),
                    *("peak MiB", "same answers"),
                ),
            )
        ),
        [
            (
                row.draft,
                f"{row.draft_mb:.1f}",
                str(row.tokens_at_once),
                f"{row.accepted:.2f}",
                f"{row.decode:.1f}",
                f"{row.wall:.1f}",
                f"{row.peak_mib:.0f}",
                f"{row.same_answers} of {row.answers}",
            )
            for row in rows
        ],
    )
    return rows


def _drafted(
    worker: Worker, client: httpx.Client, prompts: Sequence[str]
) -> tuple[dict[str, float], list[str]]:
    _ask(client, prompts[0], 2)
    texts, drafted, accepted = [], 0, 0
    speeds, walls = [], []
    for prompt in prompts:
        before = cpu_ms(worker.pid)
        _ask(client, prompt, 2)
        middle = cpu_ms(worker.pid)
        document = _ask(client, prompt, 2 + _DRAFT_ANSWER)
        after = cpu_ms(worker.pid)
        speeds.append(_DRAFT_ANSWER / ((after - middle) - (middle - before)) * 1000)
        timings = document["timings"]
        walls.append(float(timings["predicted_per_second"]))
        drafted += int(timings.get("draft_n", 0))
        accepted += int(timings.get("draft_n_accepted", 0))
        texts.append(str(document["choices"][0]["text"]))
    return {
        "accepted": accepted / drafted if drafted else 0.0,
        "decode": statistics.median(speeds),
        "wall": statistics.median(walls),
        "peak_mib": worker.memory().peak_rss_mib,
    }, texts


def _openings(text: str, count: int) -> list[str]:
    long = [p for p in text.splitlines() if len(p.split()) > 2 * _OPENING_WORDS]
    return [" ".join(each.split()[:_OPENING_WORDS]) for each in long[:count]]


if __name__ == "__main__":
    main()
