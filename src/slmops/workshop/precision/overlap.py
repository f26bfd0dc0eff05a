"""Whether a calibration text was kept apart from the evaluation text.

Rounding that was fitted to a text looks better on it than on any other: what is scored
must not have been seen. Two texts overlap when a line of the calibration text, or any
`SPAN` words of it in a row, also occur in the evaluation text; case, punctuation and
spacing do not count. Shorter repetitions are how people write.
"""

import re
from collections.abc import Iterator

from slmops.domain.errors import InvalidInputError

SPAN = 12
"""Words in a row that two texts share by copying only."""
LEAST_LINE = 6
"""Words of a line that is compared as a whole: shorter ones are headings and thanks."""
_WORD = re.compile(r"\w+")
_SHOWN = 60

Words = tuple[str, ...]


def check_apart(calibration: str, evaluation: str) -> None:
    """Refuse a calibration text that holds some of the evaluation text.

    Raises:
        InvalidInputError: naming the calibration text's line, counted from 1.

    >>> check_apart("One fine day.", "Another day, another text.")
    """
    lines = {words for _, words in _lines(evaluation) if len(words) >= LEAST_LINE}
    spans = set(_spans([word for _, words in _lines(evaluation) for word in words]))
    for number, words in _lines(calibration):
        if words in lines:
            _refuse(number, words)
    for number, span in _numbered_spans(calibration):
        if span in spans:
            _refuse(number, span)


def _lines(text: str) -> Iterator[tuple[int, Words]]:
    for number, line in enumerate(text.splitlines(), 1):
        yield number, tuple(_WORD.findall(line.casefold()))


def _spans(words: list[str]) -> Iterator[Words]:
    for at in range(len(words) - SPAN + 1):
        yield tuple(words[at : at + SPAN])


def _numbered_spans(text: str) -> Iterator[tuple[int, Words]]:
    numbered = [(number, word) for number, words in _lines(text) for word in words]
    spans = _spans([word for _, word in numbered])
    for (number, _), span in zip(numbered, spans, strict=False):
        yield number, span


def _refuse(number: int, words: Words) -> None:
    shown = " ".join(words)[:_SHOWN]
    raise InvalidInputError(
        f"calibration text, line {number}: {shown!r}… is also in the evaluation text;"
        " the two must share nothing"
    )
