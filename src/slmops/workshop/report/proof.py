"""The page's section on where everything came from: inputs, steps, seconds, files."""

from collections import Counter
from collections.abc import Mapping
from html import escape

from slmops.domain.ids import digest_hex
from slmops.wire.codec import document_digest
from slmops.workshop.build_result import BuildResult
from slmops.workshop.evidence.graph import materials, source_uri, tools
from slmops.workshop.report.markup import headings, join, number_cell, table, text_cell
from slmops.workshop.steps import StepRecord

_SHORT = 12


def proof_section(result: BuildResult, files: Mapping[str, str]) -> str:
    """Return the section.

    Args:
        result: of the build.
        files: name for people → path relative to the page, of files beside it.
    """
    linked = ", ".join(
        f'<a href="{escape(path)}">{escape(name)}</a>' for name, path in files.items()
    )
    beside = f"<p>Beside this page: {linked}.</p>" if files else ""
    return (
        f"{beside}{_inputs(result)}"
        f"<details><summary>{len(result.provenance)} steps, {_total(result)}</summary>"
        f"{_steps(result)}</details>"
    )


def _inputs(result: BuildResult) -> str:
    model = result.model
    rows = [
        (
            "model, as imported from",
            source_uri(model) or model.source,
            model.source_digest,
        ),
        ("16-bit reference", model.name, model.id),
        *(
            ("read by the steps", ", ".join(one.roles), one.digest)
            for one in materials(result)
        ),
        ("this build", result.blueprint.name, document_digest(result)),
    ]
    shown = (
        f"<tr>{text_cell(what)}{text_cell(name)}<td><code>{escape(digest)}</code></td></tr>"
        for what, name, digest in rows
    )
    used = ", ".join(f"{tool.name} {tool.version}" for tool in tools(result.provenance))
    packages = (
        f'<p class="soft">Packages that computed: {escape(used)}.</p>' if used else ""
    )
    return f"{table(headings(('input', 'name', 'digest')), shown)}{packages}"


def _total(result: BuildResult) -> str:
    """Say how long the kinds of steps took, the longest first."""
    seconds: Counter[str] = Counter()
    for record in result.provenance:
        seconds[record.step.kind] += record.seconds  # type: ignore[assignment]
    parts = ", ".join(f"{kind} {total:.1f} s" for kind, total in seconds.most_common())
    return escape(f"computed in {sum(seconds.values()):.1f} s: {parts}")


def _steps(result: BuildResult) -> str:
    head = headings(("step", "parameters", "reads", "makes", "s"), numbers=(4,))
    return table(head, map(_step, result.provenance))


def _step(record: StepRecord) -> str:
    step = record.step
    parameters = ", ".join(f"{k} {v}" for k, v in sorted(step.parameters.items()))
    return (
        f"<tr>{text_cell(step.kind, small=digest_hex(step.digest)[:_SHORT])}"
        f'<td class="types"><small>{escape(parameters)}</small></td>'
        f"{_blobs(step.inputs)}{_blobs(record.outputs)}"
        f"{number_cell(f'{record.seconds:.1f}')}</tr>"
    )


def _blobs(blobs: Mapping[str, str]) -> str:
    shown = join(
        f"<div>{escape(role)} <code>{escape(digest.removeprefix('sha256:')[:_SHORT])}</code></div>"
        for role, digest in sorted(blobs.items())
    )
    return f"<td><small>{shown}</small></td>"
