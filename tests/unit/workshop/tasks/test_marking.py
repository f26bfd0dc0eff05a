"""What an answer is worth."""

from slmops.domain.tasks import TaskAnswer, TaskKind, TaskMetric, TaskPlan
from slmops.workshop.tasks.examples import TaskExample
from slmops.workshop.tasks.marking import RawAnswer, mark


def marked(kind: str, expected: str, text: str, **more: object) -> TaskAnswer:
    plan = TaskPlan(name="t", kind=TaskKind(kind), examples="x", **more)  # type: ignore[arg-type]
    example = TaskExample(line=3, turns=(), answer=expected, key="k")
    labels = ("lost card", "card_arrival", "Card", "card.")
    return mark(example, RawAnswer(text=text), plan, labels=labels)


def test_a_generated_label_counts_but_for_case_and_punctuation() -> None:
    for text in ("lost card", " Lost card.\n", "lost-card"):
        answer = marked("classification", "lost card", text)
        assert (answer.answer, answer.correct, answer.score) == ("lost card", True, 1.0)
    assert marked("classification", "card_arrival", "Card arrival").correct


def test_a_label_in_a_sentence_is_no_label() -> None:
    answer = marked("classification", "lost card", "It is lost card")
    assert (answer.correct, answer.answer) == (False, "It is lost card")


def test_two_labels_that_look_alike_need_the_exact_one() -> None:
    assert marked("classification", "Card", "Card").correct
    assert not marked("classification", "Card", "CARD").correct


def test_text_is_scored_by_rouge_and_right_by_match() -> None:
    answer = marked("text", "The cat sat.", "the cat")
    assert not answer.correct
    assert round(answer.score, 2) == 0.8
    assert marked("text", "The cat sat.", "the CAT sat").correct
    exact = marked("text", "The cat sat.", "the cat", metric=TaskMetric.EXACT_MATCH)
    assert exact.score == 0.0


def test_extraction_scores_fields_and_says_whether_it_is_valid() -> None:
    answer = marked("extraction", '{"a":1,"b":2}', '{"a": 1, "b": 3}')
    assert (answer.score, answer.correct, answer.valid) == (0.5, False, True)
    prose = marked("extraction", '{"a":1}', 'Sure: {"a": 1}')
    assert (prose.score, prose.correct, prose.valid) == (0.0, False, False)
    nothing = marked("extraction", "{}", "no")
    assert nothing.score == 0.0
