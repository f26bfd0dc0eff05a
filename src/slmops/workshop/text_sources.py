"""Texts a build reads: the user's own, or the ones in ``texts/``."""

import importlib.resources
import re
from pathlib import Path
from typing import BinaryIO

from slmops.domain.blueprint import EvaluationPlan, GoldenPlan
from slmops.domain.errors import InvalidInputError
from slmops.domain.recipe import CalibrationPlan
from slmops.wire.input_file import bounded_lines, check_input, open_input

_GARBAGE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffd\ufffe\uffff]")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
BUILTIN = "builtin"
"""Word in a blueprint for our own texts."""

MAX_TEXT_BYTES = 64 * 1024 * 1024
MAX_LINE_CHARACTERS = 1 << 20
"""A longer line is no text that anybody wrote."""
MAX_PROMPTS = 64
"""Every device asks every prompt in its trial, so there cannot be many."""


def evaluation_text(plan: EvaluationPlan, folder: Path) -> str:
    """Return the text that fidelity is measured on.

    Args:
        plan: names it.
        folder: where the blueprint lies; a path in the plan is relative to it.

    Raises:
        NotFoundError: no such file.
        InvalidInputError: not UTF-8, empty, or too large.
    """
    return _read(plan.text, "evaluation.txt", folder, "evaluation.text")


def calibration_text(plan: CalibrationPlan, folder: Path) -> str:
    """Return the text that shows which weights matter.

    Raises:
        NotFoundError: no such file.
        InvalidInputError: as `evaluation_text`.
    """
    return _read(plan.text, "calibration.txt", folder, "recipe.calibration.text")


def held_apart(text: str, share: float = 0.2) -> tuple[str, str]:
    """Cut a text in two, the second about so large a share, where a line or word ends.

    >>> held_apart("one two three four five six seven eight nine ten")
    ('one two three four five six seven eight', ' nine ten')
    """
    wanted = round(len(text) * (1 - share))
    cut = max(text.find("\n", wanted), text.find(" ", wanted))
    if cut < 0:
        cut = wanted
    return text[:cut], text[cut:]


def evaluation_parts(plan: EvaluationPlan, folder: Path) -> tuple[str, str]:
    """Return the text that is reported and the one that candidates are chosen by.

    They share nothing, but where `plan.search_share` is 0: then they are the same.

    Raises:
        NotFoundError: no such file.
        InvalidInputError: as `evaluation_text`.
    """
    text = evaluation_text(plan, folder)
    return held_apart(text, plan.search_share) if plan.search_share else (text, text)


def read_data(path: Path, where: str) -> Path:
    """Return the path of a JSONL file that exists; its lines are checked by who reads.

    Raises:
        NotFoundError: no such file; names `where`.
        InvalidInputError: a folder, pipe or device, or it may not be read.
    """
    return check_input(path, where=where)


def golden_prompts(plan: GoldenPlan, folder: Path) -> tuple[str, ...]:
    """Return the golden prompts, one from each line that is not blank.

    Raises:
        NotFoundError: no such file.
        InvalidInputError: none, too many, or as `evaluation_text`.
    """
    return tuple(golden_lines(plan, folder).values())


def golden_lines(plan: GoldenPlan, folder: Path) -> dict[str, str]:
    """Return place → golden prompt; a place is what messages call it: file and line.

    Raises:
        NotFoundError: no such file.
        InvalidInputError: as `golden_prompts`.
    """
    text = _read(plan.prompts, "golden.txt", folder, "golden.prompts")
    file = BUILTIN if plan.prompts == BUILTIN else folder / plan.prompts
    lines = {
        f"golden.prompts: {file}:{number}": line.strip()
        for number, line in enumerate(text.split("\n"), 1)
        if line.strip()
    }
    if len(lines) > MAX_PROMPTS:
        raise InvalidInputError(
            f"golden.prompts must hold at most {MAX_PROMPTS} lines, got {len(lines)}"
        )
    return lines


def _read(name: str, builtin: str, folder: Path, where: str) -> str:
    if name == BUILTIN:
        texts = importlib.resources.files("slmops.workshop") / "texts"
        return (texts / builtin).read_text(encoding="utf-8")
    return read_text(folder / name, where)


def read_text(path: Path, where: str) -> str:
    """Return a text of the user's.

    Raises:
        NotFoundError: no such file.
        InvalidInputError: no file but a folder, pipe or device; too large or empty; or a line that is not UTF-8, that is too
            long, or that holds what no text does; names `where`, file and line.
    """
    named = f"{where}: {path}"
    with open_input(path, where=where) as file:
        # What a file says of its size may be wrong by the time it is read.
        raw = file.read(MAX_TEXT_BYTES + 1)
        if len(raw) > MAX_TEXT_BYTES:
            _refuse_long_line(file, named)
            raise InvalidInputError(
                f"{named} must have at most {MAX_TEXT_BYTES} bytes, has more"
            )
    try:
        text = raw.removeprefix(_BYTE_ORDER_MARK).decode()
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise InvalidInputError(f"{named}:{line}: not UTF-8: {error.reason}") from None
    if not text.strip():
        raise InvalidInputError(f"{named} is empty")
    _check_lines(text, named)
    return text


def find_garbage(text: str) -> re.Match[str] | None:
    """Return the first character that no text holds: a wrong decoding leaves such."""
    return _GARBAGE.search(text)


def _refuse_long_line(file: BinaryIO, where: str) -> None:
    """Name the line, if it is one line that makes a file too large."""
    file.seek(0)
    lines = bounded_lines(file, max_line_bytes=4 * MAX_LINE_CHARACTERS, where=where)
    read = 0
    for _, line in lines:
        read += len(line)
        if read > MAX_TEXT_BYTES:
            return


def _check_lines(text: str, where: str) -> None:
    found = find_garbage(text)
    if found is not None:
        line = text.count("\n", 0, found.start()) + 1
        raise InvalidInputError(
            f"{where}:{line}: must be readable text, got U+{ord(found[0]):04X}: was the"
            " file decoded with the wrong encoding?"
        )
    for line, content in enumerate(text.split("\n"), 1):
        if len(content) > MAX_LINE_CHARACTERS:
            raise InvalidInputError(
                f"{where}:{line}: a line must have at most {MAX_LINE_CHARACTERS}"
                f" characters, got {len(content)}: is it a text?"
            )
