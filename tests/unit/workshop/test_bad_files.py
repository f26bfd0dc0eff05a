"""Every file a blueprint names, damaged in every way: one sentence, the file, the line."""

import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from slmops.domain.errors import InvalidInputError, NotFoundError, SlmopsError
from slmops.workshop.blueprints import load_blueprint
from slmops.workshop.jsonl import read_lines

BLUEPRINT = """
name: a
model: m
classes: [{name: any}]
candidates: [Q8_0]
evaluation: {text: scored.txt}
golden: {prompts: golden.txt}
recipe:
  calibration: {text: calibration.txt}
  prepare:
    - finetune: {data: train.jsonl, validation: held.jsonl}
  structures:
    - name: slim
      steps:
        - trim_vocabulary: {text: kept.txt, tokens: 512}
        - distill: {text: taught.txt}
        - distill: {data: chats.jsonl}
        - distill: {prompts: asked.jsonl}
tasks:
  - {name: facts, kind: extraction, examples: facts.jsonl, schema: facts.schema.json}
"""
ANSWERED = '{{"prompt": "question {0}", "completion": "answer {0}"}}\n'
FILES = {
    "train.jsonl": ANSWERED.format("one"),
    "held.jsonl": ANSWERED.format("two"),
    "chats.jsonl": ANSWERED.format("three"),
    "asked.jsonl": '{"prompt": "question four"}\n',
    "facts.jsonl": '{"prompt": "question five", "answer": {"name": "Ann"}}\n',
    "facts.schema.json": '{"type": "object"}\n',
    "scored.txt": "A text of one line.\n",
    "golden.txt": "Who are you?\n",
    "calibration.txt": "Another text, of two lines.\nThis is the second.\n",
    "kept.txt": "A third.\n",
    "taught.txt": "A fourth.\n",
}
LINES = [name for name in FILES if name.endswith(".jsonl")]
TEXTS = [name for name in FILES if name.endswith(".txt")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "blueprint.yaml").write_text(BLUEPRINT)
    for name, content in FILES.items():
        (tmp_path / name).write_text(content)
    return tmp_path


def refusal(folder: Path) -> str:
    with pytest.raises(SlmopsError) as caught:
        load_blueprint(folder / "blueprint.yaml")
    assert isinstance(caught.value, InvalidInputError | NotFoundError)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    return message


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def dangling(path: Path) -> None:
    path.symlink_to(path.with_name("gone"))


def circle(path: Path) -> None:
    path.symlink_to(path)


def test_good_files_are_taken(folder: Path) -> None:
    assert load_blueprint(folder / "blueprint.yaml").name == "a"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("put", "said"),
    [
        (os.mkdir, "must be a file, is a folder"),
        (os.mkfifo, "must be a file, is a pipe"),
        (device, "must be a file, is a device"),
        (dangling, "does not exist"),
        (circle, "cannot be read"),
    ],
)
def test_what_is_no_file_is_refused_at_once(
    folder: Path, name: str, put: Callable[[Path], None], said: str
) -> None:
    (folder / name).unlink()
    put(folder / name)
    message = refusal(folder)
    assert name in message
    assert said in message


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("raw", [b"", b" \n\r\n"])
def test_an_empty_file_is_refused(folder: Path, name: str, raw: bytes) -> None:
    (folder / name).write_bytes(raw)
    assert name in refusal(folder)


@pytest.mark.parametrize("name", [*LINES, *TEXTS])
@pytest.mark.parametrize(
    "raw",
    [
        b"\xff\xfe\n",
        b'{"prompt": "caf\xe9"}\n',
        b'{"prompt": "\xed\xa0\xbd"}\n',  # half of a surrogate pair, as if it were UTF-8
        b'{"prompt": "\x00"}\n',
        b"\x1b[31mred\n",
        '{"prompt": "bro\ufffdken"}\n'.encode(),
    ],
)
def test_garbage_is_refused_by_its_line(folder: Path, name: str, raw: bytes) -> None:
    with (folder / name).open("ab") as file:
        file.write(b"\n" + raw)
    assert f"{name}:{FILES[name].count(chr(10)) + 2}" in refusal(folder)


@pytest.mark.parametrize("name", LINES)
@pytest.mark.parametrize(
    "line",
    [
        "[1]",
        "null",
        "{",
        "plain text",
        "{}",
        '{"question": "x", "reply": "y"}',
        '{"prompt": 7, "completion": "y", "answer": "y"}',
        '{"prompt": "x", "completion": null}',
        '{"prompt": ["x"]}',
        '{"messages": "hello"}',
        '{"messages": []}',
        '{"messages": [{"role": "robot", "content": "x"}]}',
        '{"messages": [{"role": "user"}]}',
        '{"messages": [{"role": "user", "content": {"text": "x"}}]}',
        '{"messages": [{"role": "assistant", "content": "x"}]}',
        '{"prompt": "\\ud83d", "completion": "y"}',
        '{"prompt": "\\u0000"}',
        '{"prompt": "\\u0007", "completion": "y"}',
        '{"prompt": NaN}',
        "[" * 50_000,
        '{"prompt": ' * 50_000,
    ],
)
def test_a_line_that_is_no_example_is_named(folder: Path, name: str, line: str) -> None:
    with (folder / name).open("a") as file:
        file.write(line + "\n")
    assert f"{name}:{FILES[name].count(chr(10)) + 1}" in refusal(folder)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ('{"name": "bro\\ufffdken"}', "U+FFFD"),
        ('"not json"', "not valid JSON"),
        ("[1]", "not of the schema"),
    ],
)
def test_a_right_answer_that_is_none_is_named(
    folder: Path, answer: str, said: str
) -> None:
    with (folder / "facts.jsonl").open("a") as file:
        file.write('{"prompt": "x", "answer": ' + answer + "}\n")
    message = refusal(folder)
    assert "facts.jsonl:2" in message
    assert said in message


@pytest.mark.parametrize("name", [*LINES, *TEXTS])
def test_a_line_of_100_mb_costs_little(folder: Path, name: str) -> None:
    with (folder / name).open("ab") as file:
        file.write(b'{"prompt": "')
        file.truncate(100 << 20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert f"{name}:{FILES[name].count(chr(10)) + 1}" in refusal(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


@pytest.mark.parametrize("name", [*LINES, *TEXTS, "facts.schema.json"])
def test_marks_and_line_ends_of_other_systems_are_taken(
    folder: Path, name: str
) -> None:
    text = FILES[name].replace("\n", "\r\n")
    (folder / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert load_blueprint(folder / "blueprint.yaml").name == "a"


def test_a_pipe_is_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidInputError, match="must be a file, is a pipe"):
        next(read_lines(tmp_path / "pipe"))
    with pytest.raises(InvalidInputError, match="is a pipe"):
        load_blueprint(tmp_path / "pipe")
