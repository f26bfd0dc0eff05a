"""The trial of a new model on this device: ask, measure, judge.

Judging golden answers is `slmops.domain.golden`; judging the soak is here. Nothing of
an answer is kept but log-probabilities of expected tokens.
"""

import contextlib

import httpx

from slmops.agent.models import Child
from slmops.agent.records import TrialPlan
from slmops.agent.telemetry import LiveCounts
from slmops.domain.errors import InvalidInputError, SlmopsError, UnavailableError
from slmops.domain.golden import PromptScore, TrialMeasurement, judge_trial
from slmops.domain.release import GoldenSet
from slmops.domain.sync import TrialResult
from slmops.runtimes.golden import ask_golden
from slmops.wire import codec

SPEED_TOKENS = 24
"""Length of the answer that is timed: long enough for a rate, short for a busy till."""
_SPEED_PROMPT = "Count from one to twenty in words."
_MAX_FAILED_SHARE = 0.05
_MIN_FAILURES = 3


def baseline(child: Child | None, golden: GoldenSet) -> tuple[PromptScore, ...] | None:
    """Return the golden scores of the model that serves now; None when there is none.

    A baseline that cannot be taken makes the trial compare with the card only: a device
    whose old model is broken must not be kept from a good one.
    """
    if child is None:
        return None
    try:
        return ask_golden(child.upstream.url, golden).scores
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
    scores = ask_golden(child.upstream.url, plan.golden).scores
    speed = decode_speed(child.upstream.url)
    return judge_trial(
        plan.rules,
        plan.budget,
        plan.card_logprobs,
        TrialMeasurement(
            scores=scores,
            old_scores=None if plan.revert else old,
            decode_tokens_per_s=speed,
            peak_rss_mib=child.peak_rss_mib(),
        ),
    )


def decode_speed(url: str) -> float | None:
    """Time one short answer; None when the runtime does not say how fast it was.

    Raises:
        UnavailableError: no answer.
    """
    body = {
        "messages": [{"role": "user", "content": _SPEED_PROMPT}],
        "max_tokens": SPEED_TOKENS,
        "temperature": 0,
    }
    try:
        answer = httpx.post(
            f"{url}/v1/chat/completions", json=body, timeout=120, trust_env=False
        )
        answer.raise_for_status()
    except httpx.HTTPError as error:
        raise UnavailableError(f"trial: {type(error).__name__}: {error}") from None
    with contextlib.suppress(LookupError, TypeError, ValueError, InvalidInputError):
        timings = codec.parse_json(answer.content, where="trial")["timings"]
        if timings["predicted_n"] > 1:
            return float(timings["predicted_per_second"]) or None
    return None


def soak_problem(
    plan: TrialPlan, counts: LiveCounts, peak_rss_mib: float | None
) -> str | None:
    """Say what live traffic since the switch holds against the new model, or None.

    Any unplanned restart fails it. Failures count from the third and from 5 % of the
    requests: one broken stream is a matter between client and network.
    """
    if counts.restarts:
        return f"its process ended {counts.restarts} times under live traffic"
    failed = counts.failures >= _MIN_FAILURES
    if failed and counts.failures > _MAX_FAILED_SHARE * counts.requests:
        return f"{counts.failures} of {counts.requests} live requests failed"
    limit = plan.budget.memory_mib
    if limit is not None and peak_rss_mib is not None and peak_rss_mib > limit:
        return (
            f"peak memory {peak_rss_mib:.0f} MiB under live traffic is above the"
            f" budget {limit:g}"
        )
    return None
