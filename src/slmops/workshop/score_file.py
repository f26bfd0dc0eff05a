"""Scores on disk: what a scoring child hands to the build, as plain NumPy archives.

Two kinds. *Reference scores* hold, for every scored position, the reference model's
most likely tokens with their log-probabilities, and the mass of all others in one
bucket. *Candidate scores* hold what a candidate lost against them. Both are written
without a date and read without pickle: equal scores give equal bytes, and a hostile
file can be wrong but cannot run.

KL divergence is taken over the listed tokens and the rest bucket. Merging outcomes
never increases a divergence (data-processing inequality), so it is a lower bound of
the divergence over the whole vocabulary, and a tight one: the bucket holds a few
percent of the mass.
"""

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from slmops.domain.errors import InvalidInputError

TOP_K = 256
"""Listed tokens per position."""
LEAST_WINDOWS = 2
"""Confidence bounds need two."""
_TINY = 1e-30
_CHUNK_LOGITS = 1 << 22
"""Logits turned into log-probabilities at a time: 32 MiB of float64."""
_COMPARED = ("tokens", "top_ids", "top_logprobs", "rest_logprob", "nll")
_OTHER_LENGTHS = frozenset({"tokens", "piece_ids", "piece_ends", "piece_bytes"})

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int32]
Scores = TypeVar("Scores", "ReferenceScores", "CandidateScores")


@dataclass(frozen=True, kw_only=True, slots=True)
class ReferenceScores:
    """The reference model on the evaluation text."""

    tokens: Integers
    """(windows, window length) token ids."""
    top_ids: Integers
    """(positions, k) most likely next tokens, best first."""
    top_logprobs: Floats
    """(positions, k) their log-probabilities, nats."""
    rest_logprob: Floats
    """(positions,) log of the mass of all other tokens; -inf where there is none."""
    nll: Floats
    """(positions,) negative log-likelihood of the true next token, nats."""
    piece_ids: Integers = field(default_factory=lambda: np.zeros(0, np.int32))
    """(pieces,) tokens that occur in `tokens` or `top_ids`, ascending."""
    piece_ends: Integers = field(default_factory=lambda: np.zeros(0, np.int32))
    """(pieces,) where each one's bytes end in `piece_bytes`."""
    piece_bytes: npt.NDArray[np.uint8] = field(
        default_factory=lambda: np.zeros(0, np.uint8)
    )
    """What the tokens write, one after the other: a candidate with other tokens is
    matched by bytes."""

    def pieces(self) -> dict[int, bytes]:
        """Return what each token that occurs writes."""
        begins = [0, *self.piece_ends.tolist()]
        whole = self.piece_bytes.tobytes()
        return {
            token: whole[begin:end]
            for token, begin, end in zip(
                self.piece_ids.tolist(), begins, begins[1:], strict=False
            )
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class CandidateScores:
    """A candidate on the same text, position by position."""

    kld: Floats
    """(positions,) KL divergence of the candidate from the reference, nats, >= 0."""
    same_top1: npt.NDArray[np.bool_]
    """(positions,) whether both name the same most likely token."""
    nll: Floats
    """(positions,) negative log-likelihood of the true next token, nats."""


def context_of(window: int) -> int:
    """Return how many tokens at the begin of a window only give context.

    >>> context_of(256)
    64
    """
    return window // 4


def cut_windows(tokens: list[int], window: int, scored: int) -> Integers:
    """Cut a text into windows that overlap by a quarter.

    Tokens of a window's first quarter are context only, all others are predicted and
    scored: each with at least a quarter of a window before it, and none twice.

    Args:
        tokens: of the whole text.
        window: length of one window.
        scored: positions wanted; fewer when the text is shorter, and at least those of
            two windows, because bounds need two.

    Returns:
        (windows, window) token ids.

    Raises:
        InvalidInputError: the text is too short for two windows.

    >>> cut_windows(list(range(10)), 4, 6).tolist()
    [[0, 1, 2, 3], [3, 4, 5, 6]]
    """
    context = context_of(window)
    step = window - context
    possible = (len(tokens) - context) // step
    windows = min(possible, max(scored // step, LEAST_WINDOWS))
    if windows < LEAST_WINDOWS:
        raise InvalidInputError(
            f"evaluation text must have at least {context + LEAST_WINDOWS * step} tokens"
            f" for windows of {window}, and in each of its two parts"
            f" (evaluation.search_share); got {len(tokens)}"
        )
    starts = range(0, windows * step, step)
    return np.array([tokens[at : at + window] for at in starts], np.int32)


def same_windows(one: ReferenceScores, other: ReferenceScores) -> int:
    """Return at how many windows two references agree to the bit, from the first on.

    What a candidate lost against one of them there, it lost against the other.
    """
    if one.tokens.shape[1:] != other.tokens.shape[1:]:
        return 0
    if one.top_ids.shape[1:] != other.top_ids.shape[1:]:
        return 0
    windows = min(len(one.tokens), len(other.tokens))
    agree = np.ones(windows, np.bool_)
    for name in _COMPARED:
        # A window's rows, whatever their shape.
        mine, theirs = (
            getattr(each, name).reshape(len(each.tokens), -1)[:windows]
            for each in (one, other)
        )
        agree &= (mine == theirs).all(axis=1)
    return windows if agree.all() else int(agree.argmin())


def log_softmax(logits: Floats) -> npt.NDArray[np.float64]:
    """Return (rows, vocabulary) log-probabilities of (rows, vocabulary) logits."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    total: npt.NDArray[np.float64] = np.exp(wide).sum(axis=1, keepdims=True)
    wide -= np.log(total)
    return wide


def logit_chunks(logits: Floats) -> Iterator[Floats]:
    """Yield (rows, vocabulary) logits some rows at a time: in float64 they are large.

    Raises:
        InvalidInputError: they are not finite.
    """
    step = max(_CHUNK_LOGITS // logits.shape[1], 1)
    for first in range(0, len(logits), step):
        rows = logits[first : first + step]
        if not np.isfinite(rows).all():
            raise InvalidInputError(
                "the model's logits are not finite: its weights are bad"
            )
        yield rows


def top_of(logprobs: npt.NDArray[np.float64]) -> tuple[Integers, Floats, Floats]:
    """Return ids and log-probabilities of the best tokens, and the rest's log mass.

    Args:
        logprobs: (rows, vocabulary).

    Returns:
        (rows, k) ids, (rows, k) log-probabilities, best first, ties by id; (rows,) rest.
    """
    count = min(TOP_K, logprobs.shape[1])
    part = np.sort(np.argpartition(-logprobs, count - 1, axis=1)[:, :count], axis=1)
    values = np.take_along_axis(logprobs, part, axis=1)
    order = np.argsort(-values, axis=1, kind="stable")
    ids = np.take_along_axis(part, order, axis=1).astype(np.int32)
    best = np.take_along_axis(values, order, axis=1)
    return ids, best.astype(np.float32), _rest(best).astype(np.float32)


def divergence(
    top_logprobs: Floats, rest_logprob: Floats, candidate: npt.NDArray[np.float64]
) -> Floats:
    """Return the KL divergence over listed tokens and rest, (rows,) nats, >= 0.

    Args:
        top_logprobs: (rows, k) of the reference.
        rest_logprob: (rows,) of the reference.
        candidate: (rows, k) the candidate's log-probabilities of the same tokens.
    """
    listed = top_logprobs.astype(np.float64)
    rest = np.exp(rest_logprob.astype(np.float64))
    terms = (np.exp(listed) * (listed - candidate)).sum(axis=1)
    gap = np.log(np.maximum(rest, _TINY)) - np.maximum(_rest(candidate), np.log(_TINY))
    total = terms + np.where(rest > _TINY, rest * gap, 0.0)
    return np.asarray(np.maximum(total, 0.0), np.float32)


def save_scores(scores: ReferenceScores | CandidateScores, path: Path) -> None:
    """Write an archive; equal scores give equal bytes."""
    arrays: dict[str, Any] = {
        each.name: getattr(scores, each.name) for each in fields(scores)
    }
    with path.open("wb") as file:
        np.savez(file, **arrays)


def load_scores(path: Path, kind: type[Scores]) -> Scores:
    """Read an archive and check the arrays' names, types and shapes.

    Raises:
        InvalidInputError: damaged, or of another kind.
    """
    wanted = {each.name for each in fields(kind)}
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            if set(archive.files) != wanted:
                raise InvalidInputError(
                    f"{path}: scores must hold {sorted(wanted)}, got {archive.files}"
                )
            arrays = {name: archive[name] for name in wanted}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, InvalidInputError):
            raise
        raise InvalidInputError(f"{path}: not a score archive: {error}") from None
    positions = len(arrays["nll"])
    for name, array in arrays.items():
        if name not in _OTHER_LENGTHS and len(array) != positions:
            raise InvalidInputError(
                f"{path}: {name} must have {positions} rows, got {len(array)}"
            )
        if array.dtype.kind not in "fiub":
            raise InvalidInputError(f"{path}: {name} must be numbers")
    return kind(**arrays)


def _rest(logprobs: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    mass = 1.0 - np.exp(logprobs).sum(axis=1)
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(np.maximum(mass, 0.0)))
