"""Every reference page by its file name."""

from collections.abc import Callable, Mapping
from pathlib import Path

from slmops.cli.reference.commands import command_page
from slmops.cli.reference.documents import blueprint_page, settings_page
from slmops.cli.reference.routes import api_page

PAGES: Mapping[str, Callable[[], str]] = {
    "cli.md": command_page,
    "blueprint.md": blueprint_page,
    "settings.md": settings_page,
    "api.md": api_page,
}
"""File name → what makes its text."""


def write_pages(folder: Path) -> None:
    """Write every page into a folder."""
    for name, page in PAGES.items():
        (folder / name).write_text(page(), encoding="utf-8")
