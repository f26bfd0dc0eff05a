"""The trial of a new model on this device: ask, measure, judge.

Judging golden answers is `slmops.domain.golden`; judging the soak
is `slmops.domain.soak`. Nothing of
an answer is kept but log-probabilities of expected tokens.
"""

from dataclasses import replace

from slmops.agent.models import Child
from slmops.agent.records import TrialPlan
from slmops.domain.errors import SlmopsError
from slmops.domain.golden import (
    PromptScore,
    TrialMeasurement,
    blames_variant,
    judge_trial,
)
from slmops.domain.release import GoldenSet
from slmops.domain.soak import LiveCounts, live_problem
from slmops.domain.soak import soak_problem as live_soak_problem
from slmops.domain.sync import TrialResult
from slmops.runtimes.address import Address, open_client
from slmops.runtimes.golden import ask_golden
from slmops.runtimes.speed import SpeedPlan, run_once

_SPEED_PLAN = SpeedPlan(runs=1, prompt_tokens=8, answer_tokens=16)
"""Fits the smallest context there is."""


def baseline(child: Child | None, golden: GoldenSet) -> tuple[PromptScore, ...] | None:
    """Return the golden scores of the model that serves now; None when there is none.

    A baseline that cannot be taken makes the trial compare with the card only: a device
    whose old model is broken must not be kept from a good one.
    """
    if child is None:
        return None
    try:
        return ask_golden(child.upstream.address, golden).scores
    except SlmopsError:
        return None


def golden_trial(
    child: Child, plan: TrialPlan, old: tuple[PromptScore, ...] | None
) -> TrialResult:
    """Ask the new model and judge it by the domain's rule.

    Raises:
        UnavailableError: its process died or does not answer.
        InvalidInputError: what it answers is no answer.
    """
    address = child.upstream.address
    run = ask_golden(address, plan.golden)
    speed = run.decode_tokens_per_s
    limited = plan.budget.decode_tokens_per_s is not None
    if speed is None and limited:
        speed = _decode_speed(address)
    peak, unread = child.peak_memory()
    measured = TrialMeasurement(
        scores=run.scores,
        old_scores=None if plan.revert else old,
        decode_tokens_per_s=speed,
        peak_rss_mib=peak,
        unread_memory=unread,
    )
    result = _judge(plan, measured)
    if result.passed or not limited or variant_at_fault(plan, result):
        return result
    # Slow may be the moment: an update, a backup, a golden answer of two tokens.
    again = max(_decode_speed(address) or 0.0, speed or 0.0) or None
    return _judge(plan, replace(measured, decode_tokens_per_s=again))


def _judge(plan: TrialPlan, measured: TrialMeasurement) -> TrialResult:
    return judge_trial(plan.rules, plan.budget, plan.card_logprobs, measured)


def variant_at_fault(plan: TrialPlan, result: TrialResult) -> bool:
    """Tell whether a failed trial is held against the variant for good."""
    return blames_variant(plan.rules, plan.budget, result)


def _decode_speed(address: Address) -> float | None:
    """Measure with an answer of its own: golden answers of one token show no speed."""
    try:
        with open_client(address) as client:
            return run_once(client, _SPEED_PLAN).decode_tokens_per_s
    except SlmopsError:
        return None


def soak_problem(
    plan: TrialPlan, counts: LiveCounts, peak_rss_mib: float | None
) -> str | None:
    """Say what live traffic since the switch holds against the new model, or None."""
    return live_soak_problem(plan.budget, replace(counts, peak_rss_mib=peak_rss_mib))


def soak_blames(
    plan: TrialPlan, counts: LiveCounts, peak_rss_mib: float | None
) -> bool:
    """Tell whether the soak's problem is the model's: memory nobody measured is not."""
    counts = replace(counts, peak_rss_mib=peak_rss_mib)
    return live_problem(plan.budget, counts) is not None
