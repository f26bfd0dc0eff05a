"""What changed between two candidates, or two builds: per figure and per tensor.

Pure but for reading the headers of artefacts.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from slmops.domain.errors import InvalidInputError, NotFoundError
from slmops.domain.ids import Digest
from slmops.registry.blobs import BlobStore
from slmops.wire.codec import document_digest, to_plain
from slmops.workshop.blueprint_diff import changed_keys
from slmops.workshop.build_result import BuildResult, Candidate
from slmops.workshop.evidence.figure_changes import FigureChange, compare_figures
from slmops.workshop.evidence.graph import rows
from slmops.workshop.evidence.tensor_changes import TensorComparison, compare_tensors


@dataclass(frozen=True, kw_only=True, slots=True)
class CandidateComparison:
    """Two candidates, of one build or of two."""

    before: str
    """``<build>:<label>`` of the first."""
    after: str
    """The same of the second."""
    figures: tuple[FigureChange, ...]
    """In the order of a card."""
    tensors: TensorComparison | None
    """None when an artefact is no longer in the workspace."""
    remarks: tuple[str, ...]
    """What the comparison does not show, and marks of the two."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SelectionChange:
    """What one class of devices got from each build."""

    device_class: str
    """Name of the class."""
    before: str | None
    """Label chosen by the first; None when it has no such class."""
    after: str | None
    """Label chosen by the second."""
    reason: str
    """Why the second chose it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildComparison:
    """Two builds."""

    before: Digest
    """The first build."""
    after: Digest
    """The second."""
    blueprint: Mapping[str, tuple[object, object]]
    """Path of a key that differs → its values."""
    selection: tuple[SelectionChange, ...]
    """All classes of either."""
    only_before: tuple[str, ...]
    """Labels of candidates that only the first has."""
    only_after: tuple[str, ...]
    """Labels of candidates that only the second has."""
    common: tuple[CandidateComparison, ...]
    """Candidates of equal label, the reference first."""
    shared_steps: int
    """Steps that both used: computed once."""
    new_steps: int
    """Steps that only the second used."""


def find_candidate(build: BuildResult, label: str) -> Candidate:
    """Return a build's candidate by label, digest or its beginning; controls included.

    Raises:
        NotFoundError: there is none; names those there are.
        InvalidInputError: several fit.
    """
    found = [
        c
        for c in rows(build)
        if c.card.label == label
        or (len(label) >= 8 and c.digest.removeprefix("sha256:").startswith(label))  # noqa: PLR2004 - as digests are abbreviated
    ]
    if not found:
        known = ", ".join(c.card.label for c in rows(build))
        raise NotFoundError(f"candidate {label[:80]!r} is not in the build: {known}")
    if len({c.digest for c in found}) > 1:
        raise InvalidInputError(f"candidate {label[:80]!r} fits {len(found)}")
    return found[0]


def compare_candidates(
    before: tuple[BuildResult, Candidate],
    after: tuple[BuildResult, Candidate],
    blobs: BlobStore,
) -> CandidateComparison:
    """Compare two candidates, each with the build that measured it."""
    (first, one), (second, two) = before, after
    return CandidateComparison(
        before=_name(first, one),
        after=_name(second, two),
        figures=compare_figures((first, one.card), (second, two.card)),
        tensors=compare_tensors(one.digest, two.digest, blobs),
        remarks=_remarks(before, after),
    )


def compare_builds(
    before: BuildResult, after: BuildResult, blobs: BlobStore
) -> BuildComparison:
    """Compare two builds: wishes, choices, candidates and steps."""
    one = {c.card.label: c for c in rows(before)}
    two = {c.card.label: c for c in rows(after)}
    steps = [{r.step.digest for r in build.provenance} for build in (before, after)]
    return BuildComparison(
        before=document_digest(before),
        after=document_digest(after),
        blueprint=changed_keys(to_plain(before.blueprint), to_plain(after.blueprint)),
        selection=_selection(before, after),
        only_before=tuple(label for label in one if label not in two),
        only_after=tuple(label for label in two if label not in one),
        common=tuple(
            compare_candidates((before, one[label]), (after, two[label]), blobs)
            for label in one
            if label in two
        ),
        shared_steps=len(steps[0] & steps[1]),
        new_steps=len(steps[1] - steps[0]),
    )


def _remarks(
    before: tuple[BuildResult, Candidate], after: tuple[BuildResult, Candidate]
) -> tuple[str, ...]:
    lines = [
        f"{_name(build, candidate)} is {candidate.flattery}"
        for build, candidate in (before, after)
        if candidate.on_reference_grid
    ]
    if after[0] != before[0]:
        lines.append(
            "speeds of two builds were not interleaved: what else the machine did then"
            " may differ"
        )
    if before[1].card.speed and after[1].card.speed:
        lines.append(
            "bounds of times are the range of few runs: no confidence is claimed"
        )
    lines.append(
        "bounds of two candidates on the same text are not independent: overlapping"
        " bounds show nothing, separate ones are a strict sign of a difference"
    )
    return tuple(lines)


def _name(build: BuildResult, candidate: Candidate) -> str:
    return f"{document_digest(build)[7:19]}:{candidate.card.label}"


def _selection(before: BuildResult, after: BuildResult) -> tuple[SelectionChange, ...]:
    one = {s.device_class: s for s in before.selection}
    two = {s.device_class: s for s in after.selection}
    return tuple(
        SelectionChange(
            device_class=name,
            before=_label(before, one[name].digest) if name in one else None,
            after=_label(after, two[name].digest) if name in two else None,
            reason=two[name].reason if name in two else "",
        )
        for name in dict.fromkeys([*one, *two])
    )


def _label(build: BuildResult, digest: Digest) -> str:
    return next(c.card.label for c in rows(build) if c.digest == digest)
