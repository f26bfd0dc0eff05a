"""Reference pages are made from the code, are current, and leave nothing out."""

import dataclasses
import re
from pathlib import Path

import click
import pytest

from slmops.agent.settings import AgentSettings
from slmops.cli.main import app
from slmops.cli.reference.commands import leaf_commands
from slmops.cli.reference.pages import PAGES
from slmops.control.routes import ROUTES
from slmops.control.settings import ControlSettings
from slmops.domain.blueprint import Blueprint
from slmops.domain.errors import ERROR_CLASSES
from slmops.registry.keys import KeySettings
from slmops.wire import codec

DOCS = Path(__file__).parents[2] / "docs"
SOURCE = Path(__file__).parents[2] / "src" / "slmops"


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", PAGES)
def test_a_reference_page_is_current(name: str) -> None:
    assert page(name) == PAGES[name](), "write them anew: make docs"


def test_every_command_and_option_is_on_the_page() -> None:
    text = page("cli.md")
    for path, command in leaf_commands(app):
        heading = f"## `slmops {' '.join(path)}`"
        assert heading in text
        section = text.split(heading, 1)[1].split("\n## ", 1)[0]
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert all(f"`{name}`" in section for name in parameter.opts), path


def test_every_key_of_the_blueprints_schema_is_on_the_page() -> None:
    text = page("blueprint.md")
    schema = codec.json_schema(Blueprint)
    for name, part in schema["$defs"].items():
        if "properties" not in part:
            assert all(f"`{value}`" in text for value in part["enum"]), name
            continue
        section = text.split(f"\n## {name}\n", 1)[1].split("\n## ", 1)[0]
        for key in part["properties"]:
            assert f"| `{key}` |" in section, f"{name}.{key}"


@pytest.mark.parametrize("kind", [AgentSettings, ControlSettings])
def test_every_setting_is_on_the_page(kind: type) -> None:
    text = page("settings.md")
    names = {field.name for field in dataclasses.fields(kind)} - {"workspace"}
    assert all(f"| `{name}` |" in text for name in names)


def test_every_variable_the_code_reads_is_on_the_page() -> None:
    text = page("settings.md")
    named = {
        found
        for path in SOURCE.rglob("*.py")
        if "testing" not in path.parts
        for found in re.findall(r"\bSLMOPS_[A-Z_]+[A-Z]\b", path.read_text("utf-8"))
    }
    assert "SLMOPS_WORKSPACE" in named
    of_a_table = {
        f"{prefix}{field.name.upper()}"
        for prefix, kind in (
            ("SLMOPS_AGENT_", AgentSettings),
            ("SLMOPS_CONTROL_", ControlSettings),
        )
        for field in dataclasses.fields(kind)
    }
    assert {name for name in named if name not in text} <= of_a_table
    for field in dataclasses.fields(KeySettings):
        assert f"SLMOPS_KEY_{field.name.upper()}" in text


def test_every_route_is_on_the_page() -> None:
    text = page("api.md")
    for route in ROUTES:
        assert f"| `{route.method} {route.path}` |" in text


def test_every_error_code_has_its_section_with_status_and_exit_code() -> None:
    text = page("errors.md")
    for kind in ERROR_CLASSES:
        section = text.split(f"\n## {kind.code}\n", 1)[1].split("\n## ", 1)[0]
        assert f"HTTP {kind.http_status}, exit {kind.exit_code}." in section


def test_no_error_code_is_documented_that_does_not_exist() -> None:
    headings = re.findall(r"^## (\w+)$", page("errors.md"), flags=re.MULTILINE)
    assert headings == [kind.code for kind in ERROR_CLASSES]
