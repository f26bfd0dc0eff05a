"""The trial on real worker processes: what is measured, and what a missing figure does."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from slmops.agent import trial
from slmops.agent.models import Child
from slmops.agent.records import TrialPlan
from slmops.agent.slots import SlotStore
from slmops.agent.trial import (
    baseline,
    golden_trial,
    soak_blames,
    soak_problem,
    variant_at_fault,
)
from slmops.agent.upstream import Upstream
from slmops.domain.blueprint import GoldenPlan
from slmops.domain.device import Budget
from slmops.domain.errors import UnavailableError
from slmops.domain.release import ExpectedToken, GoldenPrompt, GoldenSet
from slmops.domain.soak import LiveCounts
from slmops.runtimes.base import WorkerSettings
from slmops.runtimes.golden import GoldenRun, ask_golden
from slmops.runtimes.worker import start_worker
from slmops.testing.sample_deployment import sample_deployment
from slmops.testing.stage import echo_artefact


def golden(*answers: tuple[str, ...]) -> GoldenSet:
    return GoldenSet(
        prompts=tuple(
            GoldenPrompt(
                prompt="Hi",
                answer=tuple(ExpectedToken(text=text, logprob=-0.1) for text in answer),
            )
            for answer in answers
        )
    )


PLAN = TrialPlan(
    golden=golden(("You", " said"), ("You", " said", ":")),
    rules=GoldenPlan(),
    budget=Budget(memory_mib=120, decode_tokens_per_s=20),
    card_logprobs=(-0.1, -0.1),
    probation_s=0.0,
    revert=False,
)


@contextmanager
def running(folder: Path, **behaviour: object) -> Iterator[Child]:
    slots = SlotStore(folder)
    content = echo_artefact(**behaviour)
    variant = slots.blobs.put_bytes(content)
    deployment = replace(
        sample_deployment(variant, len(content)),
        context_tokens=64,
        memory_limit_mib=None,
    )
    settings = WorkerSettings(context_tokens=64)
    with start_worker("echo", slots.blobs.path(variant), settings) as worker:
        upstream = Upstream(
            address=worker.address, release="sample-1", context_tokens=64
        )
        yield Child(deployment, worker, upstream)


def test_a_good_model_passes_with_every_budgeted_figure_measured(
    tmp_path: Path,
) -> None:
    with running(tmp_path, delay_ms=1) as child:
        result = golden_trial(child, PLAN, None)
    assert result.passed, result.reason
    assert result.decode_tokens_per_s is not None
    assert 20 < result.decode_tokens_per_s < 1100
    assert result.peak_rss_mib is not None
    assert 5 < result.peak_rss_mib < 120
    assert result.card_delta == pytest.approx(0.0)


def test_answers_of_one_token_still_get_a_speed(tmp_path: Path) -> None:
    short = replace(PLAN, golden=golden(("You",), ("You",)))
    with running(tmp_path, delay_ms=1) as child:
        result = golden_trial(child, short, None)
        unlimited = golden_trial(child, replace(short, budget=Budget()), None)
    assert result.passed, result.reason
    assert result.decode_tokens_per_s is not None
    assert unlimited.decode_tokens_per_s is None  # nobody needs to know


def test_a_slow_model_fails(tmp_path: Path) -> None:
    fast = replace(PLAN, budget=Budget(decode_tokens_per_s=400))
    with running(tmp_path, delay_ms=50) as child:
        result = golden_trial(child, fast, None)
    assert not result.passed
    assert "is below 100.00" in result.reason
    assert not variant_at_fault(fast, result)  # nor is it tried never again


def test_one_slow_moment_is_measured_again_and_fails_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = replace(PLAN, budget=Budget(decode_tokens_per_s=200))

    def busy_meanwhile(*arguments: object) -> GoldenRun:
        run = ask_golden(*arguments)  # type: ignore[arg-type]
        return replace(run, decode_tokens_per_s=3.0)

    monkeypatch.setattr(trial, "ask_golden", busy_meanwhile)
    with running(tmp_path, delay_ms=1) as child:
        result = golden_trial(child, fast, None)
    assert result.passed, result.reason
    assert result.decode_tokens_per_s is not None
    assert result.decode_tokens_per_s > 50


def test_a_model_that_takes_more_memory_than_its_class_allows_fails(
    tmp_path: Path,
) -> None:
    with running(tmp_path, hold_mib=150) as child:
        result = golden_trial(child, PLAN, None)
    assert not result.passed
    assert "is above the budget 120" in result.reason
    assert variant_at_fault(PLAN, result)


def test_a_system_that_does_not_count_peaks_fails_memory_budgets_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(tmp_path, delay_ms=1) as child:
        whole = Path(f"/proc/{child.worker.pid}/status").read_text()
        lines = [line for line in whole.splitlines() if not line.startswith("VmHWM")]
        monkeypatch.setattr(Path, "read_text", lambda *_, **__: "\n".join(lines))
        limited = golden_trial(child, PLAN, None)
        speed_only = replace(PLAN, budget=Budget(decode_tokens_per_s=20))
        unlimited = golden_trial(child, speed_only, None)
        monkeypatch.undo()
    assert not limited.passed
    assert "peak memory was not measured (this system's /proc" in limited.reason
    assert "has no VmHWM), the budget is 120 MiB" in limited.reason
    assert unlimited.passed
    assert not variant_at_fault(PLAN, limited)  # the system's fault
    assert not soak_blames(PLAN, LiveCounts(), None)


def test_a_worse_model_than_the_old_one_fails_except_on_the_way_back(
    tmp_path: Path,
) -> None:
    with running(tmp_path, logprob=-0.01) as child:
        old = baseline(child, PLAN.golden)
    assert old is not None
    claims = replace(PLAN, card_logprobs=(-0.5, -0.5), budget=Budget())
    with running(tmp_path, logprob=-0.5) as child:
        forward = golden_trial(child, claims, old)
        back = golden_trial(child, replace(claims, revert=True), old)
    assert not forward.passed
    assert forward.paired_loss == pytest.approx(0.49)
    assert variant_at_fault(claims, forward)
    assert back.passed
    assert back.paired_loss is None


def test_a_model_that_dies_during_its_trial_is_an_error_and_no_verdict(
    tmp_path: Path,
) -> None:
    with (
        running(tmp_path, crash_on="Hi") as child,
        pytest.raises(UnavailableError, match="golden prompt 0"),
    ):
        golden_trial(child, PLAN, None)


def test_a_broken_old_model_leaves_no_baseline_and_stops_nothing(
    tmp_path: Path,
) -> None:
    assert baseline(None, PLAN.golden) is None
    with running(tmp_path, crash_on="Hi") as child:
        assert baseline(child, PLAN.golden) is None


@pytest.mark.parametrize(
    ("counts", "peak", "words"),
    [
        (LiveCounts(), 100.0, None),
        (LiveCounts(requests=2, failures=2), 100.0, None),
        (LiveCounts(requests=100, failures=5), 100.0, None),
        (LiveCounts(requests=50, failures=3), 100.0, "3 of 50 live requests failed"),
        (LiveCounts(restarts=1), 100.0, "ended 1 times"),
        (LiveCounts(), 121.0, "above the budget 120"),
        (LiveCounts(), None, "was not measured, the budget is 120 MiB"),
    ],
)
def test_what_the_soak_holds_against_a_model(
    counts: LiveCounts, peak: float | None, words: str | None
) -> None:
    problem = soak_problem(PLAN, counts, peak)
    assert (problem is None) == (words is None)
    assert soak_blames(PLAN, counts, peak) == (problem is not None and peak is not None)
    assert (words or "") in (problem or "")
    assert soak_problem(replace(PLAN, budget=Budget()), LiveCounts(), None) is None
