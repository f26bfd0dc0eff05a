"""Compare a model with a trimmed vocabulary to one with the whole.

Both read the same bytes, in other tokens. Positions are matched by byte: a reference
position counts where a token of the candidate begins at the same byte. What the
reference expects next is carried over to the candidate's tokens: a token that was kept
is itself, one that was dropped is the token its own text now begins with. A candidate
that follows the reference perfectly in its own tokens then has no divergence, as it
should; a bucket "dropped" that it can never choose would accuse it of one.

The listed tokens are carried over exactly. Tokens in the reference's rest bucket stay
there, dropped or not: they are not listed, and hold a few percent of the mass.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from slmops.domain.errors import InvalidInputError
from slmops.runtimes.base import Scorer
from slmops.workshop.score_file import Floats, Integers, ReferenceScores, context_of

_CONTINUATION, _CONTINUATION_MASK = 0x80, 0xC0
_LONGEST_CHARACTER = 4
_NOWHERE = -1

Places = npt.NDArray[np.int64]
Wide = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowMatch:
    """One window in the candidate's tokens."""

    tokens: Integers
    """(candidate tokens,) new ids."""
    begins: Places
    """(scored positions,) which candidate token begins where the reference's does; -1
    where none does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Matched:
    """A reference's scores as a candidate with fewer tokens is compared with them."""

    windows: tuple[WindowMatch, ...]
    """In order."""
    carried: Places
    """Old id → the new token its text begins with; -1 where that is not known."""

    @property
    def longest(self) -> int:
        """Tokens of the longest window."""
        return max(len(window.tokens) for window in self.windows)

    @property
    def matched_share(self) -> float:
        """Share of scored positions that a candidate token begins at."""
        begins = np.concatenate([window.begins for window in self.windows])
        return float((begins != _NOWHERE).mean())


def load_token_map(path: Path, vocabulary: int) -> Integers:
    """Read new id → old id.

    Args:
        path: a NumPy array.
        vocabulary: tokens of the candidate.

    Raises:
        InvalidInputError: damaged, or of another model.
    """
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InvalidInputError(f"{path}: not a token map: {error}") from None
    if found.dtype != np.int32 or found.shape != (vocabulary,):
        raise InvalidInputError(
            f"{path}: a token map must be int32 [{vocabulary}], one old id for each"
            f" token, got {found.dtype} {list(found.shape)}"
        )
    if found[0] < 0 or (np.diff(found) <= 0).any():
        raise InvalidInputError(f"{path}: a token map's ids must be ascending, from 0")
    return np.asarray(found, np.int32)


def match_reference(
    reference: ReferenceScores, token_map: Integers, scorer: Scorer
) -> Matched:
    """Match a reference's windows and tokens with a candidate's.

    Raises:
        InvalidInputError: the candidate's tokens do not give the text back, or the
            scores were made without the texts of tokens.
    """
    pieces = reference.pieces()
    known = max(int(reference.top_ids.max()), int(token_map[-1]), max(pieces))
    carried = np.full(known + 1, _NOWHERE, np.int64)
    for old in sorted(set(pieces)):
        carried[old] = _first_token(pieces[old], scorer)
    carried[token_map] = np.arange(len(token_map))
    is_kept = np.zeros(known + 1, np.bool_)
    is_kept[token_map] = True
    windows = []
    for window in reference.tokens:
        if is_kept[window].all():
            # Same text of kept tokens: the tokenizer gives the same tokens.
            context = context_of(len(window))
            tokens = carried[window].astype(np.int32)
            windows.append(
                WindowMatch(tokens=tokens, begins=np.arange(context, len(window)))
            )
        else:
            windows.append(_tokenized(window, pieces, scorer))
    return Matched(windows=tuple(windows), carried=carried)


def carried_divergence(
    top: tuple[Integers, Floats],
    rest_logprob: Floats,
    carried: Places,
    candidate: Wide,
) -> Floats:
    """Return the KL divergence over carried tokens and rest, (rows,) nats, >= 0.

    Args:
        top: (rows, k) old ids and (rows, k) log-probabilities of the reference.
        rest_logprob: (rows,) of the reference.
        carried: old id → new id or -1.
        candidate: (rows, new vocabulary) log-probabilities.
    """
    ids, logprobs = top
    found = [
        _row_divergence(
            carried[row_ids], np.exp(listed.astype(np.float64)), float(rest), scores
        )
        for row_ids, listed, rest, scores in zip(
            ids,
            logprobs,
            np.exp(rest_logprob.astype(np.float64)),
            candidate,
            strict=True,
        )
    ]
    return np.asarray(found, np.float32)


def filled(values: npt.NDArray[np.float32], begins: Places) -> Floats:
    """Give positions without a token of their own the value of the token they lie in.

    Args:
        values: (matched positions,) in order.
        begins: (scored positions,) of one window, -1 where unmatched.
    """
    has_own = begins != _NOWHERE
    if not has_own.any():
        raise InvalidInputError("no token of the candidate begins where one did before")
    place = np.maximum(np.cumsum(has_own) - 1, 0)
    return np.asarray(values[place], np.float32)


def spread_losses(losses: Wide, begins: Places) -> Floats:
    """Sum token losses over the stretches between matched positions.

    Args:
        losses: (candidate tokens,) nats.
        begins: (scored positions,) of one window.

    Returns:
        (scored positions,): each matched position has the loss of all tokens up to the
        next, others 0. The sum is that of all tokens from the first match on, so means
        are nats per token of the reference.
    """
    total = np.zeros(len(begins))
    matched = np.flatnonzero(begins != _NOWHERE)
    ends = [*begins[matched[1:]], len(losses)]
    for place, first, end in zip(matched, begins[matched], ends, strict=True):
        total[place] = losses[first:end].sum()
    return total.astype(np.float32)


def _row_divergence(new: Places, mass: Wide, rest: float, scores: Wide) -> float:
    tiny = 1e-30
    listed = new != _NOWHERE
    rest += float(mass[~listed].sum())
    # Several old tokens may begin with one new token: their mass adds up in its first.
    ids, first, inverse = np.unique(new[listed], return_index=True, return_inverse=True)
    order = np.argsort(first)
    mass = np.bincount(inverse, mass[listed]).astype(np.float64)[order]
    log_q = scores[ids[order]]
    terms = float((mass * (np.log(np.maximum(mass, tiny)) - log_q)).sum())
    rest_q = max(1.0 - float(np.exp(log_q).sum()), tiny)
    if rest > tiny:
        terms += rest * (np.log(rest) - np.log(rest_q))
    return max(terms, 0.0)


def _first_token(piece: bytes, scorer: Scorer) -> int:
    try:
        tokens = scorer.tokenize(piece.decode())
    except UnicodeDecodeError:
        return _NOWHERE
    return tokens[0] if tokens else _NOWHERE


def _tokenized(
    window: Integers, pieces: Mapping[int, bytes], scorer: Scorer
) -> WindowMatch:
    """Tokenize a window's text anew and find the reference's borders in it."""
    texts = [pieces[int(token)] for token in window]
    whole = b"".join(texts)
    first, last = _whole_characters(whole)
    tokens = scorer.tokenize(whole[first:last].decode())
    lengths = [len(scorer.piece(token)) for token in tokens]
    if b"".join(map(scorer.piece, tokens)) != whole[first:last]:
        raise InvalidInputError(
            "the candidate's tokens do not give the evaluation text back: its"
            " tokenizer adds or loses something"
        )
    new_begins = {int(at): n for n, at in enumerate(np.cumsum([first, *lengths[:-1]]))}
    old_begins = np.cumsum([0, *(len(text) for text in texts[:-1])])
    scored = old_begins[context_of(len(window)) :]
    begins = [new_begins.get(int(at), _NOWHERE) or _NOWHERE for at in scored]
    return WindowMatch(
        tokens=np.array(tokens, np.int32), begins=np.array(begins, np.int64)
    )


def _whole_characters(raw: bytes) -> tuple[int, int]:
    """Return where the whole characters of a cut-out piece of UTF-8 begin and end."""
    first, last = 0, len(raw)
    while first < last and raw[first] & _CONTINUATION_MASK == _CONTINUATION:
        first += 1
    for back in range(1, min(_LONGEST_CHARACTER, last - first) + 1):
        if raw[last - back] & _CONTINUATION_MASK != _CONTINUATION:
            try:
                raw[last - back : last].decode()
            except UnicodeDecodeError:
                return first, last - back
            break
    return first, last
