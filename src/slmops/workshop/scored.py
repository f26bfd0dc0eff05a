"""First stage of a build: every candidate quantized, and scored against the reference.

One thread quantizes, scoring children use all processors, and the reference answers the
golden prompts meanwhile.
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
from slmops.workshop.text_sources import evaluation_text, golden_prompts


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """What the stage found."""

    artefacts: tuple[Artefact, ...]
    """Largest first."""
    fidelity: dict[Digest, Fidelity]
    """Of every artefact, and of the reference against itself."""
    golden: Digest
    """The reference's golden answers."""


def quantize_and_score(build: BuildContext, makings: Sequence[Making]) -> Scored:
    """Run the stage for some candidates; labels differ.

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
        prompts = golden_prompts(build.blueprint.golden, build.folder)
        goldens = Goldens(build=build)
        golden = goldens.record(prompts, build.blueprint.golden.answer_tokens)
        eligible = [m for m in makings if build.is_eligible(m)]
        if len(eligible) == 1:
            # It will be chosen, or the build fails: a processor is free to ask it now.
            only = eligible[0].label
            build.board.expect(1)
            goldens.ask(only, made[only].result().digest, golden)
        scores = dict(row.result() for row in rows)
        artefacts = [future.result() for future in made.values()]
    artefacts.sort(key=lambda artefact: (-artefact.file.bytes, artefact.label))
    return Scored(
        artefacts=tuple(artefacts),
        fidelity={
            digest: estimate_fidelity(scoring, reference.result(), found)
            for digest, found in scores.items()
        },
        golden=golden,
    )


def scoring_of(build: BuildContext) -> Scoring:
    """Return what all score steps of a build share."""
    text = evaluation_text(build.blueprint.evaluation, build.folder)
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
