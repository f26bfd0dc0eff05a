"""Files a blueprint names: bad ones are refused before a build, by file and line."""

from pathlib import Path

import pytest

from slmops.domain.errors import InvalidInputError, NotFoundError
from slmops.workshop.blueprints import load_blueprint

BLUEPRINT = """
name: a
model: m
classes: [{name: any}]
candidates: [Q8_0]
recipe:
  prepare:
    - finetune: {data: train.jsonl, validation: held.jsonl}
  structures:
    - name: slim
      steps: [{distill: {text: texts.txt}}]
tasks: [{name: intents, kind: classification, examples: test.jsonl}]
"""
PAIRS = '{"prompt": "where is my card", "completion": "card"}\n'
HELD = '{"prompt": "I lost my phone", "completion": "phone"}\n'
TEST = (
    '{"prompt": "no card came", "answer": "card"}\n'
    '{"prompt": "my phone is gone", "answer": "phone"}\n'
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "blueprint.yaml").write_text(BLUEPRINT)
    (tmp_path / "train.jsonl").write_text(PAIRS)
    (tmp_path / "held.jsonl").write_text(HELD)
    (tmp_path / "test.jsonl").write_text(TEST)
    (tmp_path / "texts.txt").write_text("A text of our own, of nothing in particular.")
    return tmp_path


def test_good_files_are_taken(folder: Path) -> None:
    assert load_blueprint(folder / "blueprint.yaml").tasks[0].name == "intents"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.jsonl", "", r"train\.jsonl"),
        ("train.jsonl", PAIRS + '{"question": "x"}\n', r"train\.jsonl:2"),
        ("train.jsonl", PAIRS + "{", r"train\.jsonl:2"),
        ("train.jsonl", PAIRS + PAIRS, r"train\.jsonl:2"),
        ("held.jsonl", HELD + PAIRS, r"train\.jsonl:1.*|.*held\.jsonl:2"),
        ("test.jsonl", TEST + '{"prompt": "Where is my  card", "answer": "card"}', "1"),
        ("test.jsonl", TEST + '{"prompt": "x"}', r"test\.jsonl:3"),
        (
            "test.jsonl",
            TEST + '{"prompt": "\\ufffd", "answer": "card"}',
            r"test\.jsonl:3",
        ),
        ("test.jsonl", '{"prompt": "x", "answer": "card"}', "two labels"),
        ("texts.txt", "", r"texts\.txt is empty"),
    ],
)
def test_a_bad_file_is_named_with_its_line(
    folder: Path, name: str, content: str, message: str
) -> None:
    (folder / name).write_text(content)
    with pytest.raises(InvalidInputError, match=message):
        load_blueprint(folder / "blueprint.yaml")


def test_bytes_that_are_no_text_are_named_with_their_line(folder: Path) -> None:
    (folder / "train.jsonl").write_bytes(PAIRS.encode() + b'{"prompt": "\xff\xfe"}\n')
    with pytest.raises(InvalidInputError, match=r"train\.jsonl:2"):
        load_blueprint(folder / "blueprint.yaml")


def test_a_line_of_a_hundred_megabytes_is_refused(folder: Path) -> None:
    path = folder / "train.jsonl"
    with path.open("wb") as file:
        file.write(PAIRS.encode() + b'{"prompt": "')
        file.seek(100 * 2**20)
        file.write(b'"}\n')
    with pytest.raises(InvalidInputError, match=r"train\.jsonl:2"):
        load_blueprint(folder / "blueprint.yaml")


@pytest.mark.parametrize(
    "name", ["train.jsonl", "held.jsonl", "test.jsonl", "texts.txt"]
)
def test_a_missing_file_is_named_with_its_key(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(NotFoundError, match=name):
        load_blueprint(folder / "blueprint.yaml")


def test_text_that_is_scored_must_not_be_learnt(folder: Path) -> None:
    text = " ".join(f"word{number}" for number in range(400))
    (folder / "texts.txt").write_text(text)
    (folder / "scored.txt").write_text(text)
    path = folder / "blueprint.yaml"
    path.write_text(path.read_text() + "evaluation: {text: scored.txt}\n")
    with pytest.raises(
        InvalidInputError,
        match=r"recipe\.structures\[0\]\.steps\[0\]\.distill\.text: .*texts\.txt:1: .*evaluation\.text: .*scored\.txt:1",
    ):
        load_blueprint(path)
