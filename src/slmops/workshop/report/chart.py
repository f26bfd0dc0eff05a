"""The Pareto plot of a build: divergence against bytes, and against decode speed.

Rendered by Vega-Lite inside `vl_convert`: no network, no browser. Colours are Okabe and
Ito's, which people with any colour vision tell apart; shapes say the same again.
"""

import json
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import altair as alt
import vl_convert

from slmops.domain.device import DeviceClass
from slmops.domain.errors import UnavailableError
from slmops.workshop.build_result import BuildResult, Candidate
from slmops.workshop.feasibility import SelectionRules
from slmops.workshop.select import pareto_front

CHOSEN, OTHER, CONTROL, FLATTERED = "chosen", "not chosen", "8-bit control", "flattered"
_ROLES = (CHOSEN, OTHER, CONTROL, FLATTERED)
_COLOURS = ("#0072B2", "#8C8C8C", "#D55E00", "#CC79A7")
_SHAPES = ("circle", "circle", "diamond", "cross")
_FLOOR_COLOUR = "#009E73"
_WIDTH, _HEIGHT = 400, 330
_ROOM_LEFT, _ROOM_RIGHT = 0.08, 0.12
_MB = 1_000_000
_KLD_TITLE = "KL divergence from the reference, nats (log; bars: 95 %)"
_LEAST_KLD = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class ChartFiles:
    """One chart in three forms."""

    spec: dict[str, Any]
    """Vega-Lite, data included, to draw inside a page."""
    svg: str
    """Vector image that stands alone: with a title, on white."""
    png: bytes
    """The same as a bitmap, twice the size."""


def draw_chart(result: BuildResult) -> ChartFiles:
    """Draw a build's Pareto plot.

    Raises:
        UnavailableError: the renderer failed.
    """
    spec = pareto_spec(result)
    version = supported_version()
    alone = {**spec, "title": _title(result), "background": "white"}
    try:
        svg = vl_convert.vegalite_to_svg(alone, vl_version=version)
        png = vl_convert.vegalite_to_png(alone, vl_version=version, scale=2)
    except ValueError as error:
        raise UnavailableError(f"the chart could not be drawn: {error}") from None
    return ChartFiles(spec=spec, svg=svg, png=png)


def chart_script(spec: dict[str, Any], element: str) -> str:
    """Return JavaScript that draws `spec` into `element`, libraries included."""
    return f"{_libraries()}{more_charts(spec, element)}"


def more_charts(spec: dict[str, Any], element: str) -> str:
    """Return JavaScript that draws a further chart; the libraries are there already."""
    drawing = json.dumps(spec, sort_keys=True).replace("</", "<\\/")
    options = "{actions: false, renderer: 'svg'}"
    return f"\nvegaEmbed({element!r}, {drawing}, {options});"


@cache
def _libraries() -> str:
    """Return Vega's libraries as one script; bundling them takes a second."""
    script: str = vl_convert.javascript_bundle(
        "window.vegaEmbed = vegaEmbed;", vl_version=supported_version()
    )
    return script.replace("</script", "<\\/script")


def pareto_spec(result: BuildResult) -> dict[str, Any]:
    """Return the Vega-Lite specification, with the figures in it."""
    rows = [_row(result, candidate) for candidate in result.candidates]
    sizes = [row["mb"] for row in rows]
    speeds = [row["decode"] for row in rows if row["decode"] is not None]
    left = _panel(rows, result, ("mb", None, None), "size, MB", _domain(sizes))
    panels = [left]
    if speeds:
        ends = [row[key] for row in rows for key in ("decode_low", "decode_high")]
        panels.append(
            _panel(
                rows,
                result,
                ("decode", "decode_low", "decode_high"),
                _decode_title(result),
                _domain([end for end in ends if end is not None]),
            )
        )
    chart = (
        alt.hconcat(*panels, spacing=28)
        .properties(background="transparent")
        # First: `configure` replaces whatever was configured before it.
        .configure(font="system-ui, 'DejaVu Sans', sans-serif")
        .configure_view(stroke=None)
        .configure_axis(
            labelFontSize=12,
            titleFontSize=12,
            titleFontWeight="normal",
            gridOpacity=0.5,
        )
        .configure_legend(
            orient="bottom", title=None, labelFontSize=12, symbolSize=110, offset=8
        )
    )
    spec: dict[str, Any] = chart.to_dict()
    return spec


def _title(result: BuildResult) -> dict[str, Any]:
    return {
        "text": f"{result.blueprint.name}: variants of {result.model.name}",
        "subtitle": "KL divergence over the reference's 256 likeliest tokens and the rest:"
        " a lower bound",
        "anchor": "start",
        "fontSize": 15,
        "subtitleFontSize": 12,
        "subtitleColor": "#5b636d",
        "offset": 14,
    }


def _panel(
    rows: list[dict[str, Any]],
    result: BuildResult,
    columns: tuple[str, str | None, str | None],
    title: str,
    domain: list[float],
) -> alt.LayerChart:
    column, low, high = columns
    base = alt.Chart(alt.Data(values=rows))
    x = alt.X(f"{column}:Q", title=title, scale=alt.Scale(domain=domain, nice=False))
    y = alt.Y(
        "kld:Q",
        title=_KLD_TITLE,
        scale=alt.Scale(type="log", nice=False, padding=18),
    )
    roles = [role for role in _ROLES if any(row["role"] == role for row in rows)]
    at = [_ROLES.index(role) for role in roles]
    colour = alt.Color(
        "role:N", scale=alt.Scale(domain=roles, range=[_COLOURS[i] for i in at])
    )
    shape = alt.Shape(
        "role:N", scale=alt.Scale(domain=roles, range=[_SHAPES[i] for i in at])
    )
    bars = base.mark_rule(strokeWidth=1.6).encode(
        x=x, y=alt.Y("kld_low:Q", title=_KLD_TITLE), y2="kld_high:Q", color=colour
    )
    # Large files are good ones: at the right of the size panel the name is in no one's way.
    layers = [_floor_line(result, named=column == "mb"), bars]
    if low and high:
        layers.append(
            base.mark_rule(strokeWidth=1.6).encode(
                x=alt.X(f"{low}:Q", title=title), x2=f"{high}:Q", y=y, color=colour
            )
        )
    if column == "mb":
        layers.append(_front_line(rows, x, y))
    points = base.mark_point(filled=True, size=110, opacity=1).encode(
        x=x, y=y, color=colour, shape=shape, tooltip=_tooltip()
    )
    names = base.mark_text(align="left", dx=9, dy=-8, fontSize=12).encode(
        x=x, y=y, text="name:N"
    )
    layers += [points, names]
    return alt.layer(*layers).properties(width=_WIDTH, height=_HEIGHT)


def _front_line(rows: list[dict[str, Any]], x: alt.X, y: alt.Y) -> alt.Chart:
    front = [row for row in rows if row["pareto"]]
    return (
        alt.Chart(alt.Data(values=front))
        .mark_line(strokeDash=[3, 3], strokeWidth=1.2, color="#8C8C8C")
        .encode(x=x, y=y, order=alt.Order("mb:Q"))
    )


def _floor_line(result: BuildResult, *, named: bool) -> alt.LayerChart:
    limit = selection_rules(result).max_kld
    shown = max(c.card.fidelity.mean_kld.high for c in result.candidates) * 3
    rows = [{"kld": limit, "name": "quality floor"}] if limit <= shown else []
    base = alt.Chart(alt.Data(values=rows)).encode(y=alt.Y("kld:Q", title=_KLD_TITLE))
    rule = base.mark_rule(strokeDash=[6, 4], strokeWidth=1.4, color=_FLOOR_COLOUR)
    name = base.mark_text(align="right", dy=-7, fontSize=11).encode(
        x=alt.value(_WIDTH - 2), text="name:N"
    )
    line: alt.LayerChart = alt.layer(rule, name) if named else alt.layer(rule)
    return line


def selection_rules(result: BuildResult) -> SelectionRules:
    """Return the rules a build selected by."""
    return SelectionRules(
        floor=result.blueprint.quality,
        control_kld=result.control.card.fidelity.mean_kld.value,
        below_floor=result.below_floor,
    )


def reported_rules(result: BuildResult) -> SelectionRules:
    """Return the rules that a build held its choices to, on text not chosen by."""
    control = result.control.reported.fidelity.mean_kld.value
    return replace(selection_rules(result), control_kld=control)


def _row(result: BuildResult, candidate: Candidate) -> dict[str, Any]:
    kld = candidate.card.fidelity.mean_kld
    first = result.blueprint.classes[0]
    speed = candidate.card.speed_for(first)
    decode = speed.decode_tokens_per_s if speed else None
    classes = [s.device_class for s in result.selection if s.digest == candidate.digest]
    fair = [c for c in result.candidates if not c.on_reference_grid]
    front = pareto_front(fair, _without_speed(first))
    return {
        "name": candidate.card.label,
        "role": _role(result, candidate),
        "mb": round(candidate.card.bytes / _MB, 2),
        "kld": max(kld.value, _LEAST_KLD),
        "kld_low": max(kld.low, _LEAST_KLD),
        "kld_high": max(kld.high, _LEAST_KLD),
        "top1": round(candidate.card.fidelity.same_top1.value, 4),
        "decode": round(decode.value, 2) if decode else None,
        "decode_low": round(decode.low, 2) if decode else None,
        "decode_high": round(decode.high, 2) if decode else None,
        "classes": ", ".join(classes) or "none",
        "pareto": any(c.digest == candidate.digest for c in front),
    }


def _without_speed(device_class: DeviceClass) -> DeviceClass:
    """Return a class nobody was measured for: its front is over bytes and divergence."""
    from dataclasses import replace

    return replace(device_class, context_tokens=1 << 30)


def _role(result: BuildResult, candidate: Candidate) -> str:
    if any(s.digest == candidate.digest for s in result.selection):
        return CHOSEN
    if candidate.on_reference_grid:
        return FLATTERED
    return CONTROL if candidate.digest == result.control.digest else OTHER


def _decode_title(result: BuildResult) -> str:
    first = result.blueprint.classes[0]
    threads = "1 thread" if first.threads == 1 else f"{first.threads} threads"
    speed = result.control.card.speed_for(first)
    timed = speed.timed_context_tokens if speed else None
    context = timed or first.context_tokens
    return f"decode, tokens/s ({threads}, context {context}; bars: range of all runs)"


def _domain(values: list[float]) -> list[float]:
    low, high = min(values), max(values)
    span = (high - low) or max(high, 1.0)
    return [low - _ROOM_LEFT * span, high + _ROOM_RIGHT * span]


def _tooltip() -> list[alt.Tooltip]:
    return [
        alt.Tooltip("name:N", title="type"),
        alt.Tooltip("mb:Q", title="MB"),
        alt.Tooltip("kld:Q", title="KL divergence", format=".4f"),
        alt.Tooltip("kld_low:Q", title="95 % low", format=".4f"),
        alt.Tooltip("kld_high:Q", title="95 % high", format=".4f"),
        alt.Tooltip("top1:Q", title="same top-1", format=".3f"),
        alt.Tooltip("decode:Q", title="tokens/s", format=".1f"),
        alt.Tooltip("classes:N", title="chosen for"),
    ]


def supported_version() -> str:
    """Return the renderer's Vega-Lite version that is nearest to Altair's."""
    wanted = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    known: list[str] = vl_convert.get_vegalite_versions()
    return wanted if wanted in known else known[-1]
