"""Recipes on the pages are recipes."""

import re
from pathlib import Path

import pytest

from slmops.domain.recipe import Recipe
from slmops.wire.codec import convert, parse_yaml
from slmops.workshop.fragments import IMPORT

DOCS = Path(__file__).parents[2] / "docs"
PAGES = [DOCS / "recipe.md", *sorted((DOCS / "levers").glob("*.md"))]
BLOCKS = [
    (path.name, block)
    for path in PAGES
    for block in re.findall(r"```yaml\n(.*?)```", path.read_text("utf-8"), re.DOTALL)
    if "recipe:" in block
]


@pytest.mark.parametrize(("page", "block"), BLOCKS)
def test_a_recipe_on_a_page_can_be_read(page: str, block: str) -> None:
    tree = parse_yaml(block, where=page)["recipe"]
    tree.pop(IMPORT, None)
    assert convert(tree, Recipe, where=page) != Recipe()


@pytest.mark.parametrize("lever", ["depth", "finetune", "mixed-precision", "recovery"])
def test_the_page_of_a_lever_shows_how_a_recipe_asks_for_it(lever: str) -> None:
    assert any(page == f"{lever}.md" for page, _ in BLOCKS)
