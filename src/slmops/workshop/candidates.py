"""Candidates and variants: measured figures put together as the documents they become."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from slmops.domain.ids import Digest
from slmops.domain.release import Card, Speed, Variant
from slmops.runtimes.base import load_runtime
from slmops.workshop.artefacts import Artefact
from slmops.workshop.asked import TaskFigures
from slmops.workshop.build_context import BuildContext
from slmops.workshop.build_result import Candidate, ClassSelection
from slmops.workshop.energy import with_modelled_energy
from slmops.workshop.gguf_file import read_header
from slmops.workshop.goldens import Goldens
from slmops.workshop.models import reference_path
from slmops.workshop.scored import Scored
from slmops.workshop.source_grid import GridShare, grid_share

FORMAT = "gguf"


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """Figures by artefact."""

    speeds: Mapping[Digest, tuple[Speed, ...]]
    """One per setting of the classes."""
    tasks: Mapping[Digest, TaskFigures]
    """Of the reference too."""


def reference_row(build: BuildContext, scored: Scored, tasks: TaskFigures) -> Candidate:
    """Return the control row: the reference measured against itself."""
    model = build.model
    header = read_header(reference_path(build.workspace, model))
    types = dict(Counter(tensor.kind for tensor in header.tensors))
    card = Card(
        quantization="BF16" if "BF16" in types else "F16",
        bytes=model.bytes,
        bits_per_weight=8 * model.bytes / model.parameters,
        tensor_types=types,
        parameters=model.parameters,
        reference=model.id,
        reference_grid=model.source_quantization,
        fidelity=scored.fidelity[model.id],
        tasks=tasks.test,
        speed=(),
        runtime=f"{build.runtime} {load_runtime(build.runtime).version()}",
    )
    return Candidate(
        digest=model.id,
        card=card,
        eligible=False,
        on_reference_grid=False,
        search_tasks=tasks.search,
    )


def candidate_rows(
    build: BuildContext,
    reference: Card,
    scored: Scored,
    measured: Measured,
) -> tuple[Candidate, ...]:
    """Return every candidate with its card, largest first.

    Args:
        build: that measured them.
        reference: the reference's card, which says what is common to all.
        scored: artefacts and their fidelity.
        measured: of every artefact.
    """
    return tuple(
        Candidate(
            digest=artefact.digest,
            card=with_modelled_energy(
                replace(
                    reference,
                    quantization=artefact.making.quantization,
                    parameters=artefact.file.parameters,
                    structure=artefact.making.structure,
                    steps=artefact.making.steps,
                    calibration=artefact.making.calibration,
                    rounding=artefact.making.rounding,
                    recovered=artefact.making.recovered,
                    bytes=artefact.file.bytes,
                    bits_per_weight=artefact.file.bits_per_weight,
                    tensor_types=artefact.file.tensor_types,
                    fidelity=scored.fidelity[artefact.digest],
                    speed=measured.speeds[artefact.digest],
                    tasks=measured.tasks[artefact.digest].test,
                ),
                build.blueprint.classes,
            ),
            eligible=build.is_eligible(artefact.making),
            on_reference_grid=share.is_flattered,
            grid_bytes_share=share.bytes,
            grid_error_share=share.error,
            search_tasks=measured.tasks[artefact.digest].search,
        )
        for artefact in scored.artefacts
        for share in (_grid_share(build, artefact),)
    )


def _grid_share(build: BuildContext, artefact: Artefact) -> GridShare:
    model = build.blobs.path(artefact.making.model)
    return grid_share(artefact.file, build.grid.types_of(model))


def chosen_variants(
    build: BuildContext,
    candidates: Sequence[Candidate],
    selection: Sequence[ClassSelection],
    golden: Digest,
    cards: Mapping[Digest, Card],
) -> tuple[Variant, ...]:
    """Ask the golden prompts to what was chosen, and return it ready for a release.

    Args:
        build: that measured them.
        candidates: all of them.
        selection: which of them serve whom.
        golden: the reference's golden answers.
        cards: artefact → reported card of what was chosen, as it is to run.
    """
    chosen = [c for c in candidates if any(s.digest == c.digest for s in selection)]
    build.board.expect(len(chosen))
    goldens = Goldens(build=build)
    with build.pool() as pool:
        asked = [
            pool.submit(
                goldens.ask, c.label, c.digest, golden, cards[c.digest].settings
            )
            for c in chosen
        ]
        logprobs = [future.result() for future in asked]
    return tuple(
        Variant(
            digest=candidate.digest,
            bytes=candidate.card.bytes,
            format=FORMAT,
            runtime=build.runtime,
            classes=tuple(
                s.device_class for s in selection if s.digest == candidate.digest
            ),
            card=cards[candidate.digest],
            golden_logprobs=first,
            settings=cards[candidate.digest].settings,
        )
        for candidate, first in zip(chosen, logprobs, strict=True)
    )
