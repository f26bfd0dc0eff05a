"""JSON Lines: bounded, streamed, and refused with the line."""

import json
import tracemalloc
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from slmops.domain.errors import InvalidInputError, NotFoundError
from slmops.workshop.jsonl import read_lines


def written(folder: Path, raw: bytes) -> Path:
    path = folder / "data.jsonl"
    path.write_bytes(raw)
    return path


def test_objects_come_with_their_line_numbers(tmp_path: Path) -> None:
    path = written(tmp_path, b'\xef\xbb\xbf{"a": 1}\r\n\r\n  {"b": "\xc3\xa9"}')
    assert list(read_lines(path)) == [(1, {"a": 1}), (3, {"b": "é"})]


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "data.jsonl: must hold one JSON object a line, is empty"),
        (b" \n\n", "is empty"),
        (b'{"a": 1}\n[1]\n', "data.jsonl:2: must be a JSON object, got list"),
        (b'{"a": 1}\n{"a": \n', "data.jsonl:2: not valid JSON"),
        (b'{"a": 1} {"a": 2}\n', "data.jsonl:1: not valid JSON"),
        (b'{"a": NaN}\n', "data.jsonl:1: not valid JSON"),
        (
            b'{"a": 1}\n{"a": "\xff\xfe"}\n',
            "data.jsonl:2: must be UTF-8, byte 7 is 0xff",
        ),
        (b'{"a": ["\\u0000"]}\n', "data.jsonl:1: text must not hold a null"),
        (b'{"\\u0000": 1}\n', "data.jsonl:1: text must not hold a null"),
        (b'{"a": "\\ud83d"}\n', "data.jsonl:1:"),
        (b"[" * 100_000 + b"\n", "data.jsonl:1:"),
    ],
)
def test_bad_lines_are_refused_with_their_number(
    tmp_path: Path, raw: bytes, said: str
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        list(read_lines(written(tmp_path, raw)))
    assert said in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"none\.jsonl"):
        list(read_lines(tmp_path / "none.jsonl"))


def test_a_line_may_have_exactly_the_limit(tmp_path: Path) -> None:
    line = b'{"a": "' + b"x" * 20 + b'"}'
    for end in (b"", b"\n", b"\r\n"):
        path = written(tmp_path, line + end)
        assert len(list(read_lines(path, max_line_bytes=len(line)))) == 1
        with pytest.raises(InvalidInputError, match=":1: a line must have at most"):
            list(read_lines(path, max_line_bytes=len(line) - 1))


def test_a_line_of_100_mb_is_refused_without_being_read(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    with path.open("wb") as file:
        file.write(b'{"a": 1}\n')
        file.truncate(100 << 20)
    tracemalloc.start()
    with pytest.raises(InvalidInputError, match=r"data\.jsonl:2: a line must have"):
        list(read_lines(path))
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


@given(st.binary(max_size=200))
def test_garbage_is_objects_or_an_input_error(
    tmp_path_factory: pytest.TempPathFactory, raw: bytes
) -> None:
    path = tmp_path_factory.mktemp("garbage") / "data.jsonl"
    path.write_bytes(raw)
    try:
        for number, tree in read_lines(path):
            assert number >= 1
            json.dumps(tree)
    except InvalidInputError as error:
        assert "data.jsonl" in str(error)
