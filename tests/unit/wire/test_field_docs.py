"""Docstrings of fields, as schemas and reference pages show them."""

from dataclasses import dataclass, fields

import pytest

from slmops.agent.settings import AgentSettings
from slmops.control.settings import ControlSettings
from slmops.domain.blueprint import Blueprint
from slmops.domain.release import Release
from slmops.domain.sync import SyncRequest
from slmops.registry.keys import KeySettings
from slmops.wire.codec import json_schema
from slmops.wire.field_docs import documents_in, field_docs


@pytest.mark.parametrize(
    "kind",
    [Blueprint, Release, SyncRequest, AgentSettings, ControlSettings, KeySettings],
)
def test_every_field_says_what_it_is(kind: type) -> None:
    for part in documents_in(kind):
        docs = field_docs(part)
        silent = [one.name for one in fields(part) if not docs.get(one.name)]
        assert silent == [], part.__name__


def test_inherited_fields_are_explained_too() -> None:
    @dataclass(frozen=True, kw_only=True, slots=True)
    class Parent:
        """A parent."""

        first: int
        """Said by the
        parent."""

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Child(Parent):
        """A child."""

        second: int = 0
        """Said by the child."""

    assert field_docs(Child) == {
        "first": "Said by the parent.",
        "second": "Said by the child.",
    }


def test_without_source_there_are_no_docs() -> None:
    space: dict[str, object] = {"__name__": "nowhere", "dataclass": dataclass}
    exec("@dataclass\nclass Made:\n    a: int = 0\n    'Text.'", space)  # noqa: S102
    made = space["Made"]
    assert isinstance(made, type)
    assert field_docs(made) == {}


def test_an_editor_can_show_every_key_of_a_blueprint() -> None:
    schema = json_schema(Blueprint)
    for name, part in schema["$defs"].items():
        for key, described in part.get("properties", {}).items():
            assert described.get("description"), f"{name}.{key}"
