"""Files of a person's: opened without waiting, read no further than allowed."""

import os
from pathlib import Path

import pytest

from slmops.domain.errors import InvalidInputError, NotFoundError
from slmops.wire.input_file import bounded_lines, check_input, open_input, read_input


def test_a_file_that_is_gone_is_named_with_what_names_it(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"golden\.prompts: .*gone does not exist"):
        check_input(tmp_path / "gone", where="golden.prompts")


def test_a_file_that_may_not_be_read_says_why(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.touch(mode=0)
    if os.access(path, os.R_OK):
        pytest.skip("root may read everything")
    with pytest.raises(InvalidInputError, match="cannot be read: Permission denied"):
        check_input(path)


def test_lines_come_with_numbers_and_end_at_the_first_too_long(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"one\r\ntwo\n" + b"x" * 5 + b"\nnever")
    with open_input(path) as file:
        lines = bounded_lines(file, max_line_bytes=4, where="lines")
        assert [next(lines), next(lines)] == [(1, b"one\r\n"), (2, b"two\n")]
        with pytest.raises(InvalidInputError, match=r"lines:3: .* at most 4 bytes"):
            next(lines)


def test_no_more_is_read_than_allowed(tmp_path: Path) -> None:
    (tmp_path / "much").write_bytes(bytes(11))
    with pytest.raises(InvalidInputError, match="at most 10 bytes, has more"):
        read_input(tmp_path / "much", max_bytes=10)
    assert read_input(tmp_path / "much", max_bytes=11) == bytes(11)


def test_a_path_that_no_system_allows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="null"):
        read_input(tmp_path / "a\0b", max_bytes=1)
    with pytest.raises(InvalidInputError, match="too long"):
        read_input(tmp_path / ("x" * 5000), max_bytes=1)
