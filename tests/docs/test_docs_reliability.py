"""Reliability: every test that the page names exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reliability.md").read_text("utf-8")


def named() -> list[tuple[str, str]]:
    found, file = [], ""
    for path, name in re.findall(r"`([\w/]*(?:\.py)?)::(test_\w+)`", PAGE):
        file = path or file  # `::name` is in the file named before
        found.append((file, name))
    return found


@pytest.mark.parametrize(("file", "name"), named())
def test_a_named_test_exists(file: str, name: str) -> None:
    places = (ROOT / "tests" / file, ROOT / "tests" / "unit" / file)
    path = next((each for each in places if each.is_file()), None)
    assert path is not None, file
    assert f"def {name}(" in path.read_text("utf-8")


def test_the_page_names_tests() -> None:
    assert len(named()) > 20
