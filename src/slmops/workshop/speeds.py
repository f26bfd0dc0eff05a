"""Speed steps: what each candidate costs to run, at every setting the classes ask for.

Speed on a shared machine drifts, and a drift must not pass for a difference between
candidates. So the workers of a whole group are up at the same time and asked in turn,
one request each, round after round; only one works at any moment. A group is one step:
its members' figures belong together. One that is larger than the machine's memory
allows is cut into several.

Times are taken once per number of threads, with the largest context asked for: llama.cpp
computes the same for the same prompt, whatever room was set aside behind it. Memory is
not the same, and is measured with each context, several workers at a time.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from slmops.domain.errors import UnavailableError
from slmops.domain.ids import Digest
from slmops.domain.release import Speed
from slmops.registry.blobs import bytes_digest
from slmops.runtimes.base import WorkerSettings
from slmops.runtimes.speed import (
    SpeedPlan,
    SpeedRun,
    machine_fingerprint,
    open_client,
    quantile,
    run_once,
)
from slmops.runtimes.worker import Worker
from slmops.wire.codec import decode_json, encode_json
from slmops.workshop.artefacts import Artefact
from slmops.workshop.build_context import BuildContext
from slmops.workshop.evaluate import runtime_tool
from slmops.workshop.statistics import median_of_runs
from slmops.workshop.steps import Step, tool_version

SPEEDS = "speeds"
"""Role of a timing step's output."""
MEMORY = "memory"
"""Role of a memory step's output."""
MEMORY_SHARE = 0.5
"""Share of the machine's memory that a group's workers may take together."""
WORKER_BYTES = 256 * 2**20
"""Expected beside the weights: code, KV cache, scratch."""
PROMPT_TOKENS, ANSWER_TOKENS, WARM_UP_TOKENS = 64, 24, 2
_P95 = 0.95
_CODE = ("slmops.workshop.speeds", "slmops.runtimes.speed")


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupSpeeds:
    """Output of a timing step."""

    speeds: tuple[Speed, ...]
    """In the group's order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryFigures:
    """Output of a memory step, MiB; as the fields of `Speed` of the same names."""

    peak_rss_mib: float
    """Most that was resident while it answered."""
    rss_anon_mib: float
    """Private part."""
    rss_file_mib: float
    """Mapped part."""


def measure_speeds(
    build: BuildContext, artefacts: Sequence[Artefact]
) -> dict[Digest, tuple[Speed, ...]]:
    """Return each artefact's speeds, one per distinct (threads, context) of the classes.

    Raises:
        InvalidInputError: an artefact does not load, or the prompt does not fit.
        UnavailableError: a worker died.
    """
    found: dict[Digest, tuple[Speed, ...]] = {a.digest: () for a in artefacts}
    for threads, contexts in settings_of(build):
        timed = _timed(build, threads, contexts[0], artefacts)
        for digest, speed in timed.items():
            found[digest] += (speed,)
        for context_tokens in contexts[1:]:
            others = _with_context(build, timed, context_tokens, artefacts)
            for digest, speed in others.items():
                found[digest] += (speed,)
    return found


def settings_of(build: BuildContext) -> list[tuple[int, list[int]]]:
    """Return the numbers of threads that classes ask for, each with its contexts.

    Most first, of both.
    """
    classes = build.blueprint.classes
    return [
        (
            threads,
            sorted(
                {c.context_tokens for c in classes if c.threads == threads},
                reverse=True,
            ),
        )
        for threads in sorted({c.threads for c in classes}, reverse=True)
    ]


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


def _timed(
    build: BuildContext,
    threads: int,
    context_tokens: int,
    artefacts: Sequence[Artefact],
) -> dict[Digest, Speed]:
    setting = _Setting(build=build, threads=threads, context_tokens=context_tokens)
    groups = cut_groups(artefacts, _machine_bytes())
    build.board.expect(len(groups))
    found: dict[Digest, Speed] = {}
    for group in groups:
        found |= zip((a.digest for a in group), setting.time(group), strict=True)
    return found


def _with_context(
    build: BuildContext,
    timed: Mapping[Digest, Speed],
    context_tokens: int,
    artefacts: Sequence[Artefact],
) -> dict[Digest, Speed]:
    build.board.expect(len(artefacts))
    with build.pool() as pool:
        waiting = {
            artefact.digest: pool.submit(
                _Setting(
                    build=build,
                    threads=timed[artefact.digest].threads,
                    context_tokens=context_tokens,
                ).memory,
                artefact,
            )
            for artefact in artefacts
        }
        found = {digest: future.result() for digest, future in waiting.items()}
    return {
        digest: replace(
            timed[digest],
            context_tokens=context_tokens,
            timed_context_tokens=timed[digest].context_tokens,
            peak_rss_mib=memory.peak_rss_mib,
            rss_anon_mib=memory.rss_anon_mib,
            rss_file_mib=memory.rss_file_mib,
        )
        for digest, memory in found.items()
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class _Setting:
    """How workers are started and asked."""

    build: BuildContext
    threads: int
    context_tokens: int

    def time(self, group: Sequence[Artefact]) -> tuple[Speed, ...]:
        name = f"speed, {self.threads} threads, context {self.context_tokens}"
        inputs = {f"artefact {index}": a.digest for index, a in enumerate(group)}
        blobs = self.build.blobs

        def compute() -> Mapping[str, Digest]:
            with (
                self.build.board.task(f"measure {name}") as report,
                ExitStack() as all_,
            ):
                workers = [
                    all_.enter_context(
                        self.build.workers.start(blobs.path(a.digest), self._settings)
                    )
                    for a in group
                ]
                speeds = self._rounds(workers, all_, report)
            return {SPEEDS: blobs.put_bytes(encode_json(GroupSpeeds(speeds=speeds)))}

        record = self.build.runner.run(name, self._step("speed", inputs), compute)
        content = blobs.read_bytes(record.outputs[SPEEDS])
        return decode_json(content, GroupSpeeds, where=name).speeds

    def memory(self, artefact: Artefact) -> MemoryFigures:
        name = f"memory of {artefact.quantization}, context {self.context_tokens}"
        blobs = self.build.blobs
        path = blobs.path(artefact.digest)

        def compute() -> Mapping[str, Digest]:
            with (
                self.build.board.task(f"measure {name}"),
                self.build.workers.start(path, self._settings) as worker,
                open_client(worker.url) as client,
            ):
                run_once(client, self._plan(WARM_UP_TOKENS))
                worker.reset_peak()
                run_once(client, self._plan(ANSWER_TOKENS))
                memory = worker.memory()
            figures = MemoryFigures(
                peak_rss_mib=memory.peak_rss_mib,
                rss_anon_mib=memory.anon_mib,
                rss_file_mib=memory.file_mib,
            )
            return {MEMORY: blobs.put_bytes(encode_json(figures))}

        step = self._step("memory", {"artefact": artefact.digest})
        record = self.build.runner.run(name, step, compute)
        content = blobs.read_bytes(record.outputs[MEMORY])
        return decode_json(content, MemoryFigures, where=name)

    @property
    def _settings(self) -> WorkerSettings:
        return WorkerSettings(
            threads=self.threads,
            context_tokens=self.context_tokens,
            chat_template=self.build.model.chat_template,
        )

    @property
    def _runs(self) -> int:
        return self.build.blueprint.evaluation.speed_runs

    def _plan(self, answer_tokens: int) -> SpeedPlan:
        return SpeedPlan(
            runs=self._runs,
            prompt_tokens=min(PROMPT_TOKENS, self.context_tokens // 2),
            answer_tokens=min(answer_tokens, self.context_tokens // 4),
        )

    def _rounds(
        self,
        workers: Sequence[Worker],
        stack: ExitStack,
        report: Callable[[float, float], None],
    ) -> tuple[Speed, ...]:
        clients = [stack.enter_context(open_client(worker.url)) for worker in workers]
        for worker, client in zip(workers, clients, strict=True):
            run_once(client, self._plan(WARM_UP_TOKENS))
            worker.reset_peak()
        rounds = []
        for done in range(self._runs):
            report(done, self._runs)
            rounds.append([run_once(c, self._plan(ANSWER_TOKENS)) for c in clients])
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
            machine=machine_fingerprint(self.build.runtime),
        )

    def _step(self, kind: str, inputs: Mapping[str, Digest]) -> Step:
        template = bytes_digest((self.build.model.chat_template or "").encode())
        parameters: dict[str, str | int] = {
            "machine": machine_fingerprint(self.build.runtime),
            "threads": self.threads,
            "context_tokens": self.context_tokens,
            "template": template,
        }
        if kind == "speed":
            parameters["runs"] = self._runs
        return Step(
            kind=kind,
            tool=f"{tool_version(*_CODE)}; {runtime_tool(self.build.runtime)}",
            inputs=inputs,
            parameters=parameters,
        )


def _machine_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        raise UnavailableError("this system does not tell its memory") from None
