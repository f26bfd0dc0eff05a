"""The child that scores one artefact on the evaluation text.

Started as ``python -m slmops.workshop.score_child`` by `score_process`, because a
malformed model can abort the process that loads it. Standard input carries one line of
JSON, the job, and then stays open for as long as the parent lives; reports go to a pipe
of their own, because standard output belongs to the engine.
"""

import contextlib
import json
import os
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slmops.domain.errors import InvalidInputError, SlmopsError
from slmops.runtimes.base import Scorer, WorkerSettings, load_runtime
from slmops.workshop.score_file import (
    CandidateScores,
    Floats,
    ReferenceScores,
    context_of,
    cut_windows,
    divergence,
    load_scores,
    log_softmax,
    save_scores,
    top_of,
)

_CHUNK_LOGITS = 1 << 22
"""Logits turned into log-probabilities at a time: 32 MiB of float64."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreJob:
    """What one child does."""

    runtime: str
    """Name of the runtime that will serve the artefact."""
    artefact: str
    """Path of the model."""
    output: str
    """Where the scores go."""
    window_tokens: int
    """Length of a window."""
    max_tokens: int
    """Positions to score."""
    text: str | None = None
    """Path of the evaluation text: set for the reference, whose scores it begins."""
    reference: str | None = None
    """Path of the reference scores: set for a candidate."""
    threads: int = 1
    """Threads of the runtime."""


class _Reports:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def send(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError):
            os.write(self._descriptor, json.dumps(message).encode() + b"\n")

    def progress(self, done: int, total: int) -> None:
        self.send({"done": done, "total": total})


def main() -> None:
    """Run the job on standard input; exits with 0 or the error's class code."""
    order = json.loads(_first_line())
    reports = _Reports(int(order.pop("report_fd")))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        _run(ScoreJob(**order), reports)
    except SlmopsError as error:
        reports.send({"error": error.code, "message": str(error)})
        _leave(error.exit_code)
    reports.send({"finished": True})
    _leave(0)


def score_reference(
    scorer: Scorer, job: ScoreJob, reports: _Reports
) -> ReferenceScores:
    """Score the reference model: what every candidate is compared with."""
    if job.text is None:
        raise InvalidInputError("a score job needs a text or reference scores")
    text = Path(job.text).read_text(encoding="utf-8")
    windows = cut_windows(scorer.tokenize(text), job.window_tokens, job.max_tokens)
    tops, losses = [], []
    for index, window in enumerate(windows):
        for logprobs, following in _scored(scorer, window):
            tops.append(top_of(logprobs))
            losses.append(_loss(logprobs, following))
        reports.progress(index + 1, len(windows))
    ids, listed, rest = zip(*tops, strict=True)
    return ReferenceScores(
        tokens=windows,
        top_ids=np.concatenate(ids),
        top_logprobs=np.concatenate(listed),
        rest_logprob=np.concatenate(rest),
        nll=np.concatenate(losses),
    )


def score_candidate(
    scorer: Scorer, reference: ReferenceScores, reports: _Reports
) -> CandidateScores:
    """Score a candidate on the reference's windows, against the reference's scores."""
    klds, sames, losses = [], [], []
    at = 0
    for index, window in enumerate(reference.tokens):
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
        reports.progress(index + 1, len(reference.tokens))
    return CandidateScores(
        kld=np.concatenate(klds),
        same_top1=np.concatenate(sames),
        nll=np.concatenate(losses),
    )


def _run(job: ScoreJob, reports: _Reports) -> None:
    runtime = load_runtime(job.runtime)
    settings = WorkerSettings(threads=job.threads, context_tokens=job.window_tokens)
    scorer = runtime.open_scorer(Path(job.artefact), settings)
    if job.reference is None:
        save_scores(score_reference(scorer, job, reports), Path(job.output))
        return
    reference = load_scores(Path(job.reference), ReferenceScores)
    if scorer.vocabulary <= int(reference.top_ids.max()):
        raise InvalidInputError(
            f"{job.artefact}: vocabulary must be the reference's,"
            f" got {scorer.vocabulary} tokens"
        )
    save_scores(score_candidate(scorer, reference, reports), Path(job.output))


def _scored(
    scorer: Scorer, window: npt.NDArray[np.int32]
) -> Iterator[tuple[npt.NDArray[np.float64], npt.NDArray[np.int32]]]:
    """Yield log-probabilities and true successors of a window's scored positions."""
    context = context_of(len(window))
    logits: Floats = scorer.logits(window.tolist())[context - 1 : -1]
    if not np.isfinite(logits).all():
        raise InvalidInputError(
            "the model's logits are not finite: its weights are bad"
        )
    step = max(_CHUNK_LOGITS // logits.shape[1], 1)
    for first in range(0, len(logits), step):
        rows = logits[first : first + step]
        begin = context + first
        yield log_softmax(rows), window[begin : begin + len(rows)]


def _loss(
    logprobs: npt.NDArray[np.float64], following: npt.NDArray[np.int32]
) -> Floats:
    chosen = np.take_along_axis(logprobs, following[:, None].astype(np.int64), axis=1)
    return np.asarray(-chosen[:, 0], np.float32)


def _first_line() -> bytes:
    # Byte by byte: nothing may stay in a buffer, the watching thread reads on.
    raw = bytearray()
    while not raw.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            os._exit(1)
        raw += byte
    return bytes(raw)


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)


def _leave(code: int) -> None:
    """Exit without destructors: an engine's own threads may still run."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
