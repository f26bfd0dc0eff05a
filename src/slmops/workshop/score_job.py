"""The jobs that score artefacts on the evaluation text.

The reference is scored once, every candidate against its scores, each from full
next-token logits of the runtime that will serve. The reference goes through the same
code as every candidate: what that row shows is the measurement's own noise.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slmops.domain.errors import InvalidInputError
from slmops.domain.runtime_settings import UNCHANGED
from slmops.runtimes.base import Scorer, WorkerSettings, load_runtime
from slmops.workshop.jobs.job import Job, Report
from slmops.workshop.score_file import (
    CandidateScores,
    Floats,
    ReferenceScores,
    context_of,
    cut_windows,
    divergence,
    load_scores,
    log_softmax,
    logit_chunks,
    same_windows,
    save_scores,
    top_of,
)
from slmops.workshop.token_map import (
    Matched,
    carried_divergence,
    filled,
    load_token_map,
    match_reference,
    spread_losses,
)

SCORES = "scores"
"""Role of the output."""


def score_reference(job: Job) -> Mapping[str, Path]:
    """Score input ``artefact`` on input ``text``: what candidates are compared with.

    Optional input ``begun``: scores of the same artefact at other windows, of which those
    are taken that both begin with.
    Parameters: ``runtime``, ``window_tokens``, ``max_tokens`` (positions to score).

    Returns:
        ``scores``, a `ReferenceScores` archive.

    Raises:
        InvalidInputError: the text is too short, or logits are not finite.
    """
    window = job.parameter("window_tokens", int)
    scorer = _open(job, window)
    text = job.inputs["text"].read_text(encoding="utf-8")
    windows = cut_windows(
        scorer.tokenize(text), window, job.parameter("max_tokens", int)
    )
    return _saved(job, reference_scores(scorer, windows, job.report, _begun(job)))


def score_candidate(job: Job) -> Mapping[str, Path]:
    """Score input ``artefact`` against input ``reference``'s scores.

    Optional input ``token_map`` (new id → old id) for an artefact with a part of the
    reference's vocabulary; see `token_map` for how they are compared. Optional inputs
    ``begun`` and ``begun reference``: the same artefact's scores against another
    reference, of which those windows are taken at which the references agree.
    Parameters: ``runtime``; optionally ``kv_cache``, the type of the cache.

    Returns:
        ``scores``, a `CandidateScores` archive.

    Raises:
        InvalidInputError: another vocabulary, or logits that are not finite.
    """
    reference = load_scores(job.inputs["reference"], ReferenceScores)
    scorer = _open(job, reference.tokens.shape[1])
    if "token_map" in job.inputs:
        return _saved(job, _trimmed_scores(job, scorer, reference))
    if scorer.vocabulary <= int(reference.top_ids.max()):
        raise InvalidInputError(
            f"{job.inputs['artefact']}: vocabulary must be the reference's,"
            f" got {scorer.vocabulary} tokens"
        )
    return _saved(
        job, candidate_scores(scorer, reference, job.report, _begun_against(job))
    )


def reference_scores(
    scorer: Scorer,
    windows: npt.NDArray[np.int32],
    report: Report,
    begun: ReferenceScores | None = None,
) -> ReferenceScores:
    """Score windows, (windows, window length) token ids.

    Args:
        scorer: of the reference.
        windows: to score.
        report: told after every window.
        begun: scores of the same model; windows that both begin with are taken from them.
            Every window is scored from an empty context, so they are the same.
    """
    tops, losses = [], []
    known = 0
    if begun is not None:
        known = _same_tokens(begun.tokens, windows)
        rows = known * _rows_of(windows)
        kept = begun.top_ids, begun.top_logprobs, begun.rest_logprob
        tops.append(tuple(each[:rows] for each in kept))
        losses.append(begun.nll[:rows])
    for index, window in enumerate(windows[known:], known):
        for logprobs, following in _scored(scorer, window):
            tops.append(top_of(logprobs))
            losses.append(_loss(logprobs, following))
        report(index + 1, len(windows))
    ids, listed, rest = zip(*tops, strict=True)
    return ReferenceScores(
        tokens=windows,
        top_ids=np.concatenate(ids),
        top_logprobs=np.concatenate(listed),
        rest_logprob=np.concatenate(rest),
        nll=np.concatenate(losses),
        **_pieces(scorer, windows, *ids),
    )


def candidate_scores(
    scorer: Scorer,
    reference: ReferenceScores,
    report: Report,
    begun: tuple[ReferenceScores, CandidateScores] | None = None,
) -> CandidateScores:
    """Score a candidate on the reference's windows, against the reference's scores.

    Args:
        scorer: of the candidate.
        reference: its scores.
        report: told after every window.
        begun: another reference and the same candidate's scores against it; windows at
            which both references agree from the first on are taken from there.
    """
    klds, sames, losses = [], [], []
    known = at = 0
    if begun is not None:
        known = same_windows(begun[0], reference)
        at = known * _rows_of(reference.tokens)
        klds.append(begun[1].kld[:at])
        sames.append(begun[1].same_top1[:at])
        losses.append(begun[1].nll[:at])
    for index, window in enumerate(reference.tokens[known:], known):
        for logprobs, following in _scored(scorer, window):
            rows = slice(at, at + len(following))
            at += len(following)
            ids = reference.top_ids[rows]
            listed = np.take_along_axis(logprobs, ids.astype(np.int64), axis=1)
            klds.append(
                divergence(
                    reference.top_logprobs[rows], reference.rest_logprob[rows], listed
                )
            )
            sames.append(logprobs.argmax(axis=1) == ids[:, 0])
            losses.append(_loss(logprobs, following))
        report(index + 1, len(reference.tokens))
    return CandidateScores(
        kld=np.concatenate(klds),
        same_top1=np.concatenate(sames),
        nll=np.concatenate(losses),
    )


def matched_scores(
    scorer: Scorer, reference: ReferenceScores, matched: Matched, report: Report
) -> CandidateScores:
    """Score a candidate with fewer tokens on the same bytes as the reference.

    Positions are the reference's, so that figures compare with any other candidate's.
    """
    klds, sames, losses = [], [], []
    rows = len(reference.nll) // len(matched.windows)
    for index, window in enumerate(matched.windows):
        logits: Floats = scorer.logits(window.tokens.tolist())
        own = window.begins != -1
        at = np.flatnonzero(own) + index * rows
        kld, same = _carried(
            logits[window.begins[own] - 1], reference, at, matched.carried
        )
        klds.append(filled(kld, window.begins))
        sames.append(filled(same, window.begins) > 0)
        losses.append(
            spread_losses(_token_losses(logits, window.tokens), window.begins)
        )
        report(index + 1, len(matched.windows))
    return CandidateScores(
        kld=np.concatenate(klds),
        same_top1=np.concatenate(sames),
        nll=np.concatenate(losses),
    )


def _trimmed_scores(
    job: Job, scorer: Scorer, reference: ReferenceScores
) -> CandidateScores:
    token_map = load_token_map(job.inputs["token_map"], scorer.vocabulary)
    matched = match_reference(reference, token_map, scorer)
    if matched.longest > reference.tokens.shape[1]:
        # The same bytes are more tokens now: a longer context holds them.
        scorer.close()
        scorer = _open(job, matched.longest)
    return matched_scores(scorer, reference, matched, job.report)


def _carried(
    logits: Floats,
    reference: ReferenceScores,
    at: npt.NDArray[np.intp],
    carried: npt.NDArray[Any],
) -> tuple[Floats, Floats]:
    """Return (rows,) divergences and whether both name the same token, as 0 or 1."""
    # A window may have no position of its own.
    klds, sames = [np.zeros(0, np.float32)], [np.zeros(0, np.float32)]
    first = 0
    for rows in logit_chunks(logits):
        logprobs = log_softmax(rows)
        part = at[first : first + len(rows)]
        first += len(rows)
        ids = reference.top_ids[part]
        top = (ids, reference.top_logprobs[part])
        klds.append(
            carried_divergence(top, reference.rest_logprob[part], carried, logprobs)
        )
        same = logprobs.argmax(axis=1) == carried[ids[:, 0]]
        sames.append(same.astype(np.float32))
    return np.concatenate(klds), np.concatenate(sames)


def _token_losses(
    logits: Floats, tokens: npt.NDArray[np.int32]
) -> npt.NDArray[np.float64]:
    """Return (tokens,) losses; the first token is not predicted and has 0."""
    losses = np.zeros(len(tokens))
    first = 1
    for rows in logit_chunks(logits[:-1]):
        after = slice(first, first + len(rows))
        losses[after] = _loss(log_softmax(rows), tokens[after])
        first += len(rows)
    return losses


def _pieces(scorer: Scorer, *ids: npt.NDArray[np.int32]) -> dict[str, npt.NDArray[Any]]:
    used = np.unique(np.concatenate([each.ravel() for each in ids])).astype(np.int32)
    texts = [scorer.piece(int(token)) for token in used]
    return {
        "piece_ids": used,
        "piece_ends": np.cumsum([len(text) for text in texts]).astype(np.int32),
        "piece_bytes": np.frombuffer(b"".join(texts), np.uint8),
    }


def _open(job: Job, window: int) -> Scorer:
    settings = WorkerSettings(
        threads=job.threads,
        context_tokens=window,
        kv_cache=str(job.parameters.get("kv_cache", UNCHANGED.kv_cache)),
    )
    runtime = load_runtime(job.parameter("runtime", str))
    return runtime.open_scorer(job.inputs["artefact"], settings)


def _begun(job: Job) -> ReferenceScores | None:
    path = job.inputs.get("begun")
    return None if path is None else load_scores(path, ReferenceScores)


def _begun_against(job: Job) -> tuple[ReferenceScores, CandidateScores] | None:
    if "begun" not in job.inputs:
        return None
    return (
        load_scores(job.inputs["begun reference"], ReferenceScores),
        load_scores(job.inputs["begun"], CandidateScores),
    )


def _rows_of(windows: npt.NDArray[np.int32]) -> int:
    """Return how many positions of each window are scored."""
    length: int = windows.shape[1]
    return length - context_of(length)


def _same_tokens(one: npt.NDArray[np.int32], other: npt.NDArray[np.int32]) -> int:
    """Return with how many windows of the same tokens both begin."""
    if one.shape[1] != other.shape[1]:
        return 0
    windows = min(len(one), len(other))
    agree = (one[:windows] == other[:windows]).all(axis=1)
    return windows if agree.all() else int(agree.argmin())


def _saved(job: Job, scores: ReferenceScores | CandidateScores) -> dict[str, Path]:
    path = job.output / "scores.npz"
    save_scores(scores, path)
    return {SCORES: path}


def _scored(
    scorer: Scorer, window: npt.NDArray[np.int32]
) -> Iterator[tuple[npt.NDArray[np.float64], npt.NDArray[np.int32]]]:
    """Yield log-probabilities and true successors of a window's scored positions."""
    context = context_of(len(window))
    logits: Floats = scorer.logits(window.tolist())[context - 1 : -1]
    begin = context
    for rows in logit_chunks(logits):
        yield log_softmax(rows), window[begin : begin + len(rows)]
        begin += len(rows)


def _loss(
    logprobs: npt.NDArray[np.float64], following: npt.NDArray[np.int32]
) -> Floats:
    chosen = np.take_along_axis(logprobs, following[:, None].astype(np.int64), axis=1)
    return np.asarray(-chosen[:, 0], np.float32)
