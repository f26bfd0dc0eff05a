"""Speed steps: what each candidate costs to run, at every setting the classes ask for.

Speed on a shared machine drifts, and a drift must not pass for a difference between
candidates. So the workers of a whole group are up at the same time and asked in turn,
one request each, round after round; only one works at any moment. A group is one step:
its members' figures belong together. One that is larger than the machine's memory
allows is cut into several. Whom finished groups know is not timed again (`speed_groups`).

Times are taken once per number of threads, with the largest context asked for: llama.cpp
computes the same for the same prompt, whatever room was set aside behind it. Memory is
not the same, and is measured with each context (`memory`), several workers at a time. Of
the processes whose peaks give its bounds, the one that was timed is the first.
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
from slmops.workshop.energy import EnergyWatch
from slmops.workshop.memory import (
    ContextGrowth,
    MemoryFigures,
    PeakSpread,
    figures_of,
    measure_growth,
    measure_memory,
    with_full_context,
    with_memory,
)
from slmops.workshop.speed_groups import find_known, joined
from slmops.workshop.speed_setting import (
    ANSWER_TOKENS,
    WARM_UP_TOKENS,
    SpeedSetting,
)
from slmops.workshop.statistics import bounded_median, median_of_runs
from slmops.workshop.steps import Step, StepRecord

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
        spreads = {
            (each.setting.threads, digest): spread
            for each in waiting
            for digest, spread in each.spreads().items()
        }
        rows = [each.speeds(spreads) for each in waiting]
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
        found |= _time(setting, group)
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class _Waiting:
    """Memory of all artefacts at one setting, being measured."""

    setting: SpeedSetting
    timed: Mapping[Digest, Speed]
    growth: Future[ContextGrowth]
    filled: Digest
    memory: Mapping[Digest, Future[tuple[MemoryFigures, ...]]]

    @classmethod
    def begin(
        cls,
        pool: ThreadPoolExecutor,
        setting: SpeedSetting,
        timed: Mapping[Digest, Speed],
        artefacts: Sequence[Artefact],
    ) -> "_Waiting":
        setting.build.board.expect(len(artefacts) + 1)
        contexts = {speed.context_tokens for speed in timed.values()}
        is_timed = setting.context_tokens in contexts
        more = setting.build.blueprint.evaluation.memory_runs - 1 if is_timed else 1
        filled = _filled(artefacts)
        return cls(
            setting=setting,
            timed=timed,
            # First: it takes longest.
            growth=pool.submit(measure_growth, setting, filled),
            filled=filled.digest,
            memory={
                a.digest: pool.submit(measure_memory, setting, a, processes=more)
                for a in artefacts
            },
        )

    def spreads(self) -> dict[Digest, PeakSpread]:
        """Return each artefact's spread of peaks, where several processes ran."""
        return {
            digest: PeakSpread.of(self._own(digest))
            for digest, speed in self.timed.items()
            if self._is_timed(speed)
        }

    def speeds(
        self, spreads: Mapping[tuple[int, Digest], PeakSpread]
    ) -> dict[Digest, Speed]:
        growth = self.growth.result()
        found = {}
        for digest, speed in self.timed.items():
            spread = spreads[self.setting.threads, digest]
            here = with_memory(self._here(speed), self._own(digest), spread)
            is_own = digest == self.filled
            found[digest] = with_full_context(here, growth, is_own=is_own)
        return found

    def _own(self, digest: Digest) -> tuple[MemoryFigures, ...]:
        """Return the memory of every process that ran at this setting."""
        found, speed = self.memory[digest].result(), self.timed[digest]
        if not self._is_timed(speed):
            return found
        first = MemoryFigures(
            peak_rss_mib=speed.peak_rss_mib,
            rss_anon_mib=speed.rss_anon_mib,
            rss_file_mib=speed.rss_file_mib,
        )
        return (first, *found)

    def _is_timed(self, speed: Speed) -> bool:
        return speed.context_tokens == self.setting.context_tokens

    def _here(self, speed: Speed) -> Speed:
        if self._is_timed(speed):
            return speed
        return replace(
            speed,
            context_tokens=self.setting.context_tokens,
            timed_context_tokens=speed.context_tokens,
        )


def _filled(artefacts: Sequence[Artefact]) -> Artefact:
    """Return the one whose context is filled: the control, which every build has."""
    controls = [a for a in artefacts if a.label == CONTROL_QUANTIZATION]
    return [*controls, *artefacts][0]


def _time(setting: SpeedSetting, group: Sequence[Artefact]) -> Mapping[Digest, Speed]:
    """Time a group, or what finished groups do not tell of it; see `speed_groups`."""
    build = setting.build
    runner = build.runner
    control = next((a for a in group if a.label == CONTROL_QUANTIZATION), None)
    anchor = None if control is None else control.digest
    known = find_known(
        runner.cache, _step(setting, group), anchor, lambda r: _rows(setting, r)
    )
    if known is None:
        return _timed_group(setting, group)
    groups = [rows for _, rows in known.groups]
    for record, _ in known.groups:
        runner.take(_name(setting), record)
    if control is not None and known.missing:
        more = [control, *(a for a in group if a.digest in known.missing)]
        groups.append(_timed_group(setting, more))
    build.board.expect(len(groups) - 1)
    wanted = [a.digest for a in group]
    return joined(wanted, groups, wanted[0] if control is None else control.digest)


def _timed_group(
    setting: SpeedSetting, group: Sequence[Artefact]
) -> Mapping[Digest, Speed]:
    build = setting.build
    name = _name(setting)

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

    return _rows(setting, build.runner.run(name, _step(setting, group), compute))


def _name(setting: SpeedSetting) -> str:
    return f"speed, {setting.threads} threads, context {setting.context_tokens}"


def _step(setting: SpeedSetting, group: Sequence[Artefact]) -> Step:
    inputs = {f"artefact {index}": a.digest for index, a in enumerate(group)}
    return setting.step(
        "speed", inputs, runs=setting.runs, **setting.counter_parameters
    )


def _rows(setting: SpeedSetting, record: StepRecord) -> dict[Digest, Speed]:
    content = setting.build.blobs.read_bytes(record.outputs[SPEEDS])
    speeds = decode_json(content, GroupSpeeds, where=_name(setting)).speeds
    inputs = record.step.inputs
    members = [inputs[f"artefact {index}"] for index in range(len(inputs))]
    return dict(zip(members, speeds, strict=True))


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
        watch = EnergyWatch.begin(setting.open_meter())
        rounds = []
        for done in range(setting.runs):
            report(done, setting.runs)
            plan = setting.plan(ANSWER_TOKENS)
            rounds.append([run_once(c, plan, watch.meter) for c in clients])
    return tuple(
        _speed(setting, worker, [row[index] for row in rounds], watch)
        for index, worker in enumerate(workers)
    )


def _speed(
    setting: SpeedSetting, worker: Worker, runs: Sequence[SpeedRun], watch: EnergyWatch
) -> Speed:
    energy = watch.measured(runs)
    memory = figures_of(worker)
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
        rss_anon_mib=memory.rss_anon_mib,
        rss_file_mib=memory.rss_file_mib,
        machine=machine_fingerprint(setting.build.runtime),
        runs=len(runs),
        measured_energy=energy,
        energy_unmeasured=watch.missing(energy),
    )


def _machine_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        raise UnavailableError("this system does not tell its memory") from None
