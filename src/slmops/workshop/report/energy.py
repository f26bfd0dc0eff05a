"""The page's tables of energy per token: measured and modelled, each its own."""

from html import escape

from slmops.workshop.build_result import BuildResult
from slmops.workshop.evidence.energy_tables import (
    EnergyTable,
    energy_absences,
    energy_tables,
)
from slmops.workshop.report.markup import headings, join, table, text_cell


def energy_section(result: BuildResult) -> str:
    """Return the tables, and why there is none where there is none."""
    cards = [candidate.card for candidate in result.candidates]
    shown = join(_table(each) for each in energy_tables(cards))
    missing = energy_absences(result.control.card, result.blueprint.classes)
    return shown + join(f'<p class="soft">{escape(text)}.</p>' for text in missing)


def _table(found: EnergyTable) -> str:
    rows = (f"<tr>{join(map(text_cell, row))}</tr>" for row in found.rows)
    return (
        f"<h3>{escape(found.title)}</h3>{table(headings(found.head), rows)}"
        f'<p class="soft">{escape(found.note)}</p>'
    )
