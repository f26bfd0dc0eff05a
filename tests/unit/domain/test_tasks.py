"""A task's plan, and the gate on its loss."""

import dataclasses

import pytest

from slmops.domain.errors import InvalidInputError
from slmops.domain.estimate import Estimate
from slmops.domain.ids import Digest
from slmops.domain.tasks import (
    TaskAnswers,
    TaskKind,
    TaskMethod,
    TaskMetric,
    TaskPlan,
    TaskResult,
    TaskSplit,
    examples_needed,
    task_violations,
)

DIGEST = Digest("sha256:" + "0" * 64)


def result(value: float, low: float, examples: int = 100) -> TaskResult:
    return TaskResult(
        name="intents",
        kind=TaskKind.CLASSIFICATION,
        metric=TaskMetric.ACCURACY,
        method=TaskMethod.RANK,
        constrained=False,
        score=Estimate(value=0.8, low=0.7, high=0.9),
        difference=Estimate(value=value, low=low, high=value),
        flips=None,
        examples=examples,
        examples_digest=DIGEST,
    )


def plan(**changes: object) -> TaskPlan:
    base = TaskPlan(name="intents", kind=TaskKind.CLASSIFICATION, examples="a.jsonl")
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def test_the_bound_is_judged_and_not_the_average() -> None:
    assert task_violations([result(0.0, -0.049)], 0.05) == ()
    assert task_violations([result(0.0, -0.05)], 0.05) == ()
    [violation] = task_violations([result(0.02, -0.06)], 0.05)
    assert "intents" in violation
    assert "about 131 examples" in violation


def test_a_loss_that_is_itself_too_large_asks_for_no_more_examples() -> None:
    [violation] = task_violations([result(-0.08, -0.1)], 0.05)
    assert "more examples would not help" in violation


def test_the_reference_violates_nothing() -> None:
    reference = dataclasses.replace(result(0.0, 0.0), difference=None)
    assert task_violations([reference], 0.05) == ()


def test_only_tasks_that_lost_are_named() -> None:
    fine = dataclasses.replace(result(0.0, -0.01), name="fine")
    violations = task_violations([fine, result(0.0, -0.3)], 0.05)
    assert [line.split(":")[0] for line in violations] == ["task intents"]


def test_needed_examples_are_never_fewer_than_there_are() -> None:
    estimate = Estimate(value=0.0, low=-0.01, high=0.01)
    assert examples_needed(estimate, 100, 0.05) == 100


def test_defaults_follow_the_kind() -> None:
    assert plan().asked_by is TaskMethod.RANK
    assert plan().scored_by is TaskMetric.ACCURACY
    extraction = plan(kind=TaskKind.EXTRACTION)
    assert extraction.asked_by is TaskMethod.GENERATE
    assert extraction.scored_by is TaskMetric.FIELD_F1
    text = plan(kind=TaskKind.TEXT, metric=TaskMetric.EXACT_MATCH)
    assert text.scored_by is TaskMetric.EXACT_MATCH


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "Intents!"}, "tasks.name"),
        ({"examples": ""}, "tasks.examples"),
        ({"search_share": 1.5}, "tasks.search_share"),
        ({"max_tokens": 0}, "tasks.max_tokens"),
        ({"limit": 0}, "tasks.limit"),
        ({"template": "no mark"}, "tasks.template"),
        ({"template": "{prompt}{prompt}"}, "tasks.template"),
        ({"labels": ("a", "a")}, "'a'"),
        ({"labels": ("a", " ")}, "' '"),
        ({"kind": TaskKind.TEXT, "labels": ("a",)}, "tasks.labels"),
        ({"kind": TaskKind.TEXT, "method": TaskMethod.RANK}, "tasks.method"),
        ({"metric": TaskMetric.ROUGE_L}, "tasks.metric"),
        ({"schema": "a.json"}, "tasks.schema"),
        ({"kind": TaskKind.EXTRACTION, "constrained": True}, "tasks.constrained"),
    ],
)
def test_a_plan_says_what_is_wrong_with_it(
    changes: dict[str, object], said: str
) -> None:
    with pytest.raises(InvalidInputError, match=r"tasks\.") as caught:
        plan(**changes)
    assert said in str(caught.value)


def test_answers_and_results_are_of_at_least_one_example() -> None:
    with pytest.raises(InvalidInputError, match="examples"):
        result(0.0, 0.0, examples=0)
    with pytest.raises(InvalidInputError, match="answer"):
        TaskAnswers(
            name="intents",
            kind=TaskKind.CLASSIFICATION,
            method=TaskMethod.RANK,
            metric=TaskMetric.ACCURACY,
            split=TaskSplit.TEST,
            constrained=False,
            examples=DIGEST,
            labels=(),
            runtime="echo",
            answers=(),
        )
