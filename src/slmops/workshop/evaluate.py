"""Fidelity steps: score the reference once, every candidate against it, and estimate."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from slmops.domain.blueprint import EvaluationPlan
from slmops.domain.ids import Digest
from slmops.domain.release import Fidelity
from slmops.domain.runtime_settings import UNCHANGED
from slmops.workshop.jobs.job import Value
from slmops.workshop.score_file import (
    CandidateScores,
    ReferenceScores,
    load_scores,
    same_windows,
)
from slmops.workshop.score_job import SCORES
from slmops.workshop.statistics import (
    P99,
    exponential,
    make_blocks,
    mean_estimate,
    quantile_estimate,
)
from slmops.workshop.steps import Step
from slmops.workshop.workbench import Workbench, not_begun

BOOTSTRAP_SEED = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Scoring:
    """What all score steps of one build share."""

    bench: Workbench
    """Runs or reuses them."""
    runtime: str
    """Name of the runtime that will serve."""
    plan: EvaluationPlan
    """Sizes."""
    text_digest: Digest
    """Evaluation text, in UTF-8."""


def score_reference(scoring: Scoring, artefact: Digest) -> Digest:
    """Return the digest of the reference's scores on the evaluation text."""
    record = scoring.bench.run(
        "score reference",
        "score reference",
        {"artefact": artefact, "text": scoring.text_digest},
        {
            "runtime": scoring.runtime,
            "window_tokens": scoring.plan.window_tokens,
            "max_tokens": scoring.plan.max_tokens,
        },
        begun=partial(_begun_reference, scoring),
    )
    return record.outputs[SCORES]


def score_candidate(
    scoring: Scoring,
    name: str,
    artefact: Digest,
    reference: Digest,
    *,
    token_map: Digest | None = None,
    kv_cache: str = UNCHANGED.kv_cache,
) -> Digest:
    """Return the digest of a candidate's scores against the reference's.

    Args:
        scoring: what is common to all.
        name: of the candidate, for people.
        artefact: the model.
        reference: the reference's scores.
        token_map: new id → old id, where the candidate's vocabulary is a part of the
            reference's.
        kv_cache: type of the candidate's cache; the reference's has 16 bits.
    """
    inputs = {"artefact": artefact, "reference": reference}
    if token_map is not None:
        inputs["token_map"] = token_map
    parameters: dict[str, Value] = {"runtime": scoring.runtime}
    if kv_cache != UNCHANGED.kv_cache:
        parameters["kv_cache"] = kv_cache
    record = scoring.bench.run(
        f"score {name}",
        "score",
        inputs,
        parameters,
        # Candidates with other tokens are cut at other places.
        begun=not_begun if token_map is not None else partial(_begun_score, scoring),
    )
    return record.outputs[SCORES]


def _begun_reference(scoring: Scoring, step: Step) -> Mapping[str, Digest]:
    """Find the same reference's scores on another number of positions of the text."""

    def serves(other: Step) -> bool:
        return other.inputs == step.inputs and _without(
            other.parameters, "max_tokens"
        ) == _without(step.parameters, "max_tokens")

    found = scoring.bench.runner.cache.alike(step, serves)
    most = max(
        found, key=lambda r: int(str(r.step.parameters["max_tokens"])), default=None
    )
    return {} if most is None else {"begun": most.outputs[SCORES]}


def _begun_score(scoring: Scoring, step: Step) -> Mapping[str, Digest]:
    """Find the same candidate's scores against what the reference's begin with."""
    blobs = scoring.bench.blobs

    def serves(other: Step) -> bool:
        return (
            other.parameters == step.parameters
            and _without(other.inputs, "reference")
            == _without(step.inputs, "reference")
            and blobs.has(other.inputs["reference"])
        )

    wanted = load_scores(blobs.path(step.inputs["reference"]), ReferenceScores)
    best, most = {}, 0
    for record in scoring.bench.runner.cache.alike(step, serves):
        against = record.step.inputs["reference"]
        known = load_scores(blobs.path(against), ReferenceScores)
        same = same_windows(known, wanted)
        if same > most:
            best = {"begun": record.outputs[SCORES], "begun reference": against}
            most = same
    return best


def _without(mapping: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in mapping.items() if name != key}


def estimate_fidelity(
    scoring: Scoring, reference: Digest, candidate: Digest
) -> Fidelity:
    """Turn scores into figures with 95 % bounds; equal scores give equal figures."""
    blobs = scoring.bench.blobs
    expected = load_scores(blobs.path(reference), ReferenceScores)
    scores = load_scores(blobs.path(candidate), CandidateScores)
    return fidelity_of(expected, scores, scoring.text_digest)


def fidelity_of(
    reference: ReferenceScores, candidate: CandidateScores, text_digest: Digest
) -> Fidelity:
    """Estimate all fidelity figures of one candidate; pure."""
    windows = len(reference.tokens)
    positions = len(candidate.kld)
    blocks = make_blocks(windows, positions // windows, seed=BOOTSTRAP_SEED)
    kld = candidate.kld.astype(np.float64)
    return Fidelity(
        mean_kld=mean_estimate(kld, blocks),
        p99_kld=quantile_estimate(kld, P99, blocks),
        same_top1=mean_estimate(candidate.same_top1.astype(np.float64), blocks),
        perplexity=exponential(mean_estimate(candidate.nll.astype(np.float64), blocks)),
        reference_perplexity=float(np.exp(reference.nll.astype(np.float64).mean())),
        tokens=positions,
        text_digest=text_digest,
    )
