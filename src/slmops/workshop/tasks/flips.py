"""One model against the reference on the same examples, pair by pair."""

from slmops.domain.errors import InvalidInputError
from slmops.domain.estimate import Estimate
from slmops.domain.tasks import Flips, TaskAnswers, TaskKind, TaskResult
from slmops.workshop.tasks.metrics import confusions, detail_metrics, mean_estimate

_COMPARABLE = ("name", "kind", "method", "metric", "split", "constrained", "examples")


def task_result(
    answers: TaskAnswers, reference: TaskAnswers | None = None
) -> TaskResult:
    """Return a model's figures on a task, with those against the reference.

    Args:
        answers: of the model.
        reference: of the reference on the same examples, asked the same way; None when
            the model is the reference itself.

    Raises:
        InvalidInputError: not the same examples, or not asked the same way.
    """
    shows = answers.kind is TaskKind.CLASSIFICATION
    return TaskResult(
        name=answers.name,
        kind=answers.kind,
        metric=answers.metric,
        method=answers.method,
        constrained=answers.constrained,
        score=mean_estimate([each.score for each in answers.answers]),
        difference=None if reference is None else paired_difference(answers, reference),
        flips=None if reference is None else count_flips(answers, reference),
        examples=len(answers.answers),
        examples_digest=answers.examples,
        split=answers.split,
        metrics=detail_metrics(answers),
        confusions=confusions(answers.answers) if shows else (),
    )


def paired_difference(answers: TaskAnswers, reference: TaskAnswers) -> Estimate:
    """Estimate the mean of score minus the reference's score, example by example.

    Raises:
        InvalidInputError: not the same examples, or not asked the same way.
    """
    _check_comparable(answers, reference)
    pairs = zip(answers.answers, reference.answers, strict=True)
    return mean_estimate([one.score - other.score for one, other in pairs], lowest=-1.0)


def count_flips(answers: TaskAnswers, reference: TaskAnswers) -> Flips:
    """Count answers that went from right to wrong and from wrong to right.

    Raises:
        InvalidInputError: not the same examples, or not asked the same way.
    """
    _check_comparable(answers, reference)
    pairs = [
        (one.correct, other.correct)
        for one, other in zip(answers.answers, reference.answers, strict=True)
    ]
    lost, won = pairs.count((False, True)), pairs.count((True, False))
    return Flips(
        right_to_wrong=lost, wrong_to_right=won, p_value=mcnemar_exact(lost, won)
    )


def mcnemar_exact(lost: int, won: int) -> float:
    """Return McNemar's exact two-sided p: twice the tail of Bin(lost + won, 1/2).

    McNemar 1947; the binomial in place of its approximation.

    >>> mcnemar_exact(0, 5), mcnemar_exact(3, 3), mcnemar_exact(0, 0)
    (0.0625, 1.0, 1.0)
    """
    flips, term, tail = lost + won, 1, 0
    for wins in range(min(lost, won) + 1):
        tail += term
        term = term * (flips - wins) // (wins + 1)
    return min(1.0, 2 * tail / (1 << flips))


def _check_comparable(answers: TaskAnswers, reference: TaskAnswers) -> None:
    for name in _COMPARABLE:
        one, other = getattr(answers, name), getattr(reference, name)
        if one != other:
            raise InvalidInputError(
                f"task {answers.name}: {name} must be the reference's {other}, got {one}"
            )
