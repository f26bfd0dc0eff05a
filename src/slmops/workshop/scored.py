"""First stage of a build: every candidate quantized, and scored against the reference.

One thread quantizes, scoring children use all processors. What is scored here is the part of
the evaluation text that candidates are chosen by; `tested` has the other.
"""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from slmops.domain.ids import Digest
from slmops.domain.release import Fidelity
from slmops.workshop.artefacts import Artefact, Making
from slmops.workshop.build_context import BuildContext
from slmops.workshop.evaluate import (
    Scoring,
    estimate_fidelity,
    score_candidate,
    score_reference,
)
from slmops.workshop.goldens import Goldens
from slmops.workshop.text_sources import evaluation_parts


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """What the stage found."""

    artefacts: tuple[Artefact, ...]
    """Largest first."""
    fidelity: dict[Digest, Fidelity]
    """Of every artefact, and of the reference against itself."""


def quantize_and_score(
    build: BuildContext, makings: Sequence[Making], golden: Digest
) -> Scored:
    """Run the stage for some candidates.

    Args:
        build: of them.
        makings: how they are made; labels differ.
        golden: the reference's golden answers.

    Raises:
        InvalidInputError: a damaged reference, a text that is too short, logits that
            are not finite.
        NotFoundError: a text does not exist.
        UnavailableError: a child process was killed.
    """
    scoring = scoring_of(build)
    model = build.model.id
    with build.pool(1) as quantizer, build.pool() as scorers:
        reference = scorers.submit(score_reference, scoring, model)
        made = {m.label: quantizer.submit(m.quantize, build.bench) for m in makings}
        rows = [
            scorers.submit(_score_row, scoring, name, future, reference)
            for name, future in made.items()
        ]
        rows.append(scorers.submit(_score_reference, scoring, model, reference))
        eligible = [m for m in makings if build.is_eligible(m)]
        if len(eligible) == 1:
            # It will be chosen, or the build fails: a processor is free to ask it now.
            only = eligible[0].label
            build.board.expect(1)
            Goldens(build=build).ask(only, made[only].result().digest, golden)
        scores = dict(row.result() for row in rows)
        artefacts = [future.result() for future in made.values()]
    artefacts.sort(key=lambda artefact: (-artefact.file.bytes, artefact.label))
    return Scored(
        artefacts=tuple(artefacts),
        fidelity={
            digest: estimate_fidelity(scoring, reference.result(), found)
            for digest, found in scores.items()
        },
    )


def scoring_of(build: BuildContext) -> Scoring:
    """Return what all score steps share that candidates are chosen by."""
    return _scoring(
        build, evaluation_parts(build.blueprint.evaluation, build.folder)[1]
    )


def reported_scoring_of(build: BuildContext) -> Scoring:
    """Return what all score steps share that are reported, and choose nothing."""
    return _scoring(
        build, evaluation_parts(build.blueprint.evaluation, build.folder)[0]
    )


def _scoring(build: BuildContext, text: str) -> Scoring:
    return Scoring(
        bench=build.bench,
        runtime=build.runtime,
        plan=build.blueprint.evaluation,
        text_digest=build.blobs.put_bytes(text.encode()),
    )


def _score_row(
    scoring: Scoring,
    name: str,
    future: Future[Artefact],
    reference: Future[Digest],
) -> tuple[Digest, Digest]:
    """Return a row's artefact and its scores."""
    artefact = future.result()
    digest, token_map = artefact.digest, artefact.making.token_map
    scores = score_candidate(
        scoring, name, digest, reference.result(), token_map=token_map
    )
    return digest, scores


def _score_reference(
    scoring: Scoring, model: Digest, reference: Future[Digest]
) -> tuple[Digest, Digest]:
    return model, score_candidate(scoring, "reference", model, reference.result())
