"""The trial's verdict."""

import math
from dataclasses import replace

import pytest

from slmops.domain.blueprint import GoldenPlan
from slmops.domain.device import Budget
from slmops.domain.errors import InvalidInputError
from slmops.domain.golden import PromptScore, TrialMeasurement, judge_trial

PLAN = GoldenPlan()
CARD = (-1.0, -2.0)


def scores(*firsts: float) -> tuple[PromptScore, ...]:
    return tuple(PromptScore(logprobs=(first, -0.5)) for first in firsts)


def measured(
    new: tuple[PromptScore, ...],
    old: tuple[PromptScore, ...] | None = None,
    *,
    speed: float | None = 30.0,
    peak: float | None = 200.0,
) -> TrialMeasurement:
    return TrialMeasurement(
        scores=new, old_scores=old, decode_tokens_per_s=speed, peak_rss_mib=peak
    )


def test_answers_like_the_card_pass_and_say_the_figures() -> None:
    result = judge_trial(PLAN, Budget(), CARD, measured(scores(-1.0, -2.1)))
    assert result.passed
    assert "card delta 0.050" in result.reason


def test_rising_confidence_is_as_suspicious_as_falling() -> None:
    result = judge_trial(PLAN, Budget(), CARD, measured(scores(-0.1, -0.1)))
    assert not result.passed
    assert "prompt 1" in result.reason


def test_a_model_worse_than_the_replaced_one_fails_even_when_it_matches_its_card() -> (
    None
):
    result = judge_trial(
        PLAN, Budget(), CARD, measured(scores(-1.0, -2.0), scores(-0.2, -0.3))
    )
    assert not result.passed
    assert result.paired_loss is not None
    assert result.paired_loss > PLAN.max_paired_loss


def test_memory_above_and_speed_below_the_budget_fail() -> None:
    budget = Budget(memory_mib=150, decode_tokens_per_s=200)
    result = judge_trial(PLAN, budget, CARD, measured(scores(-1.0, -2.0)))
    assert not result.passed
    assert "peak memory 200 MiB" in result.reason
    assert "decode 30.00" in result.reason


@pytest.mark.parametrize("missing", [None, math.nan, math.inf, 0.0, -1.0])
def test_a_budgeted_figure_that_was_not_measured_fails_and_is_named(
    missing: float | None,
) -> None:
    fits = scores(-1.0, -2.0)
    memory = judge_trial(
        PLAN, Budget(memory_mib=150), CARD, measured(fits, peak=missing)
    )
    assert not memory.passed
    assert "peak memory was not measured, the budget is 150 MiB" in memory.reason
    speed = judge_trial(
        PLAN, Budget(decode_tokens_per_s=20), CARD, measured(fits, speed=missing)
    )
    assert not speed.passed
    assert "decode speed was not measured, the budget is 20 tokens/s" in speed.reason


def test_why_the_memory_could_not_be_read_is_said() -> None:
    unread = replace(
        measured(scores(-1.0, -2.0), peak=None), unread_memory="no VmHWM here"
    )
    result = judge_trial(PLAN, Budget(memory_mib=150), CARD, unread)
    assert "not measured (no VmHWM here)" in result.reason


def test_without_a_budget_nothing_needs_to_be_measured() -> None:
    unmeasured = measured(scores(-1.0, -2.0), speed=None, peak=None)
    result = judge_trial(PLAN, Budget(disk_mib=1), CARD, unmeasured)
    assert result.passed
    assert result.peak_rss_mib is None
    assert result.decode_tokens_per_s is None


def test_figures_exactly_at_the_limits_pass() -> None:
    budget = Budget(memory_mib=200, decode_tokens_per_s=120)
    at_limit = measured(scores(-1.0, -2.0), speed=30.0, peak=200.0)
    assert judge_trial(PLAN, budget, CARD, at_limit).passed


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.1])
def test_a_score_that_is_no_log_probability_is_refused(value: float) -> None:
    with pytest.raises(InvalidInputError, match="finite and <= 0"):
        PromptScore(logprobs=(-1.0, value))


def test_a_score_of_nothing_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="at least one"):
        PromptScore(logprobs=())


@pytest.mark.parametrize("new", [scores(-1.0), ()])
def test_scores_of_other_prompts_than_the_card_are_refused(
    new: tuple[PromptScore, ...],
) -> None:
    with pytest.raises(InvalidInputError, match="same prompts"):
        judge_trial(PLAN, Budget(), CARD, measured(new))
