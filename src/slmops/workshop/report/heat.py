"""Heat map of sensitivity: where in the model a byte saved hurts, layer by part.

Takes a plain mapping, so that whatever measured it may be shown.
"""

from collections.abc import Mapping
from typing import Any

import altair as alt
import vl_convert

from slmops.domain.errors import InvalidInputError, UnavailableError
from slmops.workshop.report.chart import ChartFiles, supported_version

OUTSIDE = -1
"""Layer of tensors that belong to no block: embeddings, output."""
_CELL_WIDTH, _CELL_HEIGHT = 30, 24
_ORDER = (
    *("attn_q", "attn_k", "attn_v", "attn_output"),
    *("ffn_gate", "ffn_up", "ffn_down", "token_embd", "output"),
)
"""Parts as a token meets them; others follow by name."""


def draw_heat_map(values: Mapping[tuple[int, str], float], unit: str) -> ChartFiles:
    """Draw a heat map.

    Args:
        values: (layer, or -1 outside of all; part: ``attn_q``) → value, at least one.
            Values at or below zero are shown as the least positive one.
        unit: of the values: ``nats per MB saved``.

    Raises:
        InvalidInputError: nothing is given.
        UnavailableError: the renderer failed.
    """
    spec = heat_spec(values, unit)
    version = supported_version()
    alone = {**spec, "background": "white"}
    try:
        svg = vl_convert.vegalite_to_svg(alone, vl_version=version)
        png = vl_convert.vegalite_to_png(alone, vl_version=version, scale=2)
    except ValueError as error:
        raise UnavailableError(f"the heat map could not be drawn: {error}") from None
    return ChartFiles(spec=spec, svg=svg, png=png)


def heat_spec(values: Mapping[tuple[int, str], float], unit: str) -> dict[str, Any]:
    """Return the Vega-Lite specification, with the values in it."""
    if not values:
        raise InvalidInputError("heat map: at least one value is needed, got none")
    positive = [value for value in values.values() if value > 0]
    least, most = (min(positive), max(positive)) if positive else (1e-9, 1e-8)
    rows = [
        {
            "layer": "–" if layer == OUTSIDE else str(layer),
            "part": part,
            "value": max(value, least),
            "shown": value,
        }
        for (layer, part), value in sorted(values.items())
    ]
    layers = sorted({layer for layer, _ in values})
    parts = {part for _, part in values}
    known = [part for part in _ORDER if part in parts]
    chart = (
        alt.Chart(alt.Data(values=rows))
        .mark_rect(stroke="#7f7f7f", strokeWidth=0.3)
        .encode(
            x=alt.X(
                "layer:O",
                title="layer (–: outside of all)",
                sort=["–" if layer == OUTSIDE else str(layer) for layer in layers],
                axis=alt.Axis(labelAngle=0),
            ),
            y=alt.Y("part:O", title=None, sort=[*known, *sorted(parts - set(known))]),
            color=alt.Color(
                "value:Q",
                title=unit,
                # Perceptually even, and read the same by people of any colour vision.
                scale=alt.Scale(
                    type="log",
                    scheme="cividis",
                    domain=[least, max(most, least * 1.01)],
                ),
                legend=alt.Legend(
                    orient="bottom", gradientLength=260, format="~g", tickCount=4
                ),
            ),
            tooltip=[
                alt.Tooltip("layer:O"),
                alt.Tooltip("part:O"),
                alt.Tooltip("shown:Q", title=unit, format=".3g"),
            ],
        )
        .properties(
            width=_CELL_WIDTH * len(layers),
            height=_CELL_HEIGHT * len(parts),
            background="transparent",
        )
        .configure(font="system-ui, 'DejaVu Sans', sans-serif")
        .configure_view(stroke=None)
        .configure_axis(labelFontSize=12, titleFontSize=12, titleFontWeight="normal")
        .configure_legend(titleFontWeight="normal", titleFontSize=12, titleLimit=300)
    )
    spec: dict[str, Any] = chart.to_dict()
    return spec
