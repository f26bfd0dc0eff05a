"""JSON answers: strict parsing, schemas that stay at home, fields as a bag."""

import json
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from slmops.domain.errors import InvalidInputError
from slmops.workshop.tasks.json_answers import (
    count_fields,
    field_f1,
    is_json,
    read_schema,
    same_json,
)

TREES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text("ab ", max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from("xyz"), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(TREES, TREES)
def test_fields_agree_exactly_when_answers_do(one: object, other: object) -> None:
    counts = count_fields(json.dumps(one), json.dumps(other))
    assert counts.matched <= min(counts.answered, counts.expected)
    assert same_json(json.dumps(one), json.dumps(other)) == (field_f1(counts) == 1.0)
    assert same_json(json.dumps(one), json.dumps(one))


@pytest.mark.parametrize(
    ("expected", "answer", "matched"),
    [
        ('{"a": [1, 2]}', '{"a": [2, 1]}', 2),
        ('{"a": 1}', '{"a": 1.0}', 1),
        ('{"a": 1}', '{"a": true}', 0),
        ('{"a": 1}', '{"a": "1"}', 0),
        ('{"a": "é"}', '{"a": "e\u0301 "}', 1),
        ('{"a": "x"}', '{"b": "x"}', 0),
        ('{"a": ["x", "x"]}', '{"a": ["x"]}', 1),
        ('{"a": {}}', '{"a": []}', 0),
        ('{"a": 1}', "nothing", 0),
    ],
)
def test_fields_are_leaves_with_their_path(
    expected: str, answer: str, matched: int
) -> None:
    assert count_fields(expected, answer).matched == matched


@pytest.mark.parametrize("text", ["```json\n{}\n```", "{} {}", "{'a': 1}", "NaN", ""])
def test_what_a_program_could_not_parse_is_no_json(text: str) -> None:
    assert not is_json(text)
    assert count_fields('{"a": 1}', text).answered == 0


def schema(folder: Path, tree: object) -> Path:
    path = folder / "schema.json"
    path.write_text(json.dumps(tree))
    return path


def test_a_schema_says_what_is_wrong(tmp_path: Path) -> None:
    found = read_schema(schema(tmp_path, {"properties": {"n": {"type": "integer"}}}))
    assert found.problem('{"n": 1}') is None
    assert found.problem('{"n": "1"}') == "'1' is not of type 'integer'"
    assert found.problem("n") == "it is not JSON"


@pytest.mark.parametrize("tree", [{"type": "objekt"}, [], 3])
def test_what_is_no_schema_is_refused(tmp_path: Path, tree: object) -> None:
    with pytest.raises(InvalidInputError, match=r"schema\.json"):
        read_schema(schema(tmp_path, tree))


def test_a_schema_never_reaches_into_the_network(tmp_path: Path) -> None:
    # Port 9 of this machine: a request would be refused there, not resolved.
    found = read_schema(schema(tmp_path, {"$ref": "http://127.0.0.1:9/a.json"}))
    with pytest.raises(InvalidInputError, match="must stay inside the schema"):
        found.problem("{}")


def test_references_inside_a_schema_hold(tmp_path: Path) -> None:
    tree = {"$defs": {"n": {"type": "integer"}}, "$ref": "#/$defs/n"}
    found = read_schema(schema(tmp_path, tree))
    assert found.problem("1") is None
    assert found.problem('"x"') is not None
