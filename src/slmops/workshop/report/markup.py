"""Small pieces of HTML that the page's sections are put together from."""

from collections.abc import Iterable, Sequence
from html import escape

from slmops.domain.estimate import Estimate


def join(parts: Iterable[str]) -> str:
    """Return all parts, one after the other."""
    return "".join(parts)


def table(head: str, rows: Iterable[str]) -> str:
    """Return a table that scrolls in its own box on narrow screens.

    Args:
        head: one row of headings: see `headings`.
        rows: rows as HTML.
    """
    return f'<div class="scroll"><table>{head}{join(rows)}</table></div>'


def headings(texts: Sequence[str], *, numbers: Iterable[int] = ()) -> str:
    """Return a row of headings.

    Args:
        texts: plain text.
        numbers: positions of the columns that hold numbers.
    """
    right = set(numbers)
    cells = (
        f'<th class="n">{escape(text)}</th>'
        if at in right
        else f"<th>{escape(text)}</th>"
        for at, text in enumerate(texts)
    )
    return f"<tr>{join(cells)}</tr>"


def text_cell(text: str, *, small: str = "") -> str:
    """Return a cell of plain text, with small print below it."""
    return f"<td>{escape(text)}{_small(small)}</td>"


def number_cell(text: str, *, small: str = "") -> str:
    """Return a right-aligned cell, with small print below it."""
    return f'<td class="n">{escape(text)}{_small(small)}</td>'


def estimate_cell(estimate: Estimate, digits: int) -> str:
    """Return a cell with a value and, in small print, its bounds."""
    value, low, high = (
        number(each, digits) for each in (estimate.value, estimate.low, estimate.high)
    )
    return number_cell(value, small=f"{low} to {high}")


def number(value: float, digits: int) -> str:
    """Write a number with some decimals, or by its power of ten when they would be zero.

    >>> number(0.0447, 4), number(1.3e-8, 4), number(0.0, 4)
    ('0.0447', '1.3e-08', '0.0000')
    """
    if 0 < abs(value) < 0.5 * 10**-digits:
        return f"{value:.1e}"
    return f"{value:.{digits}f}"


def _small(text: str) -> str:
    return f"<small>{escape(text)}</small>" if text else ""
