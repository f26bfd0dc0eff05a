"""Tasks: the user's own examples, what a model answered, and whether that is enough.

A variant is judged against the reference on the *same* examples, pair by pair, because
a difference of two averages hides how many answers changed. The bound that counts is
the pessimistic one: with few examples it says no, and says how many would do.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from slmops.domain.errors import InvalidInputError
from slmops.domain.estimate import Estimate
from slmops.domain.ids import Digest, check_name

PROMPT_MARK = "{prompt}"
"""Where a template puts the example's prompt."""
LABELS_MARK = "{labels}"
"""Where a template or system prompt puts the labels, separated by commas."""


class TaskKind(StrEnum):
    """What an answer is."""

    CLASSIFICATION = "classification"
    EXTRACTION = "extraction"
    TEXT = "text"


class TaskMethod(StrEnum):
    """How a model is asked."""

    RANK = "rank"
    """Each label's probability as the whole answer; the likeliest is the answer."""
    GENERATE = "generate"
    """Greedy generation, as an application would ask."""


class TaskMetric(StrEnum):
    """What an example's score is, 0 to 1."""

    ACCURACY = "accuracy"
    FIELD_F1 = "field_f1"
    EXACT_MATCH = "exact_match"
    ROUGE_L = "rouge_l"


class TaskSplit(StrEnum):
    """Which part of the examples: one to choose by, one to report."""

    SEARCH = "search"
    TEST = "test"
    ALL = "all"


METRICS: Mapping[TaskKind, tuple[TaskMetric, ...]] = {
    TaskKind.CLASSIFICATION: (TaskMetric.ACCURACY,),
    TaskKind.EXTRACTION: (TaskMetric.FIELD_F1, TaskMetric.EXACT_MATCH),
    TaskKind.TEXT: (TaskMetric.ROUGE_L, TaskMetric.EXACT_MATCH),
}
"""What a kind may be scored by; the first is its default."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskPlan:
    """A task of the user's own: examples with the right answers, and how to ask."""

    name: str
    """Name of the task, on cards and in messages."""
    kind: TaskKind
    """What an answer is: a label, JSON, or text."""
    examples: str
    """Path of a JSONL file, relative to the blueprint: ``prompt`` and ``answer`` a line."""
    search_share: float = 0.5
    """Share of the examples that candidates are chosen by; the gate and the card take the
    others. Lines that carry a ``split`` of their own go where that says."""
    labels: tuple[str, ...] = ()
    """Labels of a classification; empty collects them from the examples."""
    method: TaskMethod | None = None
    """How to ask; null ranks labels and generates everything else."""
    metric: TaskMetric | None = None
    """What an example's score is; null is accuracy, field F1 or ROUGE-L, by kind."""
    schema: str | None = None
    """Path of the JSON Schema of an extraction's answers, relative to the blueprint."""
    constrained: bool = False
    """Hold generation to the schema, by the runtime's grammar."""
    system: str | None = None
    """System prompt; ``{labels}`` in it becomes the labels. Null sends none."""
    template: str = PROMPT_MARK
    """User turn: ``{prompt}`` becomes the example's prompt, ``{labels}`` the labels."""
    max_tokens: int = 64
    """Longest generated answer."""
    limit: int | None = None
    """Most examples asked of each split, chosen by a hash of the prompt; null asks all."""

    def __post_init__(self) -> None:
        check_name(self.name, where="tasks.name")
        if not self.examples:
            raise InvalidInputError("tasks.examples must name a file, got ''")
        if not 0 <= self.search_share <= 1:
            raise InvalidInputError(
                f"tasks.search_share must be in 0..1, got {self.search_share:g}"
            )
        for name in ("max_tokens", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidInputError(f"tasks.{name} must be >= 1, got {value}")
        if self.template.count(PROMPT_MARK) != 1:
            raise InvalidInputError(
                f"tasks.template must hold {PROMPT_MARK} once, got {self.template!r}"
            )
        self._check_labels()
        self._check_asking()

    def _check_labels(self) -> None:
        if self.labels and self.kind is not TaskKind.CLASSIFICATION:
            raise InvalidInputError(
                f"tasks.labels are of classifications, {self.name} is {self.kind}"
            )
        for label in self.labels:
            if not label.strip() or self.labels.count(label) > 1:
                raise InvalidInputError(
                    f"tasks.labels must be distinct and not blank, got {label!r}"
                )

    def _check_asking(self) -> None:
        if self.asked_by is TaskMethod.RANK and self.kind is not (
            TaskKind.CLASSIFICATION
        ):
            raise InvalidInputError(
                f"tasks.method rank needs labels to rank, {self.name} is {self.kind}"
            )
        if self.metric is not None and self.metric not in METRICS[self.kind]:
            raise InvalidInputError(
                f"tasks.metric of {self.kind} must be one of"
                f" {', '.join(METRICS[self.kind])}, got {self.metric}"
            )
        if self.schema is not None and self.kind is not TaskKind.EXTRACTION:
            raise InvalidInputError(
                f"tasks.schema is of extractions, {self.name} is {self.kind}"
            )
        if self.constrained and self.schema is None:
            raise InvalidInputError("tasks.constrained needs tasks.schema, got none")

    @property
    def asked_by(self) -> TaskMethod:
        """The method, defaults filled in."""
        if self.method is not None:
            return self.method
        ranks = self.kind is TaskKind.CLASSIFICATION
        return TaskMethod.RANK if ranks else TaskMethod.GENERATE

    @property
    def scored_by(self) -> TaskMetric:
        """The metric, defaults filled in."""
        return self.metric or METRICS[self.kind][0]


@dataclass(frozen=True, kw_only=True, slots=True)
class FieldCounts:
    """Fields of one JSON answer against the expected one."""

    matched: int
    """In both, with the same value."""
    answered: int
    """In the answer; 0 when it is not JSON."""
    expected: int
    """In the example."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskAnswer:
    """What one model made of one example."""

    line: int
    """Line of the example in its file."""
    expected: str
    """The right answer: a label, canonical JSON, or text."""
    answer: str
    """The model's answer, as text."""
    score: float
    """0 to 1, by the task's metric."""
    correct: bool
    """Whether it counts as right: the label, or an exact match."""
    confidence: float | None = None
    """Ranked: probability of the answer given that it is one of the labels."""
    valid: bool | None = None
    """Extraction: whether it is JSON that the schema accepts."""
    fields: FieldCounts | None = None
    """Extraction: field by field."""
    finished: bool = True
    """False when generation was cut off at the longest answer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskAnswers:
    """Everything one model answered to one task."""

    name: str
    """The task's name."""
    kind: TaskKind
    """What an answer is."""
    method: TaskMethod
    """How it was asked."""
    metric: TaskMetric
    """What a score is."""
    split: TaskSplit
    """Part of the examples that was asked."""
    constrained: bool
    """Whether the runtime held answers to the schema."""
    examples: Digest
    """Digest of all that was asked: prompts, right answers, labels, system, template."""
    labels: tuple[str, ...]
    """Of a classification, in the order of the plan or the alphabet."""
    runtime: str
    """Runtime and version that answered."""
    answers: tuple[TaskAnswer, ...]
    """In the order of the file."""

    def __post_init__(self) -> None:
        if not self.answers:
            raise InvalidInputError(f"task {self.name} needs at least one answer")


@dataclass(frozen=True, kw_only=True, slots=True)
class Flips:
    """Answers that changed between right and wrong, example by example."""

    right_to_wrong: int
    """Right by the reference, wrong by the variant."""
    wrong_to_right: int
    """Wrong by the reference, right by the variant."""
    p_value: float
    """Exact two-sided McNemar test: chance of flips at least as lopsided if neither
    direction were likelier."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Confusion:
    """One wrong label in place of a right one."""

    expected: str
    """Right label."""
    answer: str
    """Given label."""
    count: int
    """How often."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskResult:
    """How one model does on one task, alone and against the reference."""

    name: str
    """The task's name."""
    kind: TaskKind
    """What an answer is."""
    metric: TaskMetric
    """What the score is."""
    method: TaskMethod
    """How it was asked."""
    constrained: bool
    """Whether the runtime held answers to the schema."""
    score: Estimate
    """Mean score, 0 to 1."""
    difference: Estimate | None
    """Mean of the paired differences to the reference, -1 to 1; None for the reference."""
    flips: Flips | None
    """Against the reference; None for the reference."""
    examples: int
    """How many were asked."""
    examples_digest: Digest
    """Digest of what was asked: results with the same one are comparable."""
    split: TaskSplit = TaskSplit.TEST
    """Part of the examples that was asked."""
    metrics: Mapping[str, Estimate] = field(default_factory=dict)
    """Further figures: ``macro_f1``, ``ece``, ``validity``, ``field_precision`` …"""
    confusions: tuple[Confusion, ...] = ()
    """Most frequent confusions of labels, at most ten."""

    def __post_init__(self) -> None:
        if self.examples < 1:
            raise InvalidInputError(
                f"task {self.name} must have >= 1 examples, got {self.examples}"
            )


def task_violations(
    results: Sequence[TaskResult], max_task_loss: float
) -> tuple[str, ...]:
    """Say which tasks may have lost more than is allowed; empty when none.

    Pessimistic: the lower 95 % bound of the paired difference must be at least
    ``-max_task_loss``. The reference itself violates nothing.

    >>> from slmops.domain.ids import Digest
    >>> result = TaskResult(
    ...     name="intents", kind=TaskKind.CLASSIFICATION, metric=TaskMetric.ACCURACY,
    ...     method=TaskMethod.RANK, constrained=False, examples=40,
    ...     score=Estimate(value=0.9, low=0.8, high=0.97),
    ...     difference=Estimate(value=0.0, low=-0.1, high=0.1),
    ...     flips=Flips(right_to_wrong=2, wrong_to_right=2, p_value=1.0),
    ...     examples_digest=Digest("sha256:" + "0" * 64),
    ... )
    >>> for line in task_violations([result], 0.05):
    ...     print(line)
    task intents: accuracy may be 0.100 below the reference's (0.000, 95 % bound -0.100 on 40 examples), at most 0.05 is allowed; with this difference about 160 examples would show it
    """
    return tuple(
        _violation(result, result.difference, max_task_loss)
        for result in results
        if result.difference is not None and result.difference.low < -max_task_loss
    )


def examples_needed(
    difference: Estimate, examples: int, max_task_loss: float
) -> int | None:
    """Return how many examples would clear the gate if the difference stayed as it is.

    Bounds shrink with the square root of the number of examples. None when the
    difference itself is too large: more examples would not help.

    >>> examples_needed(Estimate(value=-0.01, low=-0.09, high=0.07), 100, 0.05)
    400
    """
    room = difference.value + max_task_loss
    if room <= 0:
        return None
    needed = examples * ((difference.value - difference.low) / room) ** 2
    return max(examples, math.ceil(round(needed, 6)))


def _violation(result: TaskResult, difference: Estimate, limit: float) -> str:
    needed = examples_needed(difference, result.examples, limit)
    advice = (
        "the difference itself is too large, more examples would not help"
        if needed is None
        else f"with this difference about {needed} examples would show it"
    )
    return (
        f"task {result.name}: {result.metric} may be {-difference.low:.3f} below the"
        f" reference's ({difference.value:.3f}, 95 % bound {difference.low:.3f} on"
        f" {result.examples} examples), at most {limit:g} is allowed; {advice}"
    )
