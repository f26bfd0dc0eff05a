"""Prompts of tasks in training data, or on two sides of a build: both lines are named."""

import json
from pathlib import Path

import pytest

from slmops.domain.errors import InvalidInputError
from slmops.domain.tasks import TaskKind, TaskPlan
from slmops.workshop.tasks.examples import TaskExamples, read_examples
from slmops.workshop.tasks.leakage import refuse_leakage, refuse_other_side


def plan(name: str = "t", search_share: float = 0.5) -> TaskPlan:
    return TaskPlan(
        name=name,
        kind=TaskKind.CLASSIFICATION,
        examples="x",
        search_share=search_share,
    )


def written(folder: Path, *lines: object, name: str = "data.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def many(folder: Path, count: int = 200) -> TaskExamples:
    lines = [{"prompt": f"p{at}", "answer": "ab"[at % 2]} for at in range(count)]
    return read_examples(written(folder, *lines), plan())


def test_a_prompt_in_the_training_data_is_leakage_with_both_lines(
    tmp_path: Path,
) -> None:
    found = many(tmp_path)
    chat = {
        "messages": [
            {"role": "system", "content": "be short"},
            {"role": "user", "content": " P7\n"},
            {"role": "assistant", "content": "no"},
        ]
    }
    fine = {"prompt": "other", "completion": "x"}
    clean = written(tmp_path, fine, name="clean.jsonl")
    assert refuse_leakage(found, clean) == 1
    long = {
        "messages": [
            {"role": "user", "content": "p7?"},
            {"role": "assistant", "content": "no"},
            {"role": "user", "content": "sure?"},
            {"role": "assistant", "content": "yes"},
        ]
    }
    asked = {"prompt": "\u201cP7!\u201d"}
    for line in (chat, long, asked, {"prompt": "p7", "completion": "y"}):
        train = written(tmp_path, fine, line, name="train.jsonl")
        with pytest.raises(
            InvalidInputError, match=r"data\.jsonl:8: .*train\.jsonl:2;"
        ):
            refuse_leakage(found, train)


def test_what_one_task_is_chosen_by_no_other_may_report(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        {"prompt": "hello", "answer": "a", "split": "search"},
        {"prompt": "good bye", "answer": "b", "split": "test"},
    )
    other = written(
        tmp_path,
        {"prompt": "good bye.", "answer": "c", "split": "test"},
        {"prompt": "Hello", "answer": "d", "split": "test"},
        name="other.jsonl",
    )
    one, two = plan("one"), plan("two")
    found = read_examples(path, one)
    refuse_other_side([(one, found), (two, read_examples(path, two))])
    with pytest.raises(
        InvalidInputError,
        match=r"other\.jsonl:2: .* split test of task two, .* search .*data\.jsonl:1",
    ):
        refuse_other_side([(one, found), (two, read_examples(other, two))])
