"""How wrong `plan` is: bytes, memory and decode speed, predicted and then measured.

    python bench/plan_error.py [--rounds 4] [--contexts 512,2048] [--model GGUF]
        [--json FILE]

SmolLM2-135M-Instruct, or another model, in six quantizations, one thread, in the runtime that serves it.
An error of +5 % means: predicted 5 % more than measured.

Bytes must be exact. Memory is predicted for a full context, so the peak is read after a
prompt that fills it; beside it stands the peak after a 64-token prompt.

Decode speed is predicted from the 8-bit control's, as after a build: Q8_0 is right by
definition. All workers are up together and asked in turn, at the first context. Measured
is the CPU time of the worker: of a 44-token answer less that of a 4-token one. On a
quiet machine tokens per CPU second are tokens per second; on a shared one the wall
clock tells of the others (its best round is shown). Errors are taken round by round.
"""

import statistics
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
from measure import (
    Column,
    cpu_ms,
    median_interval,
    options,
    print_table,
    write_json,
)
from model import import_source, quantized

from slmops.demo.source_model import fetch_smollm2
from slmops.domain.release import Estimate
from slmops.runtimes.address import open_client
from slmops.runtimes.base import WorkerSettings
from slmops.runtimes.speed import SpeedPlan, run_once
from slmops.runtimes.worker import Worker, start_worker
from slmops.workshop.forecast import (
    forecast_decode,
    forecast_memory,
    measured_prior,
    probe_prior,
)
from slmops.workshop.gguf_file import read_header
from slmops.workshop.model_shape import ModelShape, read_shape
from slmops.workshop.models import reference_path
from slmops.workshop.quantize import QuantizedFile, predict_quantized

CONTROL = "Q8_0"
KINDS = (CONTROL, "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "Q2_K")
_PROMPT_TOKENS, _SHORT_TOKENS, _LONG_TOKENS = 16, 4, 44
_SHORT_PLAN = SpeedPlan(prompt_tokens=64, answer_tokens=32)
_SPARE_TOKENS = 48


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One quantization, planned and made."""

    planned: QuantizedFile
    """What `plan` says it will be."""
    path: Path
    """What it is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Decode:
    """One round of one worker."""

    per_cpu_s: float
    """Tokens per second of CPU time."""
    per_s: float
    """Tokens per second."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What one worker did."""

    decode: list[Decode]
    """Round by round."""
    short_peak_mib: float
    """Peak memory after a 64-token prompt."""
    full_peak_mib: float
    """Peak memory after a prompt that fills the context."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryRow:
    """One quantization at one context."""

    kind: str
    """Quantization."""
    context_tokens: int
    """It was loaded with."""
    bytes_error: int
    """Predicted less measured."""
    predicted_mib: float
    """Memory."""
    full_peak_mib: float
    """Measured, context filled."""
    error: float
    """Predicted / measured - 1."""
    short_peak_mib: float
    """Measured after a 64-token prompt."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeRow:
    """One quantization."""

    kind: str
    """Quantization."""
    per_cpu_s: float
    """Median tokens per CPU second."""
    best_per_s: float
    """Best tokens per second of all rounds."""
    error: Estimate
    """Predicted / measured - 1: median of rounds with its 95 % interval."""


def measure_context(
    candidates: Mapping[str, Candidate], context_tokens: int, rounds: int
) -> dict[str, Measured]:
    """Serve all candidates, ask them in turn, fill each context once."""
    settings = WorkerSettings(threads=1, context_tokens=context_tokens)
    filling = SpeedPlan(
        prompt_tokens=context_tokens - _SPARE_TOKENS, answer_tokens=_SHORT_TOKENS
    )
    with ExitStack() as stack:
        workers = {
            kind: stack.enter_context(
                start_worker("llamacpp", candidate.path, settings)
            )
            for kind, candidate in candidates.items()
        }
        clients = {
            kind: stack.enter_context(open_client(worker.address))
            for kind, worker in workers.items()
        }
        for client in clients.values():
            run_once(client, _SHORT_PLAN)
        after_short = {kind: w.memory().peak_rss_mib for kind, w in workers.items()}
        decodes = [
            {kind: _decode(workers[kind], clients[kind]) for kind in workers}
            for _ in range(rounds)
        ]
        for client in clients.values():
            run_once(client, filling)
        return {
            kind: Measured(
                decode=[row[kind] for row in decodes],
                short_peak_mib=after_short[kind],
                full_peak_mib=worker.memory().peak_rss_mib,
            )
            for kind, worker in workers.items()
        }


def _decode(worker: Worker, client: httpx.Client) -> Decode:
    spent, speed = [cpu_ms(worker.pid)], 0.0
    for tokens in (_SHORT_TOKENS, _LONG_TOKENS):
        plan = SpeedPlan(prompt_tokens=_PROMPT_TOKENS, answer_tokens=tokens)
        speed = run_once(client, plan).decode_tokens_per_s
        spent.append(cpu_ms(worker.pid))
    more_ms = (spent[2] - spent[1]) - (spent[1] - spent[0])
    return Decode(
        per_cpu_s=1000 * (_LONG_TOKENS - _SHORT_TOKENS) / more_ms, per_s=speed
    )


def memory_rows(
    candidates: Mapping[str, Candidate],
    measured: Mapping[str, Measured],
    shape: ModelShape,
    context_tokens: int,
) -> list[MemoryRow]:
    """Set predicted sizes and memory beside measured ones."""
    rows = []
    for kind, found in measured.items():
        planned = candidates[kind].planned
        predicted = forecast_memory(
            shape,
            planned.tensors,
            context_tokens=context_tokens,
        ).total_mib
        rows.append(
            MemoryRow(
                kind=kind,
                context_tokens=context_tokens,
                bytes_error=planned.bytes - candidates[kind].path.stat().st_size,
                predicted_mib=predicted,
                full_peak_mib=found.full_peak_mib,
                error=predicted / found.full_peak_mib - 1,
                short_peak_mib=found.short_peak_mib,
            )
        )
    return rows


def decode_rows(
    candidates: Mapping[str, Candidate], measured: Mapping[str, Measured]
) -> list[DecodeRow]:
    """Set predicted speeds beside measured ones; the prior is the control's, by round."""
    control = candidates[CONTROL].planned.tensors
    priors = [
        measured_prior(decode.per_cpu_s, control, "control")
        for decode in measured[CONTROL].decode
    ]
    return [
        DecodeRow(
            kind=kind,
            per_cpu_s=statistics.median(d.per_cpu_s for d in found.decode),
            best_per_s=max(d.per_s for d in found.decode),
            error=median_interval(
                [
                    forecast_decode(candidates[kind].planned.tensors, prior, threads=1)
                    / decode.per_cpu_s
                    - 1
                    for prior, decode in zip(priors, found.decode, strict=True)
                ]
            ),
        )
        for kind, found in measured.items()
    ]


def _show_memory(rows: list[MemoryRow]) -> None:
    print_table(
        (
            Column(title="memory, MiB", width=22),
            Column(title="context", width=7),
            Column(title="bytes error", width=11),
            Column(title="plan", width=6),
            Column(title="full", width=6),
            Column(title="error", width=6),
            Column(title="64 tokens", width=9),
        ),
        [
            (
                row.kind,
                str(row.context_tokens),
                str(row.bytes_error),
                f"{row.predicted_mib:.0f}",
                f"{row.full_peak_mib:.0f}",
                f"{row.error:+.1%}",
                f"{row.short_peak_mib:.0f}",
            )
            for row in rows
        ],
    )
    _summary([row.error for row in rows])


def _show_decode(rows: list[DecodeRow]) -> None:
    print_table(
        (
            Column(title="decode, tokens", width=22),
            Column(title="per CPU s", width=9),
            Column(title="best per s", width=10),
            Column(title="error", width=20),
        ),
        [
            (
                row.kind,
                f"{row.per_cpu_s:.1f}",
                f"{row.best_per_s:.1f}",
                f"{row.error.value:+.0%} ({row.error.low:+.0%}"
                f" to {row.error.high:+.0%})",
            )
            for row in rows
        ],
    )
    _summary([row.error.value for row in rows if row.kind != CONTROL])


def _summary(errors: list[float]) -> None:
    sizes = [abs(error) for error in errors]
    print(f"mean |error| {statistics.mean(sizes):.1%}, largest {max(sizes):.1%}\n")


def main() -> None:
    """Measure, print, write."""
    parser = options(__doc__, rounds=4)
    parser.add_argument("--contexts", default="512,2048")
    parser.add_argument("--model", type=Path, help="GGUF; SmolLM2 by default")
    chosen = parser.parse_args()
    contexts = [int(text) for text in chosen.contexts.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        workspace, record = import_source(Path(folder), chosen.model or fetch_smollm2())
        header = read_header(reference_path(workspace, record))
        candidates = {
            kind: Candidate(
                planned=predict_quantized(header, kind),
                path=quantized(workspace, record, kind),
            )
            for kind in KINDS
        }
        measured = {
            context: measure_context(
                candidates, context, chosen.rounds if context == contexts[0] else 0
            )
            for context in contexts
        }
        shape = read_shape(header)
        memory = [
            row
            for context, found in measured.items()
            for row in memory_rows(candidates, found, shape, context)
        ]
    decode = decode_rows(candidates, measured[contexts[0]])
    _show_memory(memory)
    _show_decode(decode)
    probed = probe_prior()
    guess = forecast_decode(candidates[CONTROL].planned.tensors, probed, threads=1)
    error = guess / next(r.best_per_s for r in decode if r.kind == CONTROL) - 1
    print(f"without a build, {CONTROL} from the {probed.source}: error {error:+.0%}")
    results = {"memory": memory, "decode": decode, "probe_error": error}
    write_json(chosen.json, results)
    assert not any(row.bytes_error for row in memory), "bytes must be exact"


if __name__ == "__main__":
    main()
