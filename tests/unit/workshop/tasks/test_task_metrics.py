"""Figures of a task, and whether their bounds hold what they promise."""

import numpy as np
import pytest

from slmops.domain.errors import InvalidInputError
from slmops.domain.ids import Digest
from slmops.domain.tasks import (
    FieldCounts,
    TaskAnswer,
    TaskAnswers,
    TaskKind,
    TaskMethod,
    TaskMetric,
    TaskSplit,
    task_violations,
)
from slmops.workshop.tasks.flips import mcnemar_exact, paired_difference, task_result
from slmops.workshop.tasks.metrics import (
    bootstrap,
    calibration_error,
    macro_f1,
    mean_estimate,
)

Pair = tuple[str, str]


def answer(
    expected: str, given: str, line: int = 1, confidence: float | None = None
) -> TaskAnswer:
    return TaskAnswer(
        line=line,
        expected=expected,
        answer=given,
        score=float(expected == given),
        correct=expected == given,
        confidence=confidence,
    )


def answers(
    pairs: list[Pair], method: TaskMethod = TaskMethod.RANK, digest: str = "0"
) -> TaskAnswers:
    return TaskAnswers(
        name="t",
        kind=TaskKind.CLASSIFICATION,
        method=method,
        metric=TaskMetric.ACCURACY,
        split=TaskSplit.TEST,
        constrained=False,
        examples=Digest("sha256:" + digest * 64),
        labels=("a", "b", "c"),
        runtime="r 1",
        answers=tuple(
            answer(*pair, line=line, confidence=0.9) for line, pair in enumerate(pairs)
        ),
    )


def of(right: int, wrong: int) -> list[Pair]:
    return [("a", "a")] * right + [("a", "b")] * wrong


def test_macro_f1_is_the_mean_over_labels() -> None:
    # a: 1 hit, 1 given too often (F1 2/3); b: hit and missed once (2/3); c: never seen.
    found = macro_f1(answers([("a", "a"), ("b", "b"), ("b", "a")]))
    assert found.value == pytest.approx(2 / 3)


def test_an_answer_outside_the_labels_is_a_miss() -> None:
    found = macro_f1(answers([("a", "a"), ("b", "what?")], TaskMethod.GENERATE))
    assert found.value == pytest.approx(0.5)


def test_calibration_error_compares_confidence_with_accuracy() -> None:
    sure = [answer("a", "a", confidence=0.95)] * 50 + [
        answer("a", "b", confidence=0.95)
    ] * 50
    assert calibration_error(sure).value == pytest.approx(0.45)
    right = [answer("a", "a", confidence=1.0)] * 10
    assert calibration_error(right).value == 0.0


def test_bounds_hold_the_truth_about_as_often_as_they_say() -> None:
    chance = np.random.default_rng(5)
    held = 0
    for _ in range(200):
        drawn = (chance.random(100) < 0.8).astype(float)
        found = mean_estimate(drawn.tolist())
        held += found.low <= 0.8 <= found.high
    assert held >= 184  # 92 %: two standard errors below 95


def test_rare_flips_do_not_fool_the_lower_bound() -> None:
    """At few flips the plain percentile interval is too narrow; the floor mends it."""
    chance = np.random.default_rng(6)
    above = 0
    for _ in range(200):
        drawn = chance.choice([-1.0, 0.0, 1.0], size=60, p=[0.04, 0.95, 0.01])
        found = mean_estimate(drawn.tolist(), lowest=-1.0)
        above += found.low > -0.03
    assert above <= 10  # 5 % of 200; one-sided 2.5 % is asked of a perfect interval


def test_examples_that_all_agree_still_have_bounds() -> None:
    assert mean_estimate([1.0] * 20).low == pytest.approx(0.839, abs=1e-3)
    assert mean_estimate([0.0] * 20).high == pytest.approx(0.161, abs=1e-3)


def test_equal_answers_give_equal_bounds() -> None:
    one, other = (task_result(answers(of(30, 10)), answers(of(28, 12))) for _ in "ab")
    assert one == other


def test_what_has_no_examples_has_no_figures() -> None:
    with pytest.raises(InvalidInputError, match="features"):
        bootstrap(np.zeros((0, 1)), lambda sums: sums[:, 0])


def test_the_reference_has_neither_difference_nor_flips() -> None:
    result = task_result(answers(of(30, 10)))
    assert result.difference is None
    assert result.flips is None
    assert result.score.value == 0.75
    assert result.confusions[0].count == 10


def test_flips_show_what_averages_hide() -> None:
    reference = answers([("a", "a")] * 10 + [("a", "b")] * 10 + [("a", "a")] * 80)
    variant = answers([("a", "b")] * 10 + [("a", "a")] * 10 + [("a", "a")] * 80)
    result = task_result(variant, reference)
    assert result.difference is not None
    assert result.flips is not None
    assert result.difference.value == 0.0
    assert (result.flips.right_to_wrong, result.flips.wrong_to_right) == (10, 10)
    assert result.flips.p_value == 1.0
    assert result.difference.low < -0.05


def test_pairing_narrows_the_bounds() -> None:
    reference, variant = answers(of(150, 50)), answers(of(148, 52))
    paired = paired_difference(variant, reference)
    alone = task_result(variant).score
    assert paired.high - paired.low < (alone.high - alone.low) / 2


def test_few_examples_fail_the_gate_though_nothing_changed() -> None:
    few = task_result(answers(of(30, 10)), answers(of(30, 10)))
    [violation] = task_violations([few], 0.05)
    assert "on 40 examples" in violation
    enough = task_result(answers(of(60, 20)), answers(of(60, 20)))
    assert task_violations([enough], 0.05) == ()


def test_answers_to_other_questions_are_not_compared() -> None:
    with pytest.raises(InvalidInputError, match="examples must be the reference's"):
        task_result(answers(of(3, 1)), answers(of(3, 1), digest="1"))
    with pytest.raises(InvalidInputError, match="method must be the reference's"):
        task_result(answers(of(3, 1)), answers(of(3, 1), TaskMethod.GENERATE))


def test_mcnemar_agrees_with_the_binomial_test() -> None:
    from scipy.stats import binomtest

    for lost, won in ((0, 1), (2, 9), (30, 50), (500, 400)):
        expected = binomtest(min(lost, won), lost + won).pvalue
        assert mcnemar_exact(lost, won) == pytest.approx(expected, rel=1e-9)


def test_extraction_pools_fields_over_examples() -> None:
    def one(line: int, counts: tuple[int, int, int], valid: bool) -> TaskAnswer:
        matched, answered, expected = counts
        return TaskAnswer(
            line=line,
            expected="{}",
            answer="",
            score=0.5,
            correct=False,
            valid=valid,
            fields=FieldCounts(matched=matched, answered=answered, expected=expected),
        )

    found = TaskAnswers(
        name="t",
        kind=TaskKind.EXTRACTION,
        method=TaskMethod.GENERATE,
        metric=TaskMetric.FIELD_F1,
        split=TaskSplit.TEST,
        constrained=False,
        examples=Digest("sha256:" + "0" * 64),
        labels=(),
        runtime="r 1",
        answers=(one(1, (1, 2, 4), True), one(2, (0, 0, 2), False)),
    )
    metrics = task_result(found).metrics
    assert metrics["field_precision"].value == 0.5
    assert metrics["field_recall"].value == pytest.approx(1 / 6)
    assert metrics["field_f1_pooled"].value == 0.25
    assert metrics["validity"].value == 0.5
