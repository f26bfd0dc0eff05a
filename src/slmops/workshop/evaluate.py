"""Fidelity steps: score the reference once, every candidate against it, and estimate.

Scores are computed in child processes, in the runtime that will serve; see
`score_child`. The reference goes through the same code as every candidate, against
itself: what that row shows is the measurement's own noise.
"""

import importlib.resources
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from slmops.domain.blueprint import EvaluationPlan
from slmops.domain.ids import Digest
from slmops.domain.release import Fidelity
from slmops.registry.blobs import BlobStore
from slmops.runtimes.base import load_runtime
from slmops.workshop.board import Board
from slmops.workshop.score_child import ScoreJob
from slmops.workshop.score_file import CandidateScores, ReferenceScores, load_scores
from slmops.workshop.score_process import ScoreProcesses
from slmops.workshop.statistics import (
    P99,
    exponential,
    make_blocks,
    mean_estimate,
    quantile_estimate,
)
from slmops.workshop.steps import Step, StepRunner, tool_version

SCORES = "scores"
"""Role of a score step's output."""
BOOTSTRAP_SEED = 20
_CODE = (
    "slmops.workshop.score_child",
    "slmops.workshop.score_file",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scoring:
    """What all score steps of one build share."""

    runner: StepRunner
    """Runs or reuses them."""
    processes: ScoreProcesses
    """Children are started here."""
    board: Board
    """Told how far they are."""
    runtime: str
    """Name of the runtime that will serve."""
    plan: EvaluationPlan
    """Sizes."""
    text_digest: Digest
    """Evaluation text, in UTF-8."""

    @property
    def blobs(self) -> BlobStore:
        """Where artefacts and scores lie."""
        return self.runner.cache.blobs

    @property
    def tool(self) -> str:
        """What computes scores."""
        code = tool_version(*_CODE, packages=("numpy",))
        return f"{code}; {runtime_tool(self.runtime)}"


def runtime_tool(name: str) -> str:
    """Name a runtime with its version and the code that drives it."""
    runtime = load_runtime(name)
    module = type(runtime).__module__
    package = module.rpartition(".")[0]
    folder = importlib.resources.files(package)
    # A backend is one module and those that begin with its name: its scorer, its server.
    modules = sorted(
        f"{package}.{Path(file.name).stem}"
        for file in folder.iterdir()
        if f"{package}.{file.name}".startswith(module) and file.name.endswith(".py")
    )
    return f"{name} {runtime.version()}, {tool_version(*modules)}"


def score_reference(scoring: Scoring, artefact: Digest) -> Digest:
    """Return the digest of the reference's scores on the evaluation text."""
    step = Step(
        kind="score reference",
        tool=scoring.tool,
        inputs={"artefact": artefact, "text": scoring.text_digest},
        parameters={
            "runtime": scoring.runtime,
            "window_tokens": scoring.plan.window_tokens,
            "max_tokens": scoring.plan.max_tokens,
        },
    )

    def compute() -> Mapping[str, Digest]:
        path = scoring.blobs.verify(scoring.text_digest)
        return _scored(scoring, artefact, "score reference", text=str(path))

    return scoring.runner.run("score reference", step, compute).outputs[SCORES]


def score_candidate(
    scoring: Scoring, name: str, artefact: Digest, reference: Digest
) -> Digest:
    """Return the digest of a candidate's scores against the reference's."""
    step = Step(
        kind="score",
        tool=scoring.tool,
        inputs={"artefact": artefact, "reference": reference},
        parameters={"runtime": scoring.runtime},
    )

    def compute() -> Mapping[str, Digest]:
        path = scoring.blobs.path(reference)
        return _scored(scoring, artefact, f"score {name}", reference=str(path))

    return scoring.runner.run(f"score {name}", step, compute).outputs[SCORES]


def estimate_fidelity(
    scoring: Scoring, reference: Digest, candidate: Digest
) -> Fidelity:
    """Turn scores into figures with 95 % bounds; equal scores give equal figures."""
    blobs = scoring.blobs
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


def _scored(
    scoring: Scoring,
    artefact: Digest,
    name: str,
    *,
    text: str | None = None,
    reference: str | None = None,
) -> dict[str, Digest]:
    blobs = scoring.blobs
    scratch = scoring.runner.cache.scratch
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        output = Path(folder) / "scores.npz"
        job = ScoreJob(
            runtime=scoring.runtime,
            artefact=str(blobs.path(artefact)),
            output=str(output),
            window_tokens=scoring.plan.window_tokens,
            max_tokens=scoring.plan.max_tokens,
            text=text,
            reference=reference,
        )
        with scoring.board.task(name) as report:
            scoring.processes.run(job, report)
        return {SCORES: blobs.put_bytes(output.read_bytes())}
