"""Texts as numbers: words in a row become one hash, so that two texts can be compared.

A text is a row of *units*. In scripts with spaces a unit is a word; in scripts without
(Han, Kana, Thai, Lao, Khmer, Burmese, Tibetan) it is a character, because nothing cheap
tells their words apart. Units weigh what they say: a word of English is about two Han
characters or four of Thai. A *span* is the shortest row of units from a given one on that
weighs `SPAN`: twelve words, 24 Han characters, 48 of Thai, or a mix of them. Case,
punctuation, spacing and Unicode's compatible forms do not count.

Hashes of spans are polynomials of their units' hashes modulo 2^64 (Karp & Rabin 1987),
computed for a block of lines at once; a text of any length takes the memory of one block.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

WORD, IDEOGRAPH, LETTER = 4, 2, 1
"""Weight of a word, of a Han or Kana character, and of one in the other scripts."""
SPAN = 12 * WORD
"""Weight of what two texts share by copying only; shorter is how people write."""
BLOCK_CHARACTERS = 1 << 18
_IDEOGRAPHS = (
    "\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
_LETTERS = "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff"
# Signs inside words that Python does not count as letters: accents, points, vowel signs.
_SIGNS = (
    "\u0300-\u036f\u0591-\u05bd\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06ed"
    "\u0711-\u074a\u0900-\u0963\u0966-\u0dff\u200c\u200d"
)
_WORD_CHARACTER = rf"[^\W{_IDEOGRAPHS}{_LETTERS}]"
_UNIT = re.compile(
    rf"[{_IDEOGRAPHS}{_LETTERS}]|{_WORD_CHARACTER}+(?:[{_SIGNS}]+{_WORD_CHARACTER}*)*"
)
_ASCII = re.compile(r"\w+", re.ASCII)
_IS_IDEOGRAPH = re.compile(rf"[{_IDEOGRAPHS}]")
_IS_LETTER = re.compile(rf"[{_LETTERS}]")
_BASE = np.uint64(0x9E3779B97F4A7C15)
_INVERSE = np.uint64(pow(0x9E3779B97F4A7C15, -1, 1 << 64))

Hashes = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]
Piece = tuple[int, str]
"""Line number and text of a line."""


@dataclass(frozen=True, slots=True)
class Units:
    """Some lines in a row, unit by unit."""

    words: list[str]
    """As they are compared."""
    lines: Places
    """(units,) line of each."""
    weights: Places
    """(units,) weight of each."""

    def __len__(self) -> int:
        return len(self.words)

    def shown(self, begin: int, end: int) -> str:
        """Return some units as people write them."""
        text = " ".join(self.words[begin:end])
        # No spaces in scripts that have none.
        bare = rf"(?<=[{_IDEOGRAPHS}{_LETTERS}]) (?=[{_IDEOGRAPHS}{_LETTERS}])"
        return re.sub(bare, "", text)


@dataclass(frozen=True, slots=True)
class Hashed:
    """Units with what it takes to hash any row of them."""

    units: Units
    _sums: Hashes
    _inverses: Hashes
    _weight_sums: Places

    def rows(self, begins: Places, ends: Places) -> Hashes:
        """Return the hashes of rows of units, (rows,); equal rows have equal ones."""
        return (self._sums[ends] - self._sums[begins]) * self._inverses[begins]

    def spans(self) -> tuple[Places, Places]:
        """Return begins and ends of all whole spans, by their begins."""
        weights = self._weight_sums
        ends = np.searchsorted(weights, weights[:-1] + SPAN).astype(np.int64)
        count = int(np.searchsorted(ends, len(weights)))
        return np.arange(count, dtype=np.int64), ends[:count]


def units_of(pieces: Iterable[Piece]) -> Units:
    """Take lines apart; lines without a unit leave nothing.

    >>> units_of([(1, "The cat's hat!"), (2, "猫の帽子")]).words
    ['the', 'cat', 's', 'hat', '猫', 'の', '帽', '子']
    """
    words: list[str] = []
    weights: list[int] = []
    numbers: list[int] = []
    counts: list[int] = []
    for line, text in pieces:
        # Most text needs neither the long pattern nor a look at each unit.
        simple = text.isascii()
        found = _ASCII.findall(text.lower()) if simple else _UNIT.findall(_plain(text))
        words += found
        weights += [WORD] * len(found) if simple else map(_weight, found)
        numbers.append(line)
        counts.append(len(found))
    lines = np.repeat(np.array(numbers, np.int64), np.array(counts, np.int64))
    return Units(words, lines, np.array(weights, np.int64))


def hashed(units: Units) -> Hashed:
    """Prepare units for hashing.

    Hashes compare within one process only: Python salts those of its strings.
    """
    count = len(units)
    each = np.fromiter(map(hash, units.words), np.int64, count).astype(np.uint64)
    powers = _powers(_BASE, count + 1)
    sums = np.zeros(count + 1, np.uint64)
    np.cumsum(each * powers[:-1], out=sums[1:])
    weights = np.zeros(count + 1, np.int64)
    np.cumsum(units.weights, out=weights[1:])
    return Hashed(units, sums, _powers(_INVERSE, count + 1), weights)


def blocks(pieces: Iterable[Piece]) -> Iterator[Hashed]:
    """Yield a text block by block, such that every span lies whole in just one of them."""
    block: list[Piece] = []
    size = 0
    rest = units_of(())
    for piece in pieces:
        block.append(piece)
        size += len(piece[1])
        if size >= BLOCK_CHARACTERS:
            found = hashed(_joined(rest, units_of(block)))
            yield found
            rest = _after(found.units, len(found.spans()[0]))
            block, size = [], 0
    yield hashed(_joined(rest, units_of(block)))


def _joined(one: Units, other: Units) -> Units:
    return Units(
        one.words + other.words,
        np.concatenate([one.lines, other.lines]),
        np.concatenate([one.weights, other.weights]),
    )


def _after(units: Units, begin: int) -> Units:
    return Units(units.words[begin:], units.lines[begin:], units.weights[begin:])


def _powers(base: np.uint64, count: int) -> Hashes:
    factors = np.full(count, base, np.uint64)
    factors[0] = 1
    return np.cumprod(factors)


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


def _weight(word: str) -> int:
    if word.isascii() or len(word) > 1:
        return WORD
    if _IS_IDEOGRAPH.match(word):
        return IDEOGRAPH
    return LETTER if _IS_LETTER.match(word) else WORD
