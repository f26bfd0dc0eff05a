"""A task's examples: both forms, disjoint splits, and errors that name the line."""

import json
from pathlib import Path

import pytest

from slmops.domain.errors import InvalidInputError
from slmops.domain.tasks import TaskKind, TaskPlan, TaskSplit
from slmops.workshop.tasks.examples import (
    TaskExamples,
    asked_turns,
    choose_examples,
    examples_digest,
    read_examples,
)
from slmops.workshop.tasks.json_answers import read_schema


def plan(kind: str = "classification", **more: object) -> TaskPlan:
    return TaskPlan(name="t", kind=TaskKind(kind), examples="x", **more)  # type: ignore[arg-type]


def written(folder: Path, *lines: object, name: str = "data.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def many(folder: Path, count: int = 200) -> TaskExamples:
    lines = [{"prompt": f"p{at}", "answer": "ab"[at % 2]} for at in range(count)]
    return read_examples(written(folder, *lines), plan())


def test_all_forms_of_a_line_are_the_same_example(tmp_path: Path) -> None:
    chat = [
        {"role": "user", "content": "where?"},
        {"role": "assistant", "content": "a"},
    ]
    for line in (
        {"prompt": "where?", "answer": "a"},
        {"prompt": "where?", "completion": "a"},
        {"messages": chat},
    ):
        path = written(tmp_path, line, {"prompt": "q", "answer": "b"})
        found = read_examples(path, plan())
        assert found.examples[0].turns[0].content == "where?"
        assert found.examples[0].answer == "a"
        assert found.labels == ("a", "b")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"promt": "x", "answer": "a"}, "got key 'promt' besides"),
        ({"prompt": "x"}, "got keys prompt"),
        ({}, "got keys none"),
        ({"prompt": "x", "answer": "a", "completion": "a"}, "got keys answer, complet"),
        ({"prompt": " ", "answer": "a"}, "prompt must be text, got ' '"),
        ({"prompt": 3, "answer": "a"}, "prompt must be text, got 3"),
        ({"prompt": "x", "answer": 3}, "answer of a classification must be text"),
        ({"prompt": "x", "answer": ""}, "answer of a classification must be text"),
        ({"prompt": "x", "answer": "c"}, "label 'c' is none of the task's 2 labels"),
        ({"prompt": "Q  ONE", "answer": "a"}, "occurs twice, first in line 1"),
        ({"prompt": "x", "answer": "a", "split": "train"}, "split must be search or"),
        ({"messages": []}, "messages must be a list"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0]: must have"),
        ({"messages": [{"role": "user", "content": "x"}]}, "must end with the assist"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "must follow a user"),
        ({"messages": [], "prompt": "x"}, "messages"),
    ],
)
def test_a_bad_line_is_refused_with_its_number(
    tmp_path: Path, line: object, said: str
) -> None:
    path = written(tmp_path, {"prompt": "q one", "answer": "a"}, line)
    with pytest.raises(InvalidInputError) as caught:
        read_examples(path, plan(labels=("a", "b")))
    assert said in str(caught.value)
    assert f"{path}:2: " in str(caught.value)


def test_one_label_is_no_choice(tmp_path: Path) -> None:
    path = written(tmp_path, {"prompt": "x", "answer": "a"})
    with pytest.raises(InvalidInputError, match="at least two labels, got a"):
        read_examples(path, plan())


def test_right_answers_must_satisfy_the_schema(tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object", "required": ["who"]}')
    good = {"prompt": "x", "answer": {"who": "Ann"}}
    extraction = plan("extraction", schema="s")
    path = written(tmp_path, good, {"prompt": "y", "answer": '{"who": "Bo"}'})
    found = read_examples(path, extraction, read_schema(schema))
    assert [each.answer for each in found.examples] == ['{"who":"Ann"}', '{"who":"Bo"}']
    for answer, said in (({"whom": 1}, "of the schema"), ("Ann", "not valid JSON")):
        path = written(tmp_path, good, {"prompt": "y", "answer": answer})
        with pytest.raises(InvalidInputError, match=rf"jsonl:2: .*{said}"):
            read_examples(path, extraction, read_schema(schema))


def test_splits_are_disjoint_and_whole(tmp_path: Path) -> None:
    found = many(tmp_path)
    search = choose_examples(found, plan(search_share=0.3), TaskSplit.SEARCH)
    test = choose_examples(found, plan(search_share=0.3), TaskSplit.TEST)
    lines = {each.line for each in search}, {each.line for each in test}
    assert not lines[0] & lines[1]
    assert len(lines[0] | lines[1]) == 200
    assert 35 <= len(search) <= 85


def test_a_prompt_stays_on_its_side_whatever_stands_around_it(tmp_path: Path) -> None:
    found = many(tmp_path)
    keys = {
        each.key
        for each in choose_examples(found, plan(search_share=0.5), TaskSplit.TEST)
    }
    fewer = TaskExamples(path=found.path, examples=found.examples[50:], labels=("a",))
    test = choose_examples(fewer, plan(search_share=0.5), TaskSplit.TEST)
    assert {each.key for each in test} <= keys


def test_a_line_says_its_own_split(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        {"prompt": "p0", "answer": "a", "split": "test"},
        {"prompt": "p1", "answer": "b", "split": "search"},
    )
    found = read_examples(path, plan())
    for share in (0.0, 1.0):
        [test] = choose_examples(found, plan(search_share=share), TaskSplit.TEST)
        assert test.line == 1
    only_search = TaskExamples(path=path, examples=found.examples[1:], labels=("a",))
    with pytest.raises(InvalidInputError, match="split test has none of 1 examples"):
        choose_examples(only_search, plan(), TaskSplit.TEST)


def test_a_limit_draws_from_the_whole_file_and_grows_by_adding(tmp_path: Path) -> None:
    found = many(tmp_path)
    few = choose_examples(found, plan(limit=20), TaskSplit.ALL)
    more = choose_examples(found, plan(limit=40), TaskSplit.ALL)
    assert len(few) == 20
    assert {each.line for each in few} < {each.line for each in more}
    assert max(each.line for each in few) > 100
    assert [each.line for each in few] == sorted(each.line for each in few)


def test_system_prompt_and_template_hold_the_labels(tmp_path: Path) -> None:
    found = many(tmp_path, 2)
    asking = plan(system="One of {labels}.", template="<{prompt}> {labels}?")
    assert asked_turns(found.examples[0], found.labels, asking) == [
        {"role": "system", "content": "One of a, b."},
        {"role": "user", "content": "<p0> a, b?"},
    ]


def test_text_in_a_prompt_is_never_taken_for_a_place(tmp_path: Path) -> None:
    lines = (
        {"prompt": "{labels} {prompt}", "answer": "a"},
        {"prompt": "q", "answer": "b"},
    )
    found = read_examples(written(tmp_path, *lines), plan())
    [turn] = asked_turns(
        found.examples[0], found.labels, plan(template="{labels}: {prompt}")
    )
    assert turn["content"] == "a, b: {labels} {prompt}"


def test_the_digest_follows_everything_that_is_asked(tmp_path: Path) -> None:
    found = many(tmp_path, 6)
    base = examples_digest(found.examples, found.labels, plan())
    assert base == examples_digest(found.examples, found.labels, plan(limit=9))
    assert base != examples_digest(found.examples[1:], found.labels, plan())
    assert base != examples_digest(found.examples, ("a", "b", "c"), plan())
    assert base != examples_digest(found.examples, found.labels, plan(system="s"))


def test_what_differs_in_punctuation_only_stays_on_one_side(tmp_path: Path) -> None:
    lines = [{"prompt": f"is it {at}", "answer": "ab"[at % 2]} for at in range(50)]
    again = [{"prompt": f"\u201cIs it {at}?\u201d", "answer": "a"} for at in range(50)]
    found = read_examples(written(tmp_path, *lines, *again), plan())
    sides = [
        {each.line for each in choose_examples(found, plan(), split)}
        for split in (TaskSplit.SEARCH, TaskSplit.TEST)
    ]
    assert all(sides)
    for side in sides:
        assert {line + 50 for line in side if line <= 50} <= side


@pytest.mark.parametrize("first", [{"split": "test"}, {}])
def test_the_same_prompt_in_two_splits_is_refused_with_both_lines(
    tmp_path: Path, first: dict[str, str]
) -> None:
    lines = [
        {"prompt": "other", "answer": "a"},
        {"prompt": "where is it", "answer": "a", **first},
        {"prompt": "Where is it?", "answer": "b", "split": "search"},
    ]
    path = written(tmp_path, *lines)
    with pytest.raises(InvalidInputError, match=r"data\.jsonl:3: .* of line 2 "):
        read_examples(path, plan(search_share=0.0))
