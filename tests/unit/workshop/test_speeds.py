"""Speed steps on real worker processes: interleaved, cached, one row per setting."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmops.domain.device import DeviceClass
from slmops.domain.errors import InvalidInputError
from slmops.domain.ids import Digest
from slmops.domain.release import Estimate
from slmops.workshop.artefacts import Artefact, Making
from slmops.workshop.build_context import BuildContext
from slmops.workshop.quantize import QuantizedFile
from slmops.workshop.speeds import (
    MEMORY_SHARE,
    WORKER_BYTES,
    cut_groups,
    measure_speeds,
)

Make = Callable[..., BuildContext]
Echo = Callable[..., Artefact]
NOTHING = Digest("sha256:" + "0" * 64)


def echo_class(
    name: str, *, threads: int = 1, context_tokens: int = 512
) -> DeviceClass:
    return DeviceClass(
        name=name, runtime="echo", threads=threads, context_tokens=context_tokens
    )


def width(estimate: Estimate) -> float:
    return estimate.high - estimate.low


def artefact_of(size: int) -> Artefact:
    file = QuantizedFile(bytes=size, parameters=1, tensor_types={}, tensors=())
    return Artefact(
        making=Making(model=NOTHING, quantization="Q4_0"), digest=NOTHING, file=file
    )


def test_each_distinct_setting_is_measured_times_once_per_thread_count(
    make_build: Make, echo_artefact: Echo
) -> None:
    build = make_build(
        echo_class("a"),
        echo_class("b", context_tokens=1024),
        echo_class("c"),
        echo_class("d", threads=2),
    )
    artefact = echo_artefact(delay_ms=1)
    speeds = measure_speeds(build, [artefact])[artefact.digest]
    assert [(s.threads, s.context_tokens) for s in speeds] == [
        (2, 512),
        (1, 1024),
        (1, 512),
    ]
    assert [s.timed_context_tokens for s in speeds] == [None, None, 1024]
    timed, other = speeds[1:]
    assert other.decode_tokens_per_s == timed.decode_tokens_per_s
    assert timed.runs == other.runs == 3
    # Three runs know no 95th percentile: the slowest of them stands for the tail.
    assert other.first_token_tail_ms == timed.first_token_tail_ms
    assert timed.first_token_tail_ms == timed.first_token_ms.high
    kinds = sorted(timing.kind for timing in build.runner.timings)
    assert kinds == ["context memory"] * 3 + ["memory"] * 3 + ["speed"] * 2


def test_peak_memory_has_bounds_for_one_more_process_at_every_context(
    make_build: Make, echo_artefact: Echo
) -> None:
    build = make_build(echo_class("a"), echo_class("b", context_tokens=1024))
    artefact = echo_artefact(delay_ms=1)
    timed, other = measure_speeds(build, [artefact])[artefact.digest]
    for speed in (timed, other):
        known = speed.peak_memory
        assert known is not None
        assert known.processes == build.blueprint.evaluation.memory_runs == 3
        assert known.full.value == pytest.approx(speed.peak_rss_mib)
        assert known.measured.low < known.measured.value < known.measured.high
        assert speed.most_peak_mib == known.full.high
        # Python processes that do the same differ by pages, not by megabytes.
        assert 0 < known.deviation_mib < 4
    # One process ran at the other context: it borrows the deviation, and is less sure.
    ours, borrowed = timed.peak_memory, other.peak_memory
    assert ours is not None
    assert borrowed is not None
    assert borrowed.deviation_mib == ours.deviation_mib
    assert other.timed_context_tokens == timed.context_tokens
    assert width(borrowed.measured) > width(ours.measured)


def test_more_processes_are_measured_when_asked_for(
    make_build: Make, echo_artefact: Echo
) -> None:
    build = make_build()
    plan = replace(build.blueprint.evaluation, memory_runs=5)
    build.blueprint = replace(build.blueprint, evaluation=plan)
    artefact = echo_artefact()
    (speed,) = measure_speeds(build, [artefact])[artefact.digest]
    assert speed.peak_memory is not None
    assert speed.peak_memory.processes == 5


def test_a_slower_model_is_slower_and_a_larger_one_larger(
    make_build: Make, echo_artefact: Echo
) -> None:
    fast, slow = echo_artefact(delay_ms=1), echo_artefact(delay_ms=12, hold_mib=24)
    speeds = measure_speeds(make_build(), [fast, slow])
    quick, late = speeds[fast.digest][0], speeds[slow.digest][0]
    assert late.decode_tokens_per_s.value < quick.decode_tokens_per_s.value
    assert late.rss_anon_mib > quick.rss_anon_mib + 20


def test_measured_speeds_are_found_again(make_build: Make, echo_artefact: Echo) -> None:
    classes = [echo_class("a"), echo_class("b", context_tokens=1024)]
    artefact = echo_artefact()
    first = measure_speeds(make_build(*classes), [artefact])
    again = make_build(*classes)
    assert measure_speeds(again, [artefact]) == first
    assert all(timing.reused for timing in again.runner.timings)


def test_more_runs_and_other_company_are_measured_anew(
    make_build: Make, echo_artefact: Echo
) -> None:
    one, two = echo_artefact(), echo_artefact(delay_ms=1)
    measure_speeds(make_build(), [one])
    for build, group, memory in (
        (make_build(runs=4), [one], []),
        (make_build(), [one, two], ["memory"]),
    ):
        measure_speeds(build, group)
        anew = [t.kind for t in build.runner.timings if not t.reused]
        assert anew == ["speed", *memory]


def test_a_candidate_that_does_not_load_is_named(
    make_build: Make, echo_artefact: Echo
) -> None:
    with pytest.raises(InvalidInputError, match="refused"):
        measure_speeds(make_build(), [echo_artefact(), echo_artefact(refuse=True)])


@given(st.lists(st.integers(1, 10**9), max_size=12), st.integers(1, 10**10))
def test_groups_keep_the_order_and_fit_the_memory(
    sizes: list[int], memory: int
) -> None:
    groups = cut_groups([artefact_of(size) for size in sizes], memory)
    assert [a.file.bytes for group in groups for a in group] == sizes
    for group in groups:
        need = sum(a.file.bytes + WORKER_BYTES for a in group)
        assert len(group) == 1 or need <= MEMORY_SHARE * memory
