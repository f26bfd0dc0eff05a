"""Memory steps: what each candidate occupies at one setting, with its context full.

Two measurements are added. Each candidate's own peak, with the standard prompt, over some
fresh processes. And what filling the context adds to that: a batch's attention scores
against all that came before. These are activations, the same for every variant of a model
(within `CARRIED_MIB`), and filling takes long, so one variant tells.

Filling stops at `FILL_TOKENS`: scores grow by the same amount with every token, so what a
longer context adds is extrapolated from half of that to all of it, and the card says so.

Bounds are for one more process, which is what a device starts: a 95 % prediction interval
over the processes' peaks (`prediction_reach`). Several processes run at one context for
each number of threads, one at the others, which borrow the deviation: contexts differ by
a cache of exact size. The bounds are widened, both ways, by `CARRIED_MIB` where another
variant's context was filled, and where the peak is extrapolated by what an error of
`READING_MIB` at both points makes of the line. That the line is one is not in them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import httpx

from slmops.domain.ids import Digest
from slmops.domain.memory import PeakMemory
from slmops.domain.release import Estimate, Speed
from slmops.runtimes.address import open_client
from slmops.runtimes.speed import run_once
from slmops.runtimes.worker import Worker
from slmops.wire.codec import decode_json, encode_json
from slmops.workshop.artefacts import Artefact
from slmops.workshop.speed_setting import WARM_UP_TOKENS, SpeedSetting
from slmops.workshop.statistics import deviation_of, prediction_reach

CARRIED_MIB = 0.6
"""Most by which growth differed over Q8_0, Q4_K_M, Q4_0 and Q2_K of SmolLM2-135M: 8.0 and
7.5 MiB at 512 tokens, 14.9 and 14.4 at 1024. Of other models it is not known."""
READING_MIB = 0.1
"""Most by which growth differed over processes of one variant: 8.01 to 8.07 MiB."""
FILL_TOKENS = 2048
"""Longest context that is really filled."""
MEMORY, GROWTH = "memory", "growth"
"""Roles of the steps' outputs."""
_FILL_TIMEOUT_S = 1800.0
_AIM = 0.95
"""Share of the context to fill: how many tokens words make is known from few of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryFigures:
    """One candidate's memory with the standard prompt, MiB; see `Speed`."""

    peak_rss_mib: float
    """Most that was resident once it had answered."""
    rss_anon_mib: float
    """Private part."""
    rss_file_mib: float
    """Mapped part."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryRuns:
    """Output of a memory step."""

    figures: tuple[MemoryFigures, ...]
    """Of each process."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PeakSpread:
    """How the peaks of processes that do the same differ."""

    processes: int
    """Two or more."""
    deviation_mib: float
    """Their standard deviation."""

    @classmethod
    def of(cls, figures: Sequence[MemoryFigures]) -> "PeakSpread":
        """Return the spread of two processes or more."""
        peaks = [each.peak_rss_mib for each in figures]
        return cls(processes=len(peaks), deviation_mib=deviation_of(peaks))


@dataclass(frozen=True, kw_only=True, slots=True)
class ContextGrowth:
    """What filling the context adds, whatever the weights' type."""

    filled_tokens: int
    """Tokens that were in the context."""
    growth_mib: float
    """Private memory beyond the standard prompt's peak, >= 0."""
    per_token_mib: float
    """What each token more would add, >= 0."""
    slope_tokens: int = FILL_TOKENS // 2
    """Tokens between the two readings that say so."""


def measure_memory(
    setting: SpeedSetting, artefact: Artefact, *, processes: int
) -> tuple[MemoryFigures, ...]:
    """Return one candidate's memory with the standard prompt, of fresh processes."""
    build = setting.build
    name = f"memory of {artefact.label}, context {setting.context_tokens}"
    path = build.blobs.path(artefact.digest)

    def compute() -> Mapping[str, Digest]:
        found = []
        with build.board.task(f"measure {name}") as report:
            for done in range(processes):
                report(done, processes)
                found.append(_one_process(setting, path))
        content = encode_json(MemoryRuns(figures=tuple(found)))
        return {MEMORY: build.blobs.put_bytes(content)}

    inputs = {"artefact": artefact.digest}
    step = setting.step("memory", inputs, processes=processes)
    record = build.runner.run(name, step, compute)
    content = build.blobs.read_bytes(record.outputs[MEMORY])
    return decode_json(content, MemoryRuns, where=name).figures


def _one_process(setting: SpeedSetting, path: Path) -> MemoryFigures:
    with (
        setting.build.workers.start(path, setting.worker) as worker,
        open_client(worker.address) as client,
    ):
        run_once(client, setting.plan(WARM_UP_TOKENS))
        # What loading alone took is given back, what answering took is kept.
        worker.reset_peak()
        return figures_of(worker)


def figures_of(worker: Worker) -> MemoryFigures:
    """Return what a worker's process takes."""
    memory = worker.memory()
    return MemoryFigures(
        peak_rss_mib=memory.peak_rss_mib,
        rss_anon_mib=memory.anon_mib,
        rss_file_mib=memory.file_mib,
    )


def with_memory(
    speed: Speed, own: Sequence[MemoryFigures], spread: PeakSpread
) -> Speed:
    """Set the memory of the standard prompt, with bounds for one more process.

    Args:
        speed: at this setting.
        own: of one process or more at this setting.
        spread: of processes here, or at another context.
    """
    peak = _mean([each.peak_rss_mib for each in own])
    reach = prediction_reach(
        spread.deviation_mib, of=spread.processes, mean_of=len(own)
    )
    bounds = Estimate(value=peak, low=max(peak - reach, 0.0), high=peak + reach)
    return replace(
        speed,
        peak_rss_mib=peak,
        rss_anon_mib=_mean([each.rss_anon_mib for each in own]),
        rss_file_mib=_mean([each.rss_file_mib for each in own]),
        peak_memory=PeakMemory(
            measured=bounds,
            full=bounds,
            processes=spread.processes,
            deviation_mib=spread.deviation_mib,
        ),
    )


def measure_growth(setting: SpeedSetting, artefact: Artefact) -> ContextGrowth:
    """Fill a worker's context, up to `FILL_TOKENS`, and return what that adds."""
    build = setting.build
    name = f"memory of a full context of {setting.context_tokens}"
    path = build.blobs.path(artefact.digest)

    def compute() -> Mapping[str, Digest]:
        with (
            build.board.task(f"measure {name}"),
            build.workers.start(path, setting.worker) as worker,
            open_client(worker.address) as client,
        ):
            client.timeout = httpx.Timeout(_FILL_TIMEOUT_S)
            standard = setting.plan(WARM_UP_TOKENS)
            tokens = run_once(client, standard).prompt_tokens
            worker.reset_peak()
            points = [(tokens, worker.memory().peak_rss_mib)]
            for goal in _goals(setting.context_tokens):
                words = int(goal * _AIM * standard.prompt_tokens / tokens)
                fill = setting.plan(WARM_UP_TOKENS, prompt_tokens=max(words, 1))
                filled = run_once(client, fill).prompt_tokens
                points.append((filled, worker.memory().peak_rss_mib))
        growth = _growth(points)
        return {GROWTH: build.blobs.put_bytes(encode_json(growth))}

    step = setting.step("context memory", {"artefact": artefact.digest})
    record = build.runner.run(name, step, compute)
    content = build.blobs.read_bytes(record.outputs[GROWTH])
    return decode_json(content, ContextGrowth, where=name)


def with_full_context(
    speed: Speed, growth: ContextGrowth, *, is_own: bool = False
) -> Speed:
    """Add what a full context takes to a speed whose memory is the standard prompt's.

    Args:
        speed: to add it to.
        growth: at the same setting.
        is_own: whether this very variant's context was filled, and not another's.
    """
    missing = max(speed.context_tokens - growth.filled_tokens, 0)
    extrapolated = missing * growth.per_token_mib
    added = growth.growth_mib + extrapolated
    known = speed.peak_memory
    if known is not None:
        doubt = READING_MIB if is_own else CARRIED_MIB
        measured = _added(known.measured, growth.growth_mib, doubt)
        off = missing * 2 * READING_MIB / max(growth.slope_tokens, 1)
        full = _added(measured, extrapolated, off)
        known = replace(known, measured=measured, full=full)
    return replace(
        speed,
        peak_rss_mib=speed.peak_rss_mib + added,
        rss_anon_mib=speed.rss_anon_mib + added,
        filled_tokens=growth.filled_tokens,
        extrapolated_mib=extrapolated,
        peak_memory=known,
    )


def _added(before: Estimate, more: float, doubt: float) -> Estimate:
    """Add what cannot be negative and may be off by `doubt`."""
    return Estimate(
        value=before.value + more,
        low=before.low + max(more - doubt, 0.0),
        high=before.high + more + doubt,
    )


def _mean(values: Sequence[float]) -> float:
    # Of equal values exactly their value, so that it lies within their bounds.
    return min(values) + sum(each - min(values) for each in values) / len(values)


def _goals(context_tokens: int) -> tuple[int, ...]:
    if context_tokens > FILL_TOKENS:
        return FILL_TOKENS // 2, FILL_TOKENS
    return (context_tokens,)


def _growth(points: Sequence[tuple[int, float]]) -> ContextGrowth:
    """Read growth and slope off (tokens, peak MiB), the standard prompt's first."""
    (_, before), *_ = points
    (tokens, peak), (more_tokens, more_peak) = points[-2:]
    slope = (more_peak - peak) / max(more_tokens - tokens, 1)
    return ContextGrowth(
        filled_tokens=more_tokens,
        growth_mib=max(more_peak - before, 0.0),
        per_token_mib=max(slope, 0.0),
        slope_tokens=more_tokens - tokens,
    )
