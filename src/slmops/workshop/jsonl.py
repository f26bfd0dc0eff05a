"""JSON Lines, read as a stream: one object a line, and errors that name the line.

Files come from users and exports of all kinds, so a line is bounded before it is read:
100 MB without a line break cost a megabyte, not a hundred.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slmops.domain.errors import InvalidInputError
from slmops.wire.codec import parse_json
from slmops.wire.input_file import bounded_lines, open_input

MAX_LINE_BYTES = 1 << 20
"""Longest line taken by default: far more than any small model's context."""
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_lines(
    path: Path, *, max_line_bytes: int = MAX_LINE_BYTES
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield every object of a file with its line number, counted from 1.

    Blank lines are skipped. At most one line is in memory.

    Args:
        path: UTF-8 text; a byte order mark is ignored.
        max_line_bytes: longest line, without its line break.

    Raises:
        NotFoundError: no such file.
        InvalidInputError: naming ``file:line``: a line too long, not UTF-8, not JSON, not
            an object, or with a null character in its text; or no file but a folder,
            pipe or device; or a file without a single object.
    """
    with open_input(path) as file:
        found = False
        lines = bounded_lines(file, max_line_bytes=max_line_bytes, where=str(path))
        for number, raw in lines:
            line = raw.removeprefix(_BYTE_ORDER_MARK) if number == 1 else raw
            if line.strip():
                found = True
                yield number, _object(line.strip(), f"{path}:{number}")
    if not found:
        raise InvalidInputError(f"{path}: must hold one JSON object a line, is empty")


def _object(line: bytes, where: str) -> dict[str, Any]:
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise InvalidInputError(
            f"{where}: must be UTF-8, byte {error.start} is 0x{line[error.start]:02x}"
        ) from None
    tree = parse_json(text, where=where, max_bytes=len(line) + 1)
    if not isinstance(tree, dict):
        raise InvalidInputError(
            f"{where}: must be a JSON object, got {type(tree).__name__}"
        )
    _refuse_null_characters(tree, where)
    return tree


def _refuse_null_characters(tree: Any, where: str) -> None:  # noqa: ANN401 - a tree
    """Refuse text that would end early in an engine written in C."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            _refuse_null_characters(key, where)
            _refuse_null_characters(value, where)
    elif isinstance(tree, list):
        for value in tree:
            _refuse_null_characters(value, where)
    elif isinstance(tree, str) and "\0" in tree:
        raise InvalidInputError(f"{where}: text must not hold a null character")
