"""The build's page: one HTML file that needs no network, in light and dark.

Every text is escaped: names and templates come from models of unknown origin.
"""

import importlib.resources
from collections.abc import Iterable
from html import escape
from pathlib import Path

from slmops.domain.release import Estimate, Speed
from slmops.registry.blobs import write_atomically
from slmops.wire.codec import document_digest, encode_json_pretty
from slmops.workshop.build_result import BuildResult, Candidate, ClassSelection
from slmops.workshop.feasibility import tail_name
from slmops.workshop.report.chart import (
    ChartFiles,
    chart_script,
    draw_chart,
    selection_rules,
)

PAGE = "build.html"
_MB = 1_000_000


def write_report(result: BuildResult, folder: Path) -> dict[str, Path]:
    """Write ``build.html``, ``pareto.png``, ``pareto.svg`` and ``build.json``.

    Returns:
        What → path of the file.
    """
    chart = draw_chart(result)
    contents = {
        "page": (PAGE, build_page(result, chart).encode()),
        "png": ("pareto.png", chart.png),
        "svg": ("pareto.svg", chart.svg.encode()),
        "json": ("build.json", encode_json_pretty(result).encode() + b"\n"),
    }
    for name, content in contents.values():
        write_atomically(folder / name, content)
    return {what: folder / name for what, (name, _) in contents.items()}


def build_page(result: BuildResult, chart: ChartFiles) -> str:
    """Return the page."""
    style = (
        importlib.resources.files("slmops.workshop.report") / "page.css"
    ).read_text()
    name = escape(result.blueprint.name)
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
<div class="choices">{_join(_choice(result, s) for s in result.selection)}</div>
<h2>Fidelity against size and speed</h2>
<figure>
<div class="scroll"><div id="chart" role="img" aria-label="Pareto plot; the table below has its figures">{chart.svg}</div></div>
<figcaption>{_caption(result)}</figcaption>
</figure>
<h2>All candidates</h2>
{_fidelity_table(result)}
<h2>Speed</h2>
{_speed_table(result)}
<h2>Memory</h2>
{_memory_table(result)}
<h2>Why the others lost</h2>
{_join(_rejections(s) for s in result.selection)}
<h2>How it was measured</h2>
{_method(result)}
</main>
<script>{chart_script(chart.spec, "#chart")}</script>
</body>
</html>
"""


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
    flattered = [c.quantization for c in result.candidates if c.on_reference_grid]
    named = (
        f"Flattered here: {escape(', '.join(flattered))}; marked below. For those, divergence is"
        " from what was imported, not from the model before its first quantization."
        if flattered
        else "None of the candidates here is of that type."
    )
    return (
        f"The reference was made from a {source} file and lies on its grid: fidelity of"
        f" variants of that type looks better than it is. {named}"
    )


def _choice(result: BuildResult, selection: ClassSelection) -> str:
    candidate = result.candidate(selection.quantization)
    runner_up = selection.runner_up or "none: nothing else fits"
    violations = _join(
        f'<p class="violation">{escape(text)}</p>' for text in selection.violations
    )
    return (
        f'<section class="choice"><h3>{escape(selection.device_class)}</h3>'
        f'<div class="type">{escape(selection.quantization)}</div>'
        f"<p>{candidate.card.bytes / _MB:.1f} MB · {escape(selection.reason)}.</p>"
        f'{violations}<p class="soft">Runner-up: {escape(runner_up)}</p></section>'
    )


def _caption(result: BuildResult) -> str:
    limit = selection_rules(result).max_kld
    return (
        "Lower is closer to the 16-bit reference; every divergence is a lower bound."
        " Vertical bars are 95 % bootstrap bounds,"
        " horizontal bars the range of all timed runs. The dotted line joins what no other"
        f" candidate beats in bytes and divergence; the green line is the quality floor"
        f" ({limit:.3f} nats, {result.blueprint.quality.max_kld_times_8bit:g} times 8-bit)."
    )


def _fidelity_table(result: BuildResult) -> str:
    head = (
        '<tr><th>type</th><th class="n">MB</th><th class="n">bits/weight</th>'
        '<th class="n">mean KLD</th><th class="n">p99 KLD</th>'
        '<th class="n">same top\u20111</th><th class="n">perplexity</th>'
        "<th>stored as</th></tr>"
    )
    rows = [_fidelity_row(result, result.reference)]
    rows += [_fidelity_row(result, candidate) for candidate in result.candidates]
    return (
        f"{_table(head, rows)}"
        '<p class="soft">KLD: KL divergence from the reference in nats, over its 256'
        " likeliest tokens and one bucket for all others. That is a <em>lower bound</em> of"
        " the divergence over the whole vocabulary. Small print: 95 % bounds.</p>"
    )


def _fidelity_row(result: BuildResult, candidate: Candidate) -> str:
    card, fidelity = candidate.card, candidate.card.fidelity
    classes = []
    if any(s.digest == candidate.digest for s in result.selection):
        classes.append("chosen")
    tags = []
    if candidate.digest == result.reference.digest:
        classes.append("control")
        tags.append("control: reference against itself")
    if candidate.digest == result.control.digest:
        classes.append("control")
        tags.append("control: 8-bit")
    if candidate.on_reference_grid:
        tags.append(f"flattered: {card.reference_grid} grid")
    shown = _join(f'<span class="tag">{escape(tag)}</span>' for tag in tags)
    types = ", ".join(f"{kind} × {n}" for kind, n in sorted(card.tensor_types.items()))
    return (
        f'<tr class="{" ".join(classes)}"><td>{escape(card.quantization)}{shown}</td>'
        f'<td class="n">{card.bytes / _MB:.1f}</td>'
        f'<td class="n">{card.bits_per_weight:.2f}</td>'
        f"{_cell(fidelity.mean_kld, 4)}{_cell(fidelity.p99_kld, 3)}"
        f"{_cell(fidelity.same_top1, 3)}{_cell(fidelity.perplexity, 2)}"
        f'<td class="types"><small>{escape(types)}</small></td></tr>'
    )


def _speed_table(result: BuildResult) -> str:
    tail = tail_name(result.blueprint.evaluation.speed_runs)
    head = (
        '<tr><th>type</th><th class="n">threads</th>'
        '<th class="n">timed at context</th>'
        '<th class="n">decode tok/s</th><th class="n">prefill tok/s</th>'
        f'<th class="n">first token ms</th><th class="n">{tail}, ms</th>'
        '<th class="n">load ms</th></tr>'
    )
    rows = [
        _speed_row(candidate.quantization, speed)
        for candidate in result.candidates
        for speed in candidate.card.speed
        if speed.timed_context_tokens is None
    ]
    return (
        f"{_table(head, rows)}"
        '<p class="soft">Medians with the range of all runs, at the largest context that a'
        " class with so many threads asks for; shorter ones are not timed again and count"
        " as equally fast. Measured, not modelled;"
        " the 16-bit reference is not timed: no class could be served by it.</p>"
    )


def _speed_row(name: str, speed: Speed) -> str:
    return (
        f'<tr><td>{escape(name)}</td><td class="n">{speed.threads}</td>'
        f'<td class="n">{speed.context_tokens}</td>'
        f"{_cell(speed.decode_tokens_per_s, 1)}{_cell(speed.prefill_tokens_per_s, 0)}"
        f"{_cell(speed.first_token_ms, 0)}"
        f'<td class="n">{speed.first_token_tail_ms:.0f}</td>'
        f'<td class="n">{speed.load_ms:.0f}</td></tr>'
    )


def _memory_table(result: BuildResult) -> str:
    head = (
        '<tr><th>type</th><th class="n">threads</th><th class="n">context</th>'
        '<th class="n">tokens in it</th><th class="n">peak RSS MiB, measured</th>'
        '<th class="n">private MiB</th><th class="n">mapped MiB</th>'
        '<th class="n">peak MiB, extrapolated to all of the context</th></tr>'
    )
    rows = [
        _memory_row(candidate.quantization, speed)
        for candidate in result.candidates
        for speed in candidate.card.speed
    ]
    return (
        f"{_table(head, rows)}"
        '<p class="soft">Of the serving process: each variant\'s own peak with the standard'
        " prompt, and what filling the context to the tokens named adds, measured on one"
        " variant for all. Private: KV cache, scratch, reordered weights; mapped: weights"
        " and code, which several processes share. The last column is modelled: a line"
        " through the measured points, drawn on to the whole context. Budgets are compared"
        " with it, where it is there.</p>"
    )


def _memory_row(name: str, speed: Speed) -> str:
    measured_private = speed.rss_anon_mib - speed.extrapolated_mib
    modelled = f"~{speed.peak_rss_mib:.0f}" if speed.extrapolated_mib else "–"
    return (
        f'<tr><td>{escape(name)}</td><td class="n">{speed.threads}</td>'
        f'<td class="n">{speed.context_tokens}</td>'
        f'<td class="n">{speed.filled_tokens or speed.prompt_tokens}</td>'
        f'<td class="n">{speed.measured_peak_mib:.0f}</td>'
        f'<td class="n">{measured_private:.0f}</td>'
        f'<td class="n">{speed.rss_file_mib:.0f}</td>'
        f'<td class="n modelled">{modelled}</td></tr>'
    )


def _rejections(selection: ClassSelection) -> str:
    rows = _join(
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
        "evaluation text": f"{plan.text}, {fidelity.text_digest}",
        "bounds": "95 %, bootstrap over blocks of neighbouring positions, seeded",
        "divergence over": "the reference's 256 most likely tokens and one bucket for"
        " the rest: a lower bound of the divergence over the whole vocabulary",
        "noise of measuring": f"{fidelity.mean_kld.value:.2g} nats: the reference"
        " against itself, through the same code",
        "speed runs": f"{plan.speed_runs} per candidate and number of threads,"
        " interleaved; prompt caches off",
        "reference": result.model.id,
        "steps": f"{len(result.provenance)}, listed with inputs and tools in build.json",
        "build": document_digest(result),
    }
    items = _join(
        f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>"
        for name, text in entries.items()
    )
    return f"<dl>{items}</dl>"


def _table(head: str, rows: Iterable[str]) -> str:
    return f'<div class="scroll"><table>{head}{_join(rows)}</table></div>'


def _cell(estimate: Estimate, digits: int) -> str:
    value, low, high = (
        _number(number, digits)
        for number in (estimate.value, estimate.low, estimate.high)
    )
    return f'<td class="n">{value}<small>{low} to {high}</small></td>'


def _number(value: float, digits: int) -> str:
    """Write a number with some decimals, or by its power of ten when they would be zero.

    >>> _number(0.0447, 4), _number(1.3e-8, 4), _number(0.0, 4)
    ('0.0447', '1.3e-08', '0.0000')
    """
    if 0 < abs(value) < 0.5 * 10**-digits:
        return f"{value:.1e}"
    return f"{value:.{digits}f}"


def _join(parts: Iterable[str]) -> str:
    return "".join(parts)
