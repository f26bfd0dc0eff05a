"""What is measured on, as an index that everything learnt from is held against.

Two kinds of text are held out, and two rules say when some of them was learnt:

- *Evaluation text*: one span of it (twelve words, see `spans`) or one whole line of six
  words or more occurs in what is learnt. Fewer words are shared by chance.
- *A task's prompts*: a prompt of six to twelve words occurs as it is; of a longer one, at
  least half of its spans occur. A copied beginning, as templates have, is no copied
  prompt.

What occurs more than `COMMON` times in the held-out texts is boilerplate: a licence, a
template's words, a table's head; it proves nothing. An evaluation text that mostly repeats
itself is compared whole all the same.

The index takes 12 bytes for each unit held out; what is learnt is read block by block.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from slmops.domain.errors import InvalidInputError
from slmops.workshop.leakage.spans import (
    SPAN,
    WORD,
    Hashed,
    Hashes,
    Piece,
    Places,
    blocks,
    hashed,
    units_of,
)

LEAST = 6 * WORD
"""Weight of a line or prompt that is compared as a whole: shorter ones are headings, thanks,
and what everybody asks."""
COMMON = 3
"""Times that something may occur in held-out text and still be its own."""
_SHOWN = 60


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A file and what names it."""

    key: str
    """Key of the blueprint: ``evaluation.text``."""
    path: Path | None
    """The file; None for our own text."""

    def at(self, line: int) -> str:
        """Name a line of it."""
        return f"{self.key}: {self.path or 'builtin'}:{line}"


@dataclass(frozen=True, slots=True)
class _Shared:
    """Where something held out was found."""

    learnt_line: int
    held_line: int
    text: str


class HeldOut:
    """Everything a build measures on."""

    def __init__(self) -> None:
        self._texts: list[tuple[Source, _Text]] = []
        self._prompts: list[tuple[Source, _Prompts]] = []

    def add_text(self, source: Source, pieces: Iterable[Piece]) -> None:
        """Hold out a text, line by line."""
        self._texts.append((source, _Text.of(pieces)))

    def add_prompts(self, source: Source, prompts: Sequence[Piece]) -> None:
        """Hold out a task's prompts, each with its line."""
        self._prompts.append((source, _Prompts.of(prompts)))

    def refuse_shared(
        self, learnt: Source, pieces: Iterable[Piece], *, texts_only: bool = False
    ) -> None:
        """Refuse what holds some of what is held out.

        Args:
            learnt: names what is learnt from.
            pieces: its lines; read once, as a stream.
            texts_only: look for evaluation text only: examples have prompts of their own,
                which are compared as such.

        Raises:
            InvalidInputError: naming key, file and line of both places.
        """
        searches: list[tuple[Source, _Text | _PromptSearch]] = [*self._texts]
        if not texts_only:
            searches += [(held, _PromptSearch(found)) for held, found in self._prompts]
        for block in blocks(pieces):
            found = [(held, search.find(block)) for held, search in searches]
            hits = [(held, hit) for held, hit in found if hit is not None]
            if hits:
                held, hit = min(hits, key=lambda pair: pair[1].learnt_line)
                raise InvalidInputError(
                    f"{learnt.at(hit.learnt_line)}: {hit.text[:_SHOWN]!r}… is also in"
                    f" {held.at(hit.held_line)}; what is learnt from must share nothing"
                    " with what is measured on"
                )


@dataclass(frozen=True, slots=True)
class _Text:
    hashes: Hashes
    lines: npt.NDArray[np.int32]

    @classmethod
    def of(cls, pieces: Iterable[Piece]) -> "_Text":
        hashes, lines = [], []
        for block in blocks(pieces):
            begins, ends = _rows_of(block)
            hashes.append(block.rows(begins, ends))
            lines.append(block.units.lines[begins].astype(np.int32))
        all_hashes, all_lines = np.concatenate(hashes), np.concatenate(lines)
        unique, first, counts = np.unique(
            all_hashes, return_index=True, return_counts=True
        )
        own = counts <= COMMON
        if 2 * int(counts[own].sum()) < len(all_hashes):
            own[:] = True  # it mostly repeats itself
        return cls(unique[own], all_lines[first[own]])

    def find(self, block: Hashed) -> _Shared | None:
        begins, ends = _rows_of(block)
        at, found = _looked_up(self.hashes, block.rows(begins, ends))
        if not found.any():
            return None
        first = np.flatnonzero(found)[np.argmin(begins[found])]
        return _Shared(
            learnt_line=int(block.units.lines[begins[first]]),
            held_line=int(self.lines[at[first]]),
            text=block.units.shown(int(begins[first]), int(ends[first])),
        )


@dataclass(frozen=True, slots=True)
class _Prompts:
    lines: Places
    """(prompts,)"""
    spans: Hashes
    """Sorted, of all longer prompts."""
    owned: Places
    """(entries,) span, by its place in `spans` …"""
    owners: Places
    """(entries,) … and a prompt that holds it."""
    whole: dict[int, tuple[Hashes, Places]]
    """Units → sorted hashes of the shorter prompts that have so many, and which."""

    @classmethod
    def of(cls, prompts: Sequence[Piece]) -> "_Prompts":
        lines = np.array([line for line, _ in prompts], np.int64)
        whole: dict[int, list[tuple[int, int]]] = defaultdict(list)
        hashes = [np.zeros(0, np.uint64)]
        owners = [np.zeros(0, np.int64)]
        for owner, piece in enumerate(prompts):
            prompt = hashed(units_of([piece]))
            begins, ends = prompt.spans()
            if len(begins):
                found = np.unique(prompt.rows(begins, ends))
                hashes.append(found)
                owners.append(np.full(len(found), owner))
            elif int(prompt.units.weights.sum()) >= LEAST:
                count = len(prompt.units)
                [row] = prompt.rows(np.array([0]), np.array([count]))
                whole[count].append((int(row), owner))
        unique, at, counts = np.unique(
            np.concatenate(hashes), return_inverse=True, return_counts=True
        )
        own = counts <= COMMON
        kept = own[at]
        return cls(
            lines=lines,
            spans=unique[own],
            owned=(np.cumsum(own) - 1)[at[kept]],
            owners=np.concatenate(owners)[kept],
            whole={count: _sorted_pairs(pairs) for count, pairs in whole.items()},
        )


@dataclass(slots=True)
class _PromptSearch:
    """Looks for prompts in one text; remembers which spans it has seen."""

    prompts: _Prompts
    _line: Places = field(init=False)
    """(spans,) line where each was seen; 0 where not yet."""

    def __post_init__(self) -> None:
        self._line = np.zeros(len(self.prompts.spans), np.int64)

    def find(self, block: Hashed) -> _Shared | None:
        hits = [*self._short(block), *self._long(block)]
        return min(hits, key=lambda hit: hit.learnt_line, default=None)

    def _short(self, block: Hashed) -> Iterator[_Shared]:
        for count, (hashes, owners) in self.prompts.whole.items():
            begins = np.arange(max(len(block.units) - count + 1, 0))
            at, found = _looked_up(hashes, block.rows(begins, begins + count))
            if found.any():
                begin = int(np.argmax(found))
                yield _Shared(
                    learnt_line=int(block.units.lines[begin]),
                    held_line=int(self.prompts.lines[owners[at[begin]]]),
                    text=block.units.shown(begin, begin + count),
                )

    def _long(self, block: Hashed) -> Iterator[_Shared]:
        prompts = self.prompts
        begins, ends = block.spans()
        at, found = _looked_up(prompts.spans, block.rows(begins, ends))
        if not found.any():
            return
        places = np.flatnonzero(found)[::-1]  # the first of equal ones stays
        new = places[self._line[at[places]] == 0]
        self._line[at[new]] = block.units.lines[begins[new]]
        totals = np.bincount(prompts.owners, minlength=len(prompts.lines))
        seen = np.bincount(
            prompts.owners,
            weights=self._line[prompts.owned] > 0,
            minlength=len(prompts.lines),
        )
        for owner in np.flatnonzero((totals > 0) & (2 * seen >= totals))[:1]:
            owned = prompts.owned[prompts.owners == owner]
            place = next(each for each in places[::-1] if at[each] in owned)
            yield _Shared(
                learnt_line=int(self._line[owned][self._line[owned] > 0].min()),
                held_line=int(prompts.lines[owner]),
                text=block.units.shown(int(begins[place]), int(ends[place])),
            )


def _rows_of(block: Hashed) -> tuple[Places, Places]:
    """Return all spans of a block, and its whole lines that are shorter and long enough."""
    begins, ends = block.spans()
    lines, weights = block.units.lines, block.units.weights
    starts = np.flatnonzero(np.diff(lines, prepend=-1)) if len(lines) else lines
    stops = np.append(starts[1:], len(lines))
    sums = np.add.reduceat(weights, starts) if len(starts) else weights
    whole = (sums >= LEAST) & (sums < SPAN)
    return (
        np.concatenate([begins, starts[whole]]),
        np.concatenate([ends, stops[whole]]),
    )


def _looked_up(known: Hashes, wanted: Hashes) -> tuple[Places, npt.NDArray[np.bool_]]:
    """Return where each wanted hash is among sorted known ones, and whether it is."""
    if not len(known):
        return np.zeros(len(wanted), np.int64), np.zeros(len(wanted), np.bool_)
    at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return at, known[at] == wanted


def _sorted_pairs(pairs: list[tuple[int, int]]) -> tuple[Hashes, Places]:
    ordered = sorted(pairs)
    return (
        np.array([row for row, _ in ordered], np.uint64),
        np.array([owner for _, owner in ordered], np.int64),
    )
