"""Memory of a full context: measured up to a length, extrapolated in a line beyond."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from slmops.domain.release import Estimate, Speed
from slmops.registry.blobs import BlobStore
from slmops.registry.workspace import Workspace
from slmops.runtimes.address import open_client
from slmops.runtimes.base import WorkerSettings
from slmops.runtimes.speed import SpeedPlan, run_once
from slmops.runtimes.worker import start_worker
from slmops.testing.sample_build import SAMPLE_FIGURES, sample_candidate
from slmops.testing.tiny_gguf import write_tiny_llama
from slmops.workshop import memory
from slmops.workshop.artefacts import Artefact, Making
from slmops.workshop.build_context import BuildContext
from slmops.workshop.memory import (
    CARRIED_MIB,
    READING_MIB,
    ContextGrowth,
    MemoryFigures,
    PeakSpread,
    measure_growth,
    measure_memory,
    with_full_context,
    with_memory,
)
from slmops.workshop.quantize import QuantizedFile
from slmops.workshop.speed_setting import SpeedSetting
from slmops.workshop.workers import Workers


def sample_speed(context_tokens: int) -> Speed:
    speed = sample_candidate(SAMPLE_FIGURES[0]).card.speed[0]
    return replace(speed, context_tokens=context_tokens)


@given(
    st.integers(64, 10**5), st.integers(64, 2048), st.floats(0, 500), st.floats(0, 1)
)
def test_a_full_context_never_takes_less_and_the_rest_is_a_line(
    context: int, filled: int, growth: float, per_token: float
) -> None:
    before = sample_speed(context)
    found = with_full_context(
        before,
        ContextGrowth(filled_tokens=filled, growth_mib=growth, per_token_mib=per_token),
    )
    added = growth + max(context - filled, 0) * per_token
    assert found.peak_rss_mib == pytest.approx(before.peak_rss_mib + added)
    assert found.rss_anon_mib == pytest.approx(before.rss_anon_mib + added)
    assert found.rss_file_mib == before.rss_file_mib
    assert found.filled_tokens == filled
    assert found.extrapolated_mib == max(context - filled, 0) * per_token
    assert found.measured_peak_mib == pytest.approx(before.peak_rss_mib + growth)


def figures(peak: float) -> MemoryFigures:
    return MemoryFigures(peak_rss_mib=peak, rss_anon_mib=peak / 2, rss_file_mib=1.0)


def width(estimate: Estimate) -> float:
    return estimate.high - estimate.low


PEAKS = st.lists(st.floats(1, 1e4), min_size=2, max_size=6)


@given(PEAKS)
@example([21.6, 21.6, 21.6])  # whose mean is not 21.6 in floating point
def test_bounds_of_a_peak_enclose_it_and_equal_processes_leave_no_doubt(
    peaks: list[float],
) -> None:
    own = [figures(peak) for peak in peaks]
    spread = PeakSpread.of(own)
    several = with_memory(sample_speed(512), own, spread)
    one = with_memory(sample_speed(512), own[:1], spread)
    for speed in (several, one):
        known = speed.peak_memory
        assert known is not None
        assert known.full.low <= speed.peak_rss_mib <= known.full.high
    assert several.peak_memory is not None
    if len(set(peaks)) == 1:
        assert several.peak_rss_mib == peaks[0]
        assert several.most_peak_mib == pytest.approx(peaks[0], rel=1e-12)


@given(PEAKS, st.floats(0, 500), st.integers(64, 8192))
def test_what_another_variant_filled_is_known_less_well_than_what_it_filled_itself(
    peaks: list[float], growth: float, context: int
) -> None:
    own = [figures(peak) for peak in peaks]
    before = with_memory(sample_speed(context), own, PeakSpread.of(own))
    grown = ContextGrowth(filled_tokens=2048, growth_mib=growth, per_token_mib=0.01)
    itself = with_full_context(before, grown, is_own=True)
    carried = with_full_context(before, grown)
    assert itself.peak_rss_mib == carried.peak_rss_mib
    off = CARRIED_MIB - READING_MIB
    assert carried.most_peak_mib == pytest.approx(itself.most_peak_mib + off)
    assert carried.most_peak_mib >= carried.peak_rss_mib + CARRIED_MIB


@pytest.fixture
def tiny(workspace: Workspace, tmp_path: Path) -> Artefact:
    """A model whose attention scores outgrow everything else."""
    path = write_tiny_llama(
        tmp_path / "tiny.gguf",
        width=64,
        heads=16,
        kv_heads=2,
        feed_forward=64,
        context_tokens=4096,
    )
    digest = BlobStore(workspace.blobs).put_bytes(path.read_bytes())
    file = QuantizedFile(
        bytes=path.stat().st_size, parameters=1, tensor_types={}, tensors=()
    )
    return Artefact(
        making=Making(model=digest, quantization="F16"), digest=digest, file=file
    )


@pytest.fixture
def build(make_build: Callable[..., BuildContext]) -> BuildContext:
    context = make_build()
    model = replace(context.model, chat_template=None)
    return replace(
        context, runtime="llamacpp", workers=Workers("llamacpp"), model=model
    )


def peak_of_a_full_context(build: BuildContext, tiny: Artefact, context: int) -> float:
    settings = WorkerSettings(context_tokens=context)
    path = build.blobs.path(tiny.digest)
    with start_worker("llamacpp", path, settings) as worker:
        with open_client(worker.address) as client:
            few = run_once(client, SpeedPlan(prompt_tokens=32, answer_tokens=2))
            words = int(0.95 * context * 32 / few.prompt_tokens)
            run_once(client, SpeedPlan(prompt_tokens=words, answer_tokens=2))
        return worker.memory().peak_rss_mib


def test_measured_and_extrapolated_memory_is_that_of_a_really_full_context(
    build: BuildContext, tiny: Artefact, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = SpeedSetting(build=build, threads=1, context_tokens=3072)
    true = peak_of_a_full_context(build, tiny, 3072)
    three = measure_memory(setting, tiny, processes=3)
    speed = with_memory(sample_speed(3072), three, PeakSpread.of(three))
    monkeypatch.setattr(memory, "FILL_TOKENS", 4096)
    measured = with_full_context(speed, measure_growth(setting, tiny))
    build.workspace.steps.rename(build.workspace.root / "other steps")
    build.runner.records.clear()
    monkeypatch.setattr(memory, "FILL_TOKENS", 1536)
    extrapolated = with_full_context(speed, measure_growth(setting, tiny))
    assert speed.most_peak_mib + 20 < true
    assert measured.filled_tokens is not None
    assert 0.9 * 3072 < measured.filled_tokens < 3072
    assert measured.peak_rss_mib == pytest.approx(true, rel=0.04)
    assert extrapolated.filled_tokens is not None
    assert extrapolated.filled_tokens < 1536
    assert extrapolated.peak_rss_mib == pytest.approx(true, rel=0.06)
    known = extrapolated.peak_memory
    assert known is not None
    assert known.full.value == pytest.approx(extrapolated.peak_rss_mib)
    assert known.measured.value == pytest.approx(extrapolated.measured_peak_mib)
    # What was not measured makes the bounds wider, never narrower.
    assert width(known.full) > width(known.measured)
