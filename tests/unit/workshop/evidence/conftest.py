"""A finished build with an executed graph worth writing down."""

from dataclasses import replace

import pytest

from slmops.domain.estimate import Estimate
from slmops.domain.release import Card
from slmops.domain.tasks import (
    Flips,
    TaskKind,
    TaskMethod,
    TaskMetric,
    TaskResult,
)
from slmops.testing.sample_build import sample_build
from slmops.testing.sample_release import digest_of
from slmops.workshop.build_result import BuildResult, Candidate
from slmops.workshop.steps import Step, StepRecord

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TEXT = digest_of(b"text")
STATISTICS = digest_of(b"statistics")


def step(kind: str, inputs: dict[str, bytes], outputs: dict[str, bytes]) -> StepRecord:
    """Return a finished step over blobs given by their content."""
    return StepRecord(
        step=Step(
            kind=kind,
            tool="code-0123456789abcdef; gguf 0.19.0; libgguf 0.2.2",
            inputs={role: digest_of(content) for role, content in inputs.items()},
            parameters={"quantization": "Q4_K_M", "threads": 1, "mixes": ("a", "b")},
            seed=7,
        ),
        outputs={role: digest_of(content) for role, content in outputs.items()},
        seconds=1.25,
    )


GRAPH = (
    step(
        "statistics",
        {"model": b"reference", "text": b"calibration"},
        {"statistics": b"statistics"},
    ),
    step(
        "quantize",
        {"model": b"reference", "statistics": b"statistics"},
        {"artefact": b"artefact Q4_K_M"},
    ),
    step("score", {"model": b"artefact Q4_K_M", "text": b"text"}, {"scores": b"s"}),
)


def intents(score: float, difference: float | None) -> TaskResult:
    """Return one task's result; bounds are 0.02 off."""
    return TaskResult(
        name="intents",
        kind=TaskKind.CLASSIFICATION,
        metric=TaskMetric.ACCURACY,
        method=TaskMethod.RANK,
        constrained=False,
        score=around(score),
        difference=None if difference is None else around(difference),
        flips=None
        if difference is None
        else Flips(right_to_wrong=5, wrong_to_right=1, p_value=0.219),
        examples=200,
        examples_digest=digest_of(b"intents"),
        metrics={"macro_f1": around(score - 0.01), "ece": around(0.1)},
    )


def around(value: float) -> Estimate:
    """Return an estimate with bounds 0.02 off."""
    return Estimate(value=value, low=value - 0.02, high=value + 0.02)


@pytest.fixture(scope="session")
def build() -> BuildResult:
    """A build of a model from the Hub, with tasks, dequantized from Q4_1."""
    plain = sample_build()

    def tasked(candidate: Candidate, difference: float | None) -> Candidate:
        task = intents(0.9 + (difference or 0), difference)
        card: Card = replace(candidate.card, tasks=(task,), reference_grid="Q4_1")
        return replace(candidate, card=card)

    candidates = tuple(tasked(c, -0.01) for c in plain.candidates)
    cards = {c.digest: c.card for c in candidates}
    return replace(
        plain,
        model=replace(
            plain.model, source=f"maker/model@{COMMIT}", source_quantization="Q4_1"
        ),
        reference=tasked(plain.reference, None),
        control=candidates[0],
        candidates=candidates,
        variants=tuple(replace(v, card=cards[v.digest]) for v in plain.variants),
        provenance=GRAPH,
    )
