"""Speed steps: all candidates at one setting, interleaved.

Speed on a shared machine drifts, and a drift must not pass for a difference between
candidates. So the workers of a whole group are up at the same time and asked in turn,
one request each, round after round; only one works at any moment. A group is one step:
its members' figures belong together.

A group larger than the machine's memory allows is cut into several.
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import httpx

from slmops.domain.errors import UnavailableError
from slmops.domain.ids import Digest
from slmops.domain.release import Speed
from slmops.registry.blobs import bytes_digest
from slmops.runtimes.base import WorkerSettings
from slmops.runtimes.speed import (
    TIMEOUT_S,
    SpeedPlan,
    SpeedRun,
    machine_fingerprint,
    quantile,
    run_once,
)
from slmops.runtimes.worker import Worker, start_worker
from slmops.wire.codec import decode_json, encode_json
from slmops.workshop.artefacts import Artefact
from slmops.workshop.board import Board
from slmops.workshop.evaluate import runtime_tool
from slmops.workshop.statistics import median_of_runs
from slmops.workshop.steps import Step, StepRunner, tool_version

__all__ = ["GroupSpeeds", "SpeedGroup", "cut_groups", "machine_fingerprint"]

SPEEDS = "speeds"
"""Role of a group's output."""
MEMORY_SHARE = 0.5
"""Share of the machine's memory that a group's workers may take together."""
WORKER_BYTES = 256 * 2**20
"""Expected beside the weights: code, KV cache, scratch."""
PROMPT_TOKENS, ANSWER_TOKENS = 64, 32
_P95 = 0.95
_CODE = ("slmops.workshop.speeds", "slmops.runtimes.speed")


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupSpeeds:
    """Output of one step."""

    speeds: tuple[Speed, ...]
    """In the group's order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeedGroup:
    """One setting at which candidates are measured."""

    runtime: str
    """Name of the runtime that will serve."""
    threads: int
    """Of each worker; one works at a time."""
    context_tokens: int
    """Each is loaded with."""
    runs: int
    """Timed requests per candidate."""
    chat_template: str | None
    """Pinned template."""

    def measure(
        self, runner: StepRunner, board: Board, artefacts: Sequence[Artefact]
    ) -> dict[Digest, Speed]:
        """Return each artefact's speed at this setting.

        Raises:
            InvalidInputError: an artefact does not load, or the prompt does not fit.
            UnavailableError: a worker died.
        """
        found: dict[Digest, Speed] = {}
        for group in cut_groups(artefacts, _machine_bytes()):
            speeds = self._measure_group(runner, board, group)
            found |= zip((a.digest for a in group), speeds, strict=True)
        return found

    def _measure_group(
        self, runner: StepRunner, board: Board, group: Sequence[Artefact]
    ) -> tuple[Speed, ...]:
        blobs = runner.cache.blobs
        name = f"speed, {self.threads} threads, context {self.context_tokens}"

        def compute() -> Mapping[str, Digest]:
            with board.task(f"measure {name}"), ExitStack() as stack:
                workers = []
                for artefact in group:
                    path = blobs.path(artefact.digest)
                    worker = start_worker(self.runtime, path, self._settings())
                    workers.append(stack.enter_context(worker))
                speeds = self._rounds(workers, stack)
            return {SPEEDS: blobs.put_bytes(encode_json(GroupSpeeds(speeds=speeds)))}

        record = runner.run(name, self._step(group), compute)
        content = blobs.read_bytes(record.outputs[SPEEDS])
        return decode_json(content, GroupSpeeds, where=name).speeds

    def _rounds(self, workers: Sequence[Worker], stack: ExitStack) -> tuple[Speed, ...]:
        clients = [
            stack.enter_context(
                httpx.Client(base_url=worker.url, timeout=TIMEOUT_S, trust_env=False)
            )
            for worker in workers
        ]
        for worker, client in zip(workers, clients, strict=True):
            run_once(client, self._plan())
            worker.reset_peak()
        rounds = [
            [run_once(client, self._plan()) for client in clients]
            for _ in range(self.runs)
        ]
        return tuple(
            self._speed(worker, [row[index] for row in rounds])
            for index, worker in enumerate(workers)
        )

    def _speed(self, worker: Worker, runs: Sequence[SpeedRun]) -> Speed:
        memory = worker.memory()
        first = [run.first_token_ms for run in runs]
        return Speed(
            threads=self.threads,
            context_tokens=self.context_tokens,
            prompt_tokens=runs[0].prompt_tokens,
            first_token_ms=median_of_runs(first),
            first_token_p95_ms=quantile(first, _P95),
            prefill_tokens_per_s=median_of_runs(
                [run.prefill_tokens_per_s for run in runs]
            ),
            decode_tokens_per_s=median_of_runs(
                [run.decode_tokens_per_s for run in runs]
            ),
            load_ms=worker.load_ms,
            peak_rss_mib=memory.peak_rss_mib,
            rss_anon_mib=memory.anon_mib,
            rss_file_mib=memory.file_mib,
            machine=machine_fingerprint(self.runtime),
        )

    def _settings(self) -> WorkerSettings:
        return WorkerSettings(
            threads=self.threads,
            context_tokens=self.context_tokens,
            chat_template=self.chat_template,
        )

    def _plan(self) -> SpeedPlan:
        return SpeedPlan(
            runs=self.runs,
            prompt_tokens=min(PROMPT_TOKENS, self.context_tokens // 2),
            answer_tokens=min(ANSWER_TOKENS, self.context_tokens // 4),
        )

    def _step(self, group: Sequence[Artefact]) -> Step:
        template = bytes_digest((self.chat_template or "").encode())
        return Step(
            kind="speed",
            tool=f"{tool_version(*_CODE)}; {runtime_tool(self.runtime)}",
            inputs={f"artefact {i}": a.digest for i, a in enumerate(group)},
            parameters={
                "machine": machine_fingerprint(self.runtime),
                "threads": self.threads,
                "context_tokens": self.context_tokens,
                "runs": self.runs,
                "template": template,
            },
        )


def cut_groups(
    artefacts: Sequence[Artefact], machine_bytes: int
) -> list[list[Artefact]]:
    """Cut artefacts into groups whose workers fit the memory together, in order.

    An artefact that alone is too large makes a group of its own.
    """
    groups: list[list[Artefact]] = []
    left = 0.0
    for artefact in artefacts:
        need = artefact.file.bytes + WORKER_BYTES
        if not groups or need > left:
            groups.append([])
            left = MEMORY_SHARE * machine_bytes
        groups[-1].append(artefact)
        left -= need
    return groups


def _machine_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        raise UnavailableError("this system does not tell its memory") from None
