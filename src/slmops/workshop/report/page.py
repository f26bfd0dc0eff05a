"""The build's page: one HTML file that needs no network, in light and dark.

Every text is escaped: names and templates come from models of unknown origin.
"""

import importlib.resources
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from slmops.registry.blobs import write_atomically
from slmops.wire.codec import document_digest, encode_json_pretty
from slmops.workshop.build_result import BuildResult, ClassSelection
from slmops.workshop.evidence.bom import Product, bill_of_materials
from slmops.workshop.evidence.model_card import release_card
from slmops.workshop.evidence.statement import provenance_statement
from slmops.workshop.report.chart import (
    ChartFiles,
    chart_script,
    draw_chart,
    more_charts,
    selection_rules,
)
from slmops.workshop.report.energy import energy_section
from slmops.workshop.report.heat import draw_heat_map
from slmops.workshop.report.markup import join, number
from slmops.workshop.report.proof import proof_section
from slmops.workshop.report.runtime_settings import setting_table
from slmops.workshop.report.tables import (
    class_table,
    fidelity_table,
    memory_table,
    speed_table,
    structure_table,
    task_table,
)

PAGE = "build.html"
_MB = 1_000_000
_HEAT_UNIT = "nats lost per MB saved"

Heat = Mapping[tuple[int, str], float]
"""(Layer, or -1 outside of all; part of the model) → nats lost per MB saved."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Extras:
    """What a page shows beside the build itself."""

    heat: ChartFiles | None = None
    """Sensitivity of the model's parts; None when it was not measured."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Name for people → path relative to the page, of files that lie beside it."""


def write_report(
    result: BuildResult, folder: Path, *, sensitivity: Heat | None = None
) -> dict[str, Path]:
    """Write the page, its chart as PNG and SVG, the build, card, BOM and provenance.

    The provenance statement is not signed here: a release's is.

    Args:
        result: of the build.
        folder: made when missing.
        sensitivity: nats lost per MB saved, by place; None when it was not measured.

    Returns:
        What → path of the file.
    """
    chart = draw_chart(result)
    heat = draw_heat_map(sensitivity, _HEAT_UNIT) if sensitivity else None
    contents = {
        "png": ("pareto.png", chart.png),
        "svg": ("pareto.svg", chart.svg.encode()),
        "json": ("build.json", encode_json_pretty(result).encode() + b"\n"),
        **_evidence(result),
    }
    if heat is not None:
        contents["heat"] = ("sensitivity.svg", heat.svg.encode())
    files = {
        _NAMES[what]: name for what, (name, _) in contents.items() if what in _NAMES
    }
    page = build_page(result, chart, Extras(heat=heat, files=files))
    contents["page"] = (PAGE, page.encode())
    for name, content in contents.values():
        write_atomically(folder / name, content)
    return {what: folder / name for what, (name, _) in contents.items()}


_NAMES = {
    "card": "model card",
    "bom": "bill of materials (CycloneDX)",
    "provenance": "provenance (in-toto, unsigned)",
    "json": "all of it as JSON",
}
"""Files that the page links to, as it calls them."""


def _evidence(result: BuildResult) -> dict[str, tuple[str, bytes]]:
    version = document_digest(result)[7:19]
    product = Product(name=result.blueprint.name, version=version)
    statement = encode_json_pretty(provenance_statement(result)).encode() + b"\n"
    return {
        "card": ("README.md", release_card(result, product).encode()),
        "bom": ("bom.cdx.json", bill_of_materials(result, product)),
        "provenance": ("provenance.intoto.json", statement),
    }


def build_page(
    result: BuildResult, chart: ChartFiles, extras: Extras | None = None
) -> str:
    """Return the page.

    Args:
        result: of the build.
        chart: its Pareto plot.
        extras: heat map, and files to link to.
    """
    extras = extras or Extras()
    style = (
        importlib.resources.files("slmops.workshop.report") / "page.css"
    ).read_text()
    name = escape(result.blueprint.name)
    script = chart_script(chart.spec, "#chart")
    if extras.heat:
        script += more_charts(extras.heat.spec, "#heat")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Build of {name}</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>Build of {name}</h1>
{_lead(result)}
<h2>Chosen variants</h2>
<div class="choices">{join(_choice(result, s) for s in result.selection)}</div>
{class_table(result)}
<h2>Fidelity against size and speed</h2>
<figure>
<div class="scroll"><div id="chart" class="chart" role="img" aria-label="Pareto plot; the table below has its figures">{chart.svg}</div></div>
<figcaption>{_caption(result)}</figcaption>
</figure>
<h2>All candidates</h2>
{fidelity_table(result)}
{task_table(result)}
<h2>Speed</h2>
{speed_table(result)}
<h2>Memory</h2>
{memory_table(result)}
<h2>Energy</h2>
{energy_section(result)}
{_heat(extras.heat)}
{structure_table(result)}
{setting_table(result)}
<h2>Why the others lost</h2>
{join(_rejections(s) for s in result.selection)}
<h2>How it was measured</h2>
{_method(result)}
<h2>Where it comes from</h2>
{proof_section(result, extras.files)}
</main>
<script>{script}</script>
</body>
</html>
"""


def _heat(heat: ChartFiles | None) -> str:
    if heat is None:
        return ""
    return (
        "<h2>Where a byte saved hurts</h2><figure>"
        '<div class="scroll"><div id="heat" class="chart natural" role="img"'
        f' aria-label="Sensitivity by layer and part">{heat.svg}</div></div>'
        "<figcaption>Rise of the mean KL divergence when one tensor alone gets a 4-bit type"
        " in place of an 8-bit one, for each MB that saves. Log scale; dark blue is cheap,"
        " yellow is dear. Measured for one type of each tensor and scaled to the other by"
        " its squared error.</figcaption></figure>"
    )


def _lead(result: BuildResult) -> str:
    model = result.model
    grid = f"<p>{_grid(result)}</p>" if model.source_quantization else ""
    floor = ""
    if result.below_floor:
        floor = (
            '<p class="violation">Built below the quality floor: a release of it must be'
            " forced with a reason.</p>"
        )
    return (
        f'<p class="lead">{escape(model.name)}, {model.parameters / 1e6:.1f} million'
        f" parameters, licence {escape(model.licence or 'unknown')}. Reference: 16 bit,"
        f" {model.bytes / _MB:.1f} MB.</p>{grid}{floor}"
    )


def _grid(result: BuildResult) -> str:
    source = escape(result.model.source_quantization or "")
    flattered = [c.card.label for c in result.candidates if c.on_reference_grid]
    named = (
        f"Flattered here: {escape(', '.join(flattered))}; marked below. For those, divergence is"
        " from what was imported, not from the model before its first quantization."
        if flattered
        else "None of the candidates here has so many of them."
    )
    return (
        f"The reference was made from a quantized file, mainly {source}, and lies on its grid:"
        f" fidelity of variants with that file's types looks better than it is. {named}"
    )


def _choice(result: BuildResult, selection: ClassSelection) -> str:
    card = result.chosen_card(selection.device_class)
    runner_up = selection.runner_up or "none: nothing else fits"
    violations = join(
        f'<p class="violation">{escape(text)}</p>' for text in selection.violations
    )
    return (
        f'<section class="choice"><h3>{escape(selection.device_class)}</h3>'
        f'<div class="type">{escape(card.label)}</div>'
        f"<p>{card.bytes / _MB:.1f} MB · {escape(selection.reason)}.</p>"
        f'{violations}<p class="soft">Runner-up: {escape(runner_up)}</p></section>'
    )


def _caption(result: BuildResult) -> str:
    limit = selection_rules(result).max_kld
    return (
        "Lower is closer to the 16-bit reference; every divergence is a lower bound."
        " Vertical bars are 95 % bootstrap bounds,"
        " horizontal bars the range of all timed runs. The dotted line joins what no other"
        f" candidate beats in bytes and divergence; the green line is the quality floor"
        f" ({number(limit, 3)} nats, {result.blueprint.quality.max_kld_times_8bit:g} times 8-bit)."
    )


def _rejections(selection: ClassSelection) -> str:
    rows = join(
        f"<tr><td>{escape(r.quantization)}</td><td>{escape(r.reason)}</td></tr>"
        for r in selection.rejected
    )
    return (
        f"<details open><summary>{escape(selection.device_class)}: chose"
        f" {escape(selection.quantization)}</summary><table>{rows}</table></details>"
    )


def _method(result: BuildResult) -> str:
    fidelity = result.reference.card.fidelity
    plan = result.blueprint.evaluation
    entries = {
        "machine": result.machine,
        "runtime": result.reference.card.runtime,
        "positions scored": f"{fidelity.tokens}, in windows of {plan.window_tokens}"
        " tokens whose first quarter only gives context",
        "evaluation text": f"{plan.text}; reported on"
        f" {result.reference.reported.fidelity.text_digest}, chosen by"
        f" {fidelity.text_digest}",
        "bounds": "95 %, bootstrap over blocks of neighbouring positions, seeded",
        "divergence over": "the reference's 256 most likely tokens and one bucket for"
        " the rest: a lower bound of the divergence over the whole vocabulary",
        "noise of measuring": f"{fidelity.mean_kld.value:.2g} nats: the reference"
        " against itself, through the same code",
        "speed runs": f"{plan.speed_runs} per candidate and number of threads,"
        " interleaved; prompt caches off",
        "memory": f"{plan.memory_runs} processes per candidate and number of threads;"
        " bounds are for one more",
        "reference": result.model.id,
        "steps": f"{len(result.provenance)}, listed with inputs and tools in build.json",
        "build": document_digest(result),
    }
    items = join(
        f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>"
        for name, text in entries.items()
    )
    return f"<dl>{items}</dl>"
