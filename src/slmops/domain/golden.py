"""The trial on the device: golden answers compared with the card and the old model.

Exact match of answers over-alarms, and a confidence that *rises* can mean a poisoned
model: so the comparison with the card is two-sided, on log-probabilities. The
comparison with the replaced model is one-sided and paired: same device, same prompts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard

from slmops.domain.blueprint import GoldenPlan
from slmops.domain.device import Budget
from slmops.domain.errors import InvalidInputError
from slmops.domain.sync import TrialResult

_ROUNDING = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptScore:
    """How one model scored on one golden prompt."""

    logprobs: tuple[float, ...]
    """log p of each token of the reference's answer, given the prompt and the answer's
    earlier tokens, nats; floored where the token was not among the listed ones."""

    def __post_init__(self) -> None:
        if not self.logprobs:
            raise InvalidInputError("golden score needs at least one log-probability")
        if any(
            not math.isfinite(value) or value > _ROUNDING for value in self.logprobs
        ):
            raise InvalidInputError(
                "golden log-probabilities must be finite and <= 0, got"
                f" {', '.join(f'{value:g}' for value in self.logprobs)}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialMeasurement:
    """What the device measured while its new model answered the golden prompts."""

    scores: tuple[PromptScore, ...]
    """One per prompt of the release."""
    old_scores: tuple[PromptScore, ...] | None
    """Of the replaced model, same prompts; None when there was none."""
    decode_tokens_per_s: float | None
    """None when the runtime did not say: fails a trial that has a speed budget."""
    peak_rss_mib: float | None
    """None when it could not be read: fails a trial that has a memory budget."""
    unread_memory: str = ""
    """Why `peak_rss_mib` is missing."""


def card_delta(card_logprobs: Sequence[float], scores: Sequence[PromptScore]) -> float:
    """Return the mean |Δ log p| of first tokens between card and device, nats.

    Raises:
        InvalidInputError: not the same number of prompts, or none.

    >>> card_delta([-1.0, -2.0], [PromptScore(logprobs=(-1.5,)), PromptScore(logprobs=(-2.0,))])
    0.25
    """
    _same_length(len(card_logprobs), len(scores))
    return sum(
        abs(score.logprobs[0] - expected)
        for expected, score in zip(card_logprobs, scores, strict=True)
    ) / len(scores)


def paired_loss(old: Sequence[PromptScore], new: Sequence[PromptScore]) -> float:
    """Return how much mean log p of the reference's answers fell, nats a token.

    Positive means the new model is worse. Prompts weigh the same, whatever the length
    of their answers.

    Raises:
        InvalidInputError: not the same prompts, or none.

    >>> paired_loss([PromptScore(logprobs=(-1.0, -1.0))], [PromptScore(logprobs=(-2.0, -1.0))])
    0.5
    """
    _same_length(len(old), len(new))
    losses = []
    for before, after in zip(old, new, strict=True):
        _same_length(len(before.logprobs), len(after.logprobs))
        pairs = zip(before.logprobs, after.logprobs, strict=True)
        losses.append(sum(a - b for a, b in pairs) / len(before.logprobs))
    return sum(losses) / len(losses)


def judge_trial(
    plan: GoldenPlan,
    budget: Budget,
    card_logprobs: Sequence[float],
    measured: TrialMeasurement,
) -> TrialResult:
    """Decide whether the device may keep the new model.

    Fails when first tokens differ from the card's by more than `plan.max_card_delta`,
    when the model is worse than the replaced one by more than `plan.max_paired_loss`,
    when it decodes at less than `plan.min_decode_ratio` of the budgeted speed, or when
    its peak memory is above the budget. A budgeted figure that was not measured fails
    too: a limit that nobody checked does not hold. The reason holds figures and prompt
    indices, never text.

    Raises:
        InvalidInputError: scores and card are not of the same prompts.
    """
    delta = card_delta(card_logprobs, measured.scores)
    loss = (
        None
        if measured.old_scores is None
        else paired_loss(measured.old_scores, measured.scores)
    )
    problems = [
        *_answer_problems(plan, card_logprobs, measured.scores, delta),
        *_loss_problems(plan, loss),
        *_cost_problems(plan, budget, measured),
    ]
    good = f"card delta {delta:.3f} nats" + (
        "" if loss is None else f", paired loss {loss:+.3f} nats"
    )
    return TrialResult(
        passed=not problems,
        reason="golden prompts: " + ("; ".join(problems) or good),
        card_delta=delta,
        paired_loss=loss,
        decode_tokens_per_s=measured.decode_tokens_per_s,
        peak_rss_mib=measured.peak_rss_mib,
    )


def blames_variant(plan: GoldenPlan, budget: Budget, result: TrialResult) -> bool:
    """Tell whether a failed trial shows a fault of the variant itself.

    Answers and memory are the same at every try. Speed depends on what else the device
    does at the time, and a figure that a system does not give says nothing at all.
    """
    delta, peak, limit = result.card_delta, result.peak_rss_mib, budget.memory_mib
    return (
        delta is None
        or not delta <= plan.max_card_delta
        or bool(_loss_problems(plan, result.paired_loss))
        or (limit is not None and _is_measured(peak) and peak > limit)
    )


def _answer_problems(
    plan: GoldenPlan,
    card_logprobs: Sequence[float],
    scores: Sequence[PromptScore],
    delta: float,
) -> list[str]:
    if delta <= plan.max_card_delta:
        return []
    gaps = [
        abs(score.logprobs[0] - expected)
        for expected, score in zip(card_logprobs, scores, strict=True)
    ]
    worst = max(range(len(gaps)), key=gaps.__getitem__)
    return [
        f"answers differ from the release card by {delta:.3f} nats on average, at most"
        f" {plan.max_card_delta:g} is allowed (worst: prompt {worst}, {gaps[worst]:.2f})"
    ]


def _loss_problems(plan: GoldenPlan, loss: float | None) -> list[str]:
    if loss is None or loss <= plan.max_paired_loss:
        return []
    return [
        f"paired loss {loss:.3f} nats a token against the replaced model, at most"
        f" {plan.max_paired_loss:g} is allowed"
    ]


def _cost_problems(
    plan: GoldenPlan, budget: Budget, measured: TrialMeasurement
) -> list[str]:
    return [
        *_memory_problems(budget.memory_mib, measured),
        *_speed_problems(plan, budget.decode_tokens_per_s, measured),
    ]


def _memory_problems(limit: float | None, measured: TrialMeasurement) -> list[str]:
    peak = measured.peak_rss_mib
    if limit is None:
        return []
    if not _is_measured(peak):
        why = f" ({measured.unread_memory})" if measured.unread_memory else ""
        return [f"peak memory was not measured{why}, the budget is {limit:g} MiB"]
    if peak > limit:
        return [f"peak memory {peak:.0f} MiB is above the budget {limit:g}"]
    return []


def _speed_problems(
    plan: GoldenPlan, budgeted: float | None, measured: TrialMeasurement
) -> list[str]:
    speed = measured.decode_tokens_per_s
    if budgeted is None:
        return []
    if not _is_measured(speed):
        return [f"decode speed was not measured, the budget is {budgeted:g} tokens/s"]
    least = plan.min_decode_ratio * budgeted
    if speed < least:
        return [
            f"decode {speed:.2f} tokens/s is below {least:.2f}"
            f" ({plan.min_decode_ratio:g} of the budget)"
        ]
    return []


def _is_measured(figure: float | None) -> TypeGuard[float]:
    """Comparing with NaN is never true: it must not look like being within a limit."""
    return figure is not None and math.isfinite(figure) and figure > 0


def _same_length(expected: int, found: int) -> None:
    if expected != found or expected == 0:
        raise InvalidInputError(
            f"golden scores must be of the same prompts and tokens,"
            f" got {expected} and {found}"
        )
