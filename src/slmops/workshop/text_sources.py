"""Texts a build reads: the user's own, or the ones in ``texts/``."""

import importlib.resources
import re
from pathlib import Path

from slmops.domain.blueprint import EvaluationPlan, GoldenPlan
from slmops.domain.errors import InvalidInputError, NotFoundError
from slmops.domain.recipe import CalibrationPlan

_GARBAGE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffd\ufffe\uffff]")
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


def held_apart(text: str) -> tuple[str, str]:
    """Cut a text in two, the second about a fifth, where a line or a word ends.

    >>> held_apart("one two three four five six seven eight nine ten")
    ('one two three four five six seven eight', ' nine ten')
    """
    wanted = len(text) * 4 // 5
    cut = max(text.find("\n", wanted), text.find(" ", wanted))
    if cut < 0:
        cut = wanted
    return text[:cut], text[cut:]


def read_data(path: Path, where: str) -> Path:
    """Return the path of a JSONL file that exists; its lines are checked by who reads.

    Raises:
        NotFoundError: no such file; names `where`.
    """
    if not path.is_file():
        raise NotFoundError(f"{where}: {path} does not exist")
    return path


def golden_prompts(plan: GoldenPlan, folder: Path) -> tuple[str, ...]:
    """Return the golden prompts, one from each line that is not blank.

    Raises:
        NotFoundError: no such file.
        InvalidInputError: none, too many, or as `evaluation_text`.
    """
    text = _read(plan.prompts, "golden.txt", folder, "golden.prompts")
    prompts = tuple(line.strip() for line in text.splitlines() if line.strip())
    if len(prompts) > MAX_PROMPTS:
        raise InvalidInputError(
            f"golden.prompts must hold at most {MAX_PROMPTS} lines, got {len(prompts)}"
        )
    return prompts


def _read(name: str, builtin: str, folder: Path, where: str) -> str:
    if name == BUILTIN:
        texts = importlib.resources.files("slmops.workshop") / "texts"
        return (texts / builtin).read_text(encoding="utf-8")
    return read_text(folder / name, where)


def read_text(path: Path, where: str) -> str:
    """Return a text of the user's.

    Raises:
        NotFoundError: no such file.
        InvalidInputError: too large or empty; or a line that is not UTF-8, that is too
            long, or that holds what no text does; names `where`, file and line.
    """
    if not path.is_file():
        raise NotFoundError(f"{where}: {path} does not exist")
    if path.stat().st_size > MAX_TEXT_BYTES:
        raise InvalidInputError(
            f"{where}: {path} must have at most {MAX_TEXT_BYTES} bytes,"
            f" got {path.stat().st_size}"
        )
    raw = path.read_bytes()
    try:
        text = raw.decode().replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InvalidInputError(
            f"{where}: {path}:{line}: not UTF-8: {error.reason}"
        ) from None
    if not text.strip():
        raise InvalidInputError(f"{where}: {path} is empty")
    _check_lines(text, f"{where}: {path}")
    return text


def find_garbage(text: str) -> re.Match[str] | None:
    """Return the first character that no text holds: a wrong decoding leaves such."""
    return _GARBAGE.search(text)


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
