"""Memory steps: what each candidate occupies at one setting, with its context full.

Two measurements are added. Each candidate's own peak, with the standard prompt. And what
filling the context adds to that: a batch's attention scores against all that came before.
These are activations, the same for every variant of a model (within 0.6 MiB over Q8_0,
Q4_K_M, Q4_0 and Q2_K of SmolLM2-135M), and filling takes long, so one variant tells.

Filling stops at `FILL_TOKENS`: scores grow by the same amount with every token, so what a
longer context adds is extrapolated from half of that to all of it, and the card says so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import httpx

from slmops.domain.ids import Digest
from slmops.domain.release import Speed
from slmops.runtimes.address import open_client
from slmops.runtimes.speed import run_once
from slmops.wire.codec import decode_json, encode_json
from slmops.workshop.artefacts import Artefact
from slmops.workshop.speed_setting import WARM_UP_TOKENS, SpeedSetting

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
class ContextGrowth:
    """What filling the context adds, whatever the weights' type."""

    filled_tokens: int
    """Tokens that were in the context."""
    growth_mib: float
    """Private memory beyond the standard prompt's peak, >= 0."""
    per_token_mib: float
    """What each token more would add, >= 0."""


def measure_memory(setting: SpeedSetting, artefact: Artefact) -> MemoryFigures:
    """Return one candidate's memory with the standard prompt."""
    build = setting.build
    name = f"memory of {artefact.label}, context {setting.context_tokens}"
    path = build.blobs.path(artefact.digest)

    def compute() -> Mapping[str, Digest]:
        with (
            build.board.task(f"measure {name}"),
            build.workers.start(path, setting.worker) as worker,
            open_client(worker.address) as client,
        ):
            run_once(client, setting.plan(WARM_UP_TOKENS))
            # What loading alone took is given back, what answering took is kept.
            worker.reset_peak()
            memory = worker.memory()
        figures = MemoryFigures(
            peak_rss_mib=memory.peak_rss_mib,
            rss_anon_mib=memory.anon_mib,
            rss_file_mib=memory.file_mib,
        )
        return {MEMORY: build.blobs.put_bytes(encode_json(figures))}

    step = setting.step("memory", {"artefact": artefact.digest})
    record = build.runner.run(name, step, compute)
    content = build.blobs.read_bytes(record.outputs[MEMORY])
    return decode_json(content, MemoryFigures, where=name)


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


def with_full_context(speed: Speed, growth: ContextGrowth) -> Speed:
    """Add what a full context takes to a speed whose memory is the standard prompt's."""
    missing = max(speed.context_tokens - growth.filled_tokens, 0)
    extrapolated = missing * growth.per_token_mib
    added = growth.growth_mib + extrapolated
    return replace(
        speed,
        peak_rss_mib=speed.peak_rss_mib + added,
        rss_anon_mib=speed.rss_anon_mib + added,
        filled_tokens=growth.filled_tokens,
        extrapolated_mib=extrapolated,
    )


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
    )
