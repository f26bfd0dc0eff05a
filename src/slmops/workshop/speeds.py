"""Speed steps: what each candidate costs to run, at every setting the classes ask for.

Speed on a shared machine drifts, and a drift must not pass for a difference between
candidates. So the workers of a whole group are up at the same time and asked in turn,
one request each, round after round; only one works at any moment. A group is one step:
its members' figures belong together. One that is larger than the machine's memory
allows is cut into several.

Times are taken once per number of threads, with the largest context asked for: llama.cpp
computes the same for the same prompt, whatever room was set aside behind it. Memory is
not the same, and is measured with each context (`memory`), several workers at a time.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace

from slmops.domain.blueprint import CONTROL_QUANTIZATION
from slmops.domain.errors import UnavailableError
from slmops.domain.ids import Digest
from slmops.domain.release import Speed
from slmops.runtimes.address import open_client
from slmops.runtimes.speed import (
    SpeedRun,
    machine_fingerprint,
    run_once,
    slow_tail,
)
from slmops.runtimes.worker import Worker
from slmops.wire.codec import decode_json, encode_json
from slmops.workshop.artefacts import Artefact
from slmops.workshop.build_context import BuildContext
from slmops.workshop.memory import (
    ContextGrowth,
    MemoryFigures,
    measure_growth,
    measure_memory,
    with_full_context,
)
from slmops.workshop.speed_setting import (
    ANSWER_TOKENS,
    WARM_UP_TOKENS,
    SpeedSetting,
)
from slmops.workshop.statistics import bounded_median, median_of_runs

SPEEDS = "speeds"
"""Role of a timing step's output."""
MEMORY_SHARE = 0.5
"""Share of the machine's memory that a group's workers may take together."""
WORKER_BYTES = 256 * 2**20
"""Expected beside the weights: code, KV cache, scratch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupSpeeds:
    """Output of a timing step."""

    speeds: tuple[Speed, ...]
    """In the group's order."""


def measure_speeds(
    build: BuildContext, artefacts: Sequence[Artefact]
) -> dict[Digest, tuple[Speed, ...]]:
    """Return each artefact's speeds, one per distinct (threads, context) of the classes.

    Raises:
        InvalidInputError: an artefact does not load, or the prompt does not fit.
        UnavailableError: a worker died.
    """
    timed: dict[int, dict[Digest, Speed]] = {}
    settings: list[SpeedSetting] = []
    for threads, contexts in settings_of(build):
        found = [
            SpeedSetting(build=build, threads=threads, context_tokens=context_tokens)
            for context_tokens in contexts
        ]
        timed[threads] = _timed(found[0], artefacts)
        settings += found
    with build.pool() as pool:
        waiting = [
            _Waiting.begin(pool, setting, timed[setting.threads], artefacts)
            for setting in settings
        ]
        rows = [each.speeds() for each in waiting]
    return {a.digest: tuple(row[a.digest] for row in rows) for a in artefacts}


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


def _timed(setting: SpeedSetting, artefacts: Sequence[Artefact]) -> dict[Digest, Speed]:
    groups = cut_groups(artefacts, _machine_bytes())
    setting.build.board.expect(len(groups))
    found: dict[Digest, Speed] = {}
    for group in groups:
        found |= zip((a.digest for a in group), _time(setting, group), strict=True)
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class _Waiting:
    """Memory of all artefacts at one setting, being measured."""

    timed: Mapping[Digest, Speed]
    context_tokens: int
    growth: Future[ContextGrowth]
    memory: Mapping[Digest, Future[MemoryFigures]]

    @classmethod
    def begin(
        cls,
        pool: ThreadPoolExecutor,
        setting: SpeedSetting,
        timed: Mapping[Digest, Speed],
        artefacts: Sequence[Artefact],
    ) -> "_Waiting":
        others = [
            artefact
            for artefact in artefacts
            if timed[artefact.digest].context_tokens != setting.context_tokens
        ]
        setting.build.board.expect(len(others) + 1)
        return cls(
            timed=timed,
            context_tokens=setting.context_tokens,
            # First: it takes longest.
            growth=pool.submit(measure_growth, setting, _filled(artefacts)),
            memory={a.digest: pool.submit(measure_memory, setting, a) for a in others},
        )

    def speeds(self) -> dict[Digest, Speed]:
        at_context = dict(self.timed) | {
            digest: _at_context(self.timed[digest], self.context_tokens, found.result())
            for digest, found in self.memory.items()
        }
        growth = self.growth.result()
        return {
            digest: with_full_context(speed, growth)
            for digest, speed in at_context.items()
        }


def _filled(artefacts: Sequence[Artefact]) -> Artefact:
    """Return the one whose context is filled: the control, which every build has."""
    controls = [a for a in artefacts if a.label == CONTROL_QUANTIZATION]
    return [*controls, *artefacts][0]


def _at_context(speed: Speed, context_tokens: int, memory: MemoryFigures) -> Speed:
    return replace(
        speed,
        context_tokens=context_tokens,
        timed_context_tokens=speed.context_tokens,
        peak_rss_mib=memory.peak_rss_mib,
        rss_anon_mib=memory.rss_anon_mib,
        rss_file_mib=memory.rss_file_mib,
    )


def _time(setting: SpeedSetting, group: Sequence[Artefact]) -> tuple[Speed, ...]:
    build = setting.build
    name = f"speed, {setting.threads} threads, context {setting.context_tokens}"
    inputs = {f"artefact {index}": a.digest for index, a in enumerate(group)}

    def compute() -> Mapping[str, Digest]:
        with build.board.task(f"measure {name}") as report, ExitStack() as stack:
            workers = [
                stack.enter_context(
                    build.workers.start(build.blobs.path(a.digest), setting.worker)
                )
                for a in group
            ]
            speeds = time_in_rounds(setting, workers, report)
        content = encode_json(GroupSpeeds(speeds=speeds))
        return {SPEEDS: build.blobs.put_bytes(content)}

    step = setting.step("speed", inputs, runs=setting.runs)
    record = build.runner.run(name, step, compute)
    content = build.blobs.read_bytes(record.outputs[SPEEDS])
    return decode_json(content, GroupSpeeds, where=name).speeds


def time_in_rounds(
    setting: SpeedSetting,
    workers: Sequence[Worker],
    report: Callable[[float, float], None],
) -> tuple[Speed, ...]:
    """Ask workers in turn, round after round, and return the speed of each.

    Raises:
        InvalidInputError: a worker refused what it was asked.
        UnavailableError: one did not answer.
    """
    with ExitStack() as stack:
        clients = [
            stack.enter_context(open_client(worker.address)) for worker in workers
        ]
        for worker, client in zip(workers, clients, strict=True):
            run_once(client, setting.plan(WARM_UP_TOKENS))
            worker.reset_peak()
        rounds = []
        for done in range(setting.runs):
            report(done, setting.runs)
            rounds.append([run_once(c, setting.plan(ANSWER_TOKENS)) for c in clients])
    return tuple(
        _speed(setting, worker, [row[index] for row in rounds])
        for index, worker in enumerate(workers)
    )


def _speed(setting: SpeedSetting, worker: Worker, runs: Sequence[SpeedRun]) -> Speed:
    memory = worker.memory()
    first = [run.first_token_ms for run in runs]
    decode = [run.decode_tokens_per_s for run in runs]
    return Speed(
        threads=setting.threads,
        context_tokens=setting.context_tokens,
        prompt_tokens=runs[0].prompt_tokens,
        first_token_ms=median_of_runs(first),
        first_token_tail_ms=slow_tail(first),
        prefill_tokens_per_s=median_of_runs([r.prefill_tokens_per_s for r in runs]),
        decode_tokens_per_s=median_of_runs(decode),
        decode_median=bounded_median(decode),
        load_ms=worker.load_ms,
        peak_rss_mib=memory.peak_rss_mib,
        rss_anon_mib=memory.anon_mib,
        rss_file_mib=memory.file_mib,
        machine=machine_fingerprint(setting.build.runtime),
        runs=len(runs),
    )


def _machine_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        raise UnavailableError("this system does not tell its memory") from None
