"""Examples are read without trust, and what is wrong is named by file and line."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmops.domain.errors import InvalidInputError, NotFoundError
from slmops.workshop.training.data import (
    Example,
    Message,
    read_examples,
    read_prompts,
    refuse_leakage,
    split_examples,
)


def lines(path: Path, *rows: object) -> Path:
    text = "".join(
        (row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows
    )
    path.write_text(text, encoding="utf-8")
    return path


def pair(prompt: str, completion: str = "yes") -> dict[str, str]:
    return {"prompt": prompt, "completion": completion}


def chat(*turns: tuple[str, str]) -> dict[str, object]:
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


def example(prompt: str, answer: str = "yes", line: int = 1) -> Example:
    messages = (
        Message(role="user", content=prompt),
        Message(role="assistant", content=answer),
    )
    return Example(where=f"x.jsonl:{line}", messages=messages)


def test_both_forms_are_read_with_where_they_stand(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "train.jsonl",
        pair("Hi", "Hello"),
        "",
        chat(("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello there")),
    )
    first, second = read_examples(path)
    assert first.messages == (
        Message(role="user", content="Hi"),
        Message(role="assistant", content="Hello"),
    )
    assert second.where == f"{path}:3"
    assert [turn.role for turn in second.prompt] == ["system", "user"]
    assert second.answer == "Hello there"


BAD = {
    "another key": ({"prompt": "a", "answer": "b"}, "got the keys 'answer', 'prompt'"),
    "one key more": (pair("a") | {"id": "1"}, "got the keys"),
    "no keys": ({}, "no keys"),
    "a list": ("[1]", "must be a JSON object"),
    "no JSON": ("{prompt: 1}", "not valid JSON"),
    "a number": ({"prompt": 3, "completion": "b"}, "prompt must be text, got int 3"),
    "an empty answer": (pair("a", " \n"), "completion must not be empty"),
    "an empty prompt": (pair(""), "prompt must not be empty"),
    "half a surrogate": ('{"prompt": "\\ud800", "completion": "b"}', ""),
    "a control character": (pair("a\u0007b"), "U+0007 at character 1"),
    "a wrong decoding": (pair("caf\ufffd"), "U+FFFD at character 3"),
    "no turns": ({"messages": []}, "1 to 256 turns, got 0"),
    "turns that are text": ({"messages": "Hi"}, "got text"),
    "a turn without role": ({"messages": [{"content": "a"}]}, "messages[0]"),
    "a strange role": (chat(("robot", "Hi")), "messages[0].role"),
    "no answer": (chat(("user", "Hi")), "ending with assistant; got user"),
    "two questions": (
        chat(("user", "a"), ("user", "b"), ("assistant", "c")),
        "user, user, assistant",
    ),
    "system only": (chat(("system", "a")), "got system"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_line_is_refused_by_its_number(name: str, tmp_path: Path) -> None:
    row, expected = BAD[name]
    path = lines(tmp_path / "train.jsonl", pair("fine"), row)
    with pytest.raises(InvalidInputError) as error:
        read_examples(path)
    assert f"{path}:2" in str(error.value)
    assert expected in str(error.value)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.jsonl"
        path.write_bytes(raw)
        with pytest.raises(InvalidInputError):
            read_examples(path)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(b"\n\n")
    with pytest.raises(InvalidInputError, match="empty"):
        read_examples(path)


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        read_examples(tmp_path / "none.jsonl")


def test_a_huge_line_is_refused_without_reading_it(tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "train.jsonl"
    with path.open("wb") as file:
        file.write(b'{"prompt": "')
        for _ in range(100):
            file.write(b"a" * 1_000_000)
    tracemalloc.start()
    with pytest.raises(InvalidInputError, match=r"train.jsonl:1: a line must have at"):
        read_examples(path)
    assert tracemalloc.get_traced_memory()[1] < 8_000_000
    tracemalloc.stop()


def test_a_duplicate_is_refused_with_both_lines(tmp_path: Path) -> None:
    path = lines(tmp_path / "train.jsonl", pair("a"), pair("b"), pair("a"))
    with pytest.raises(InvalidInputError) as error:
        read_examples(path)
    assert f"{path}:3" in str(error.value)
    assert f"{path}:1 already" in str(error.value)


def test_the_same_prompt_may_have_two_answers(tmp_path: Path) -> None:
    path = lines(tmp_path / "train.jsonl", pair("a", "yes"), pair("a", "no"))
    assert len(read_examples(path)) == 2


def test_leakage_is_refused_with_both_lines() -> None:
    training = [example("Where is my card?", line=4)]
    held_out = [example("other", line=1), example("where IS  my card?\n", "no", line=9)]
    with pytest.raises(InvalidInputError) as error:
        refuse_leakage(training, held_out)
    assert "x.jsonl:4" in str(error.value)
    assert "x.jsonl:9" in str(error.value)


def test_splits_without_a_common_prompt_are_accepted() -> None:
    refuse_leakage([example("a"), example("b")], [example("c"), example("ab")])


@given(
    prompts=st.lists(st.sampled_from("abcdefghij"), min_size=2, max_size=40),
    share=st.floats(0.01, 0.99),
    seed=st.integers(0, 5),
)
def test_a_split_keeps_every_example_and_leaks_none(
    prompts: list[str], share: float, seed: int
) -> None:
    examples = [example(text, line=number) for number, text in enumerate(prompts)]
    if len(set(prompts)) < 2:
        with pytest.raises(InvalidInputError, match="2 different prompts"):
            split_examples(examples, share=share, seed=seed)
        return
    training, held_out = split_examples(examples, share=share, seed=seed)
    assert training
    assert held_out
    assert {e.where for e in training} | {e.where for e in held_out} == {
        e.where for e in examples
    }
    refuse_leakage(training, held_out)


def test_a_split_does_not_depend_on_the_order_of_lines() -> None:
    examples = [example(f"question {number}", line=number) for number in range(50)]
    one = split_examples(examples, share=0.2, seed=3)
    other = split_examples(examples[::-1], share=0.2, seed=3)
    assert set(one[1]) == set(other[1])
    assert len(one[1]) == 10
    assert set(split_examples(examples, share=0.2, seed=4)[1]) != set(one[1])


def test_prompts_must_end_with_a_question(tmp_path: Path) -> None:
    path = lines(tmp_path / "p.jsonl", {"prompt": "a"}, chat(("user", "b")))
    assert [found.messages[-1].content for found in read_prompts(path)] == ["a", "b"]
    answered = lines(tmp_path / "q.jsonl", pair("a"))
    with pytest.raises(InvalidInputError, match=r"q\.jsonl:1: expected \{\"prompt\"\}"):
        read_prompts(answered)
