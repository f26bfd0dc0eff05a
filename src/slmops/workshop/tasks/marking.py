"""What an answer is worth: 0 to 1 by the task's metric, and right or wrong."""

import functools
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from slmops.domain.tasks import TaskAnswer, TaskKind, TaskMetric, TaskPlan
from slmops.workshop.tasks.examples import TaskExample
from slmops.workshop.tasks.json_answers import (
    AnswerSchema,
    count_fields,
    field_f1,
    is_json,
    same_json,
)

_WORD = re.compile(r"\w+")


@dataclass(frozen=True, kw_only=True, slots=True)
class RawAnswer:
    """What came back from a model."""

    text: str
    """The answer, as it was written."""
    confidence: float | None = None
    """Probability among the labels, when they were ranked."""
    finished: bool = True
    """False when it was cut off."""


def mark(
    example: TaskExample,
    raw: RawAnswer,
    plan: TaskPlan,
    *,
    labels: Sequence[str] = (),
    schema: AnswerSchema | None = None,
) -> TaskAnswer:
    """Mark one answer.

    Args:
        example: with the right answer.
        raw: the model's.
        plan: kind and metric.
        labels: a generated answer that is one of them but for case and punctuation
            counts as that one.
        schema: that an extraction must satisfy to be valid.
    """
    if plan.kind is TaskKind.CLASSIFICATION:
        answer = _as_label(raw.text, labels)
        correct = answer == example.answer
        return _answer(example, raw, answer, float(correct), correct)
    if plan.kind is TaskKind.EXTRACTION:
        return _marked_json(example, raw, plan, schema)
    correct = normalise_text(raw.text) == normalise_text(example.answer)
    exact = plan.scored_by is TaskMetric.EXACT_MATCH
    score = float(correct) if exact else rouge_l(example.answer, raw.text)
    return _answer(example, raw, raw.text, score, correct)


def normalise_text(text: str) -> str:
    """Return text without what two right answers may differ in.

    Compatibility form, case folded, punctuation as space, single spaces: as SQuAD
    (Rajpurkar et al. 2016) does, but articles stay, because that rule is English only.

    >>> normalise_text("  The  Eiffel-Tower. ")
    'the eiffel tower'
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    spaced = "".join(
        " " if unicodedata.category(character)[0] == "P" else character
        for character in folded
    )
    return " ".join(spaced.split())


def rouge_l(expected: str, answer: str) -> float:
    """Return the F-measure of the longest common subsequence of words, 0 to 1.

    Lin 2004. Words are runs of letters and digits of any script; the package's own rule
    drops everything that is not ASCII.

    >>> round(rouge_l("the cat sat", "the cat"), 2)
    0.8
    >>> rouge_l("кошка спит", "Кошка спит!")
    1.0
    """
    return float(_rouge().score(expected, answer)["rougeL"].fmeasure)


class _Words:
    """The tokenizer rouge-score is given."""

    def tokenize(self, text: str) -> list[str]:
        return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


@functools.cache
def _rouge() -> Any:  # noqa: ANN401 - untyped
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], tokenizer=_Words())


def _as_label(text: str, labels: Sequence[str]) -> str:
    stripped = text.strip()
    if stripped in labels:
        return stripped
    said = normalise_text(stripped)
    alike = [label for label in labels if normalise_text(label) == said]
    return alike[0] if len(alike) == 1 else stripped


def _marked_json(
    example: TaskExample, raw: RawAnswer, plan: TaskPlan, schema: AnswerSchema | None
) -> TaskAnswer:
    counts = count_fields(example.answer, raw.text)
    parsed = is_json(raw.text)
    valid = parsed and (schema is None or schema.problem(raw.text.strip()) is None)
    correct = valid and same_json(example.answer, raw.text)
    exact = plan.scored_by is TaskMetric.EXACT_MATCH
    return TaskAnswer(
        line=example.line,
        expected=example.answer,
        answer=raw.text,
        score=float(correct) if exact or not parsed else field_f1(counts),
        correct=correct,
        valid=valid,
        fields=counts,
        finished=raw.finished,
    )


def _answer(
    example: TaskExample, raw: RawAnswer, answer: str, score: float, correct: bool
) -> TaskAnswer:
    return TaskAnswer(
        line=example.line,
        expected=example.answer,
        answer=answer,
        score=score,
        correct=correct,
        confidence=raw.confidence,
        finished=raw.finished,
    )
