"""`slmops build show` and `slmops build compare`: what was measured, and what changed."""

from collections import Counter
from typing import TYPE_CHECKING

import click

from slmops.cli import render
from slmops.cli.build_settings import render_settings
from slmops.registry.workspace import Workspace

if TYPE_CHECKING:
    from slmops.domain.estimate import Estimate
    from slmops.workshop.build_result import BuildResult, Candidate
    from slmops.workshop.evidence.compare import BuildComparison, CandidateComparison
    from slmops.workshop.evidence.figure_changes import FigureChange
    from slmops.workshop.evidence.tensor_changes import TensorComparison

_LATEST = "latest"


@click.command()
@click.argument("build_id", metavar="[BUILD[:CANDIDATE]]", default=_LATEST)
@render.as_json
@click.pass_obj
def show(workspace: Workspace, build_id: str, as_json: bool) -> None:
    """Show every figure of BUILD with its bounds, every step and its time.

    BUILD is a digest or the beginning of one; without it, the latest. With a candidate
    (`latest:Q4_K_M`), that one alone.

    Example: slmops build show latest:Q4_K_M
    """
    from slmops.wire.codec import document_digest
    from slmops.workshop.evidence.compare import find_candidate
    from slmops.workshop.evidence.figures import card_figures
    from slmops.workshop.evidence.graph import rows

    build, label = _load(workspace, build_id)
    chosen = (find_candidate(build, label),) if label else rows(build)
    if as_json:
        found = [
            {
                "label": c.card.label,
                "digest": c.digest,
                "structure": c.card.structure,
                "marks": _marks(build, c),
                "tensor_types": c.card.tensor_types,
                "figures": card_figures(c.card),
            }
            for c in chosen
        ]
        render.json_document(
            {
                "build": document_digest(build),
                "machine": build.machine,
                "candidates": found,
                "selection": build.selection,
                "setting_results": build.setting_results,
                "steps": build.provenance,
                "seconds_by_kind": _seconds(build),
            }
        )
        return
    render.text(f"build {document_digest(build)} of {build.blueprint.name}")
    render.text(f"model {build.model.name}, on {build.machine}")
    for candidate in chosen:
        render.text()
        _candidate(build, candidate)
    render.text()
    _selection(build)
    _steps(build)


@click.command()
@click.argument("a")
@click.argument("b")
@render.as_json
@click.pass_obj
def compare(workspace: Workspace, a: str, b: str, as_json: bool) -> None:
    """Compare builds A and B, or two candidates: per figure and per tensor.

    Each is a build (`latest`, the beginning of a digest) or a candidate of one
    (`latest:Q4_K_M`). A difference counts only when bounds do not overlap; figures that
    were measured on other texts, machines or examples are not subtracted.

    Example: slmops build compare latest:Q4_K_M latest:Q3_K_M
    """
    from slmops.registry.blobs import BlobStore
    from slmops.workshop.evidence.compare import (
        compare_builds,
        compare_candidates,
        find_candidate,
    )

    (first, one), (second, two) = _load(workspace, a), _load(workspace, b)
    if (one is None) != (two is None):
        raise click.UsageError(
            "compare two builds or two candidates, e.g. latest:Q8_0 latest:Q4_0"
        )
    blobs = BlobStore(workspace.blobs)
    if one is None or two is None:
        builds = compare_builds(first, second, blobs)
        if as_json:
            render.json_document(builds)
        else:
            _render_builds(builds)
        return
    found = compare_candidates(
        (first, find_candidate(first, one)),
        (second, find_candidate(second, two)),
        blobs,
    )
    if as_json:
        render.json_document(found)
    else:
        _render_comparison(found)


def _load(workspace: Workspace, text: str) -> "tuple[BuildResult, str | None]":
    """Return the build that `BUILD[:CANDIDATE]` names, and the candidate's label."""
    from slmops.workshop.builds import load_build

    prefix = "sha256:" if text.startswith("sha256:") else ""
    build_id, _, label = text.removeprefix("sha256:").partition(":")
    return load_build(workspace, prefix + (build_id or _LATEST)), label or None


def _candidate(build: "BuildResult", candidate: "Candidate") -> None:
    from slmops.workshop.evidence.figures import Bounds, card_figures, structure_of

    card = candidate.card
    parts = [card.label, structure_of(card), *_marks(build, candidate)]
    render.table(
        ("figure", "at", "value", "low", "high", "bounds", "nature"),
        [
            (
                figure.name,
                figure.of or None,
                _number(figure.estimate.value),
                *(
                    (None, None)
                    if figure.bounds is Bounds.NONE
                    else (_number(figure.estimate.low), _number(figure.estimate.high))
                ),
                None if figure.bounds is Bounds.NONE else figure.bounds,
                figure.nature,
            )
            for figure in card_figures(card)
        ],
        title=" · ".join(part for part in parts if part),
    )
    types = ", ".join(f"{kind} × {n}" for kind, n in sorted(card.tensor_types.items()))
    render.text(f"stored as {types}; {candidate.digest}")


def _marks(build: "BuildResult", candidate: "Candidate") -> list[str]:
    marks = []
    if candidate.digest == build.reference.digest:
        marks.append("control: reference against itself")
    if candidate.digest == build.control.digest:
        marks.append("control: 8-bit")
    if candidate.on_reference_grid:
        marks.append(candidate.flattery)
    names = [s.device_class for s in build.selection if s.digest == candidate.digest]
    return [*marks, *(f"chosen for {name}" for name in names)]


def _selection(build: "BuildResult") -> None:
    rejected = [
        (s.device_class, r.quantization, r.reason)
        for s in build.selection
        for r in s.rejected
    ]
    chosen = [(s.device_class, s.quantization, s.reason) for s in build.selection]
    render.table(("class", "chosen", "why"), chosen)
    if rejected:
        render.text()
        render.table(("class", "rejected", "why"), rejected)
    render_settings(build)
    render.text()


def _steps(build: "BuildResult") -> None:
    render.table(
        ("step", "what", "seconds", "key"),
        [
            (
                record.step.kind,
                ", ".join(
                    f"{k} {v}" for k, v in sorted(record.step.parameters.items())
                )[:80],
                record.seconds,
                record.step.digest[7:19],
            )
            for record in build.provenance
        ],
    )
    total = _seconds(build)
    shown = ", ".join(f"{kind} {seconds:.1f} s" for kind, seconds in total.items())
    render.note(f"{len(build.provenance)} steps when computed: {shown}")


def _seconds(build: "BuildResult") -> dict[str, float]:
    """Return seconds per kind of step, the longest first."""
    total: Counter[str] = Counter()
    for record in build.provenance:
        total[record.step.kind] += record.seconds  # type: ignore[assignment]
    return {kind: round(seconds, 3) for kind, seconds in total.most_common()}


def _render_builds(found: "BuildComparison") -> None:
    render.text(f"A {found.before}")
    render.text(f"B {found.after}")
    render.text(f"steps: {found.shared_steps} shared, {found.new_steps} only in B")
    if found.blueprint:
        render.table(
            ("blueprint key", "A", "B"),
            [(key, str(one), str(two)) for key, (one, two) in found.blueprint.items()],
        )
    render.table(
        ("class", "A chose", "B chose", "why B did"),
        [(s.device_class, s.before, s.after, s.reason) for s in found.selection],
    )
    for side, labels in (("A", found.only_before), ("B", found.only_after)):
        if labels:
            render.text(f"only in {side}: {', '.join(labels)}")
    for common in found.common:
        render.text()
        _render_comparison(common)


def _render_comparison(found: "CandidateComparison") -> None:
    changed = [figure for figure in found.figures if figure.verdict != "equal"]
    render.table(
        ("figure", "at", "A", "B", "B - A", "verdict"),
        [_figure(figure) for figure in changed],
        title=f"A {found.before} → B {found.after}",
    )
    equal = len(found.figures) - len(changed)
    if equal:
        render.text(f"{equal} figures are equal")
    if found.tensors is None:
        render.note("tensors: an artefact is not in this workspace, or no GGUF")
    else:
        _tensors(found.tensors)
    for line in found.remarks:
        render.note(line)


def _figure(change: "FigureChange") -> tuple[object, ...]:
    verdict = f"{change.verdict}: {change.reason}" if change.reason else change.verdict
    return (
        f"{change.name}{' (modelled)' if change.nature == 'modelled' else ''}",
        change.of or None,
        _estimate(change.before),
        _estimate(change.after),
        None if change.difference is None else _number(change.difference, sign="+"),
        verdict,
    )


def _tensors(found: "TensorComparison") -> None:
    if not found.changed:
        render.text(f"tensors: all {found.unchanged} of equal type and shape")
        return
    render.table(
        ("tensor", "A", "B", "bytes A", "bytes B", "B - A"),
        [
            (
                t.name,
                t.before,
                t.after,
                t.before_bytes,
                t.after_bytes,
                t.after_bytes - t.before_bytes,
            )
            for t in found.changed
        ],
    )
    moves = ", ".join(f"{move} × {n}" for move, n in found.moves.items())
    render.text(f"tensors: {moves}; {found.unchanged} unchanged")


def _estimate(estimate: "Estimate | None") -> str | None:
    if estimate is None:
        return None
    value = _number(estimate.value)
    if estimate.low == estimate.high:
        return value
    return f"{value} ({_number(estimate.low)} to {_number(estimate.high)})"


def _number(value: float, *, sign: str = "") -> str:
    """Write a figure with four digits that count; whole numbers whole.

    >>> _number(144800000.0), _number(0.00361), _number(-2.0, sign="+")
    ('144800000', '0.00361', '-2')
    """
    return f"{value:{sign}.0f}" if float(value).is_integer() else f"{value:{sign}.4g}"
