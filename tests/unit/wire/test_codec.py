"""Documents are strict on the way in and canonical on the way out."""

import pytest

from slmops.domain.blueprint import Blueprint
from slmops.domain.device import DeviceClass, Range
from slmops.domain.errors import InvalidInputError
from slmops.wire import codec

GOOD = "name: a\nmodel: m\nclasses: [{name: x}]\n"


def test_a_decoded_document_has_the_same_bytes_as_a_constructed_one() -> None:
    decoded = codec.decode_yaml(GOOD, Blueprint, where="b.yaml")
    built = Blueprint(name="a", model="m", classes=(DeviceClass(name="x"),))
    assert codec.encode_json(decoded) == codec.encode_json(built)
    assert codec.document_digest(decoded) == codec.document_digest(built)


def test_a_document_survives_the_round_trip() -> None:
    document = codec.decode_yaml(GOOD, Blueprint, where="b.yaml")
    assert (
        codec.decode_json(codec.encode_json(document), Blueprint, where="x") == document
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: a\nmodel: s\nclasses: [{name: x, wher: {}}]", "did you mean 'where'"),
        (
            "name: a\nmodel: s\nclasses: [{name: x, budget: {memory_mib: 0}}]",
            "> 0, got 0",
        ),
        ("name: a\nmodel: 3\nclasses: []", "model: Expected `str`"),
        ("name: a\nname: b", "line 2, column 1 .* given twice"),
        ("a: &x [1]\nb: *x", "aliases"),
        (
            "name: a\nmodel: s\nclasses: [{name: x, budget: {memory_mib: .nan}}]",
            "finite",
        ),
        ("[", "line 1"),
        ("", "Expected `object`"),
        ("1: 2", "keys must be text"),
        ("!!python/object/apply:os.system [ls]", "not valid YAML"),
        ("name: \x00", "not valid YAML"),
        ("{" * 5000, "not valid YAML"),
        (GOOD + "rollout: {waves: [{count: 1, share: 1}]}", "exactly one"),
        (GOOD + "rollout: {alpha: 2}", "alpha must be in"),
        (GOOD + "evaluaton: {}", "did you mean 'evaluation'"),
        ("name: UPPER\nmodel: m\nclasses: [{name: x}]", "name must be"),
    ],
)
def test_a_bad_blueprint_says_where_and_what(text: str, said: str) -> None:
    with pytest.raises(InvalidInputError, match=said) as caught:
        codec.decode_yaml(text, Blueprint, where="b.yaml")
    assert str(caught.value).startswith("b.yaml:")


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff", b"[" * 100_000, b'{"min": "a"}'])
def test_bad_json_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidInputError, match=r"^here:"):
        codec.decode_json(raw, Range, where="here")


def test_a_newer_writer_may_add_keys_where_the_reader_is_lenient() -> None:
    raw = b'{"min": 1, "new": 2}'
    assert codec.decode_json(raw, Range, where="x", lenient=True) == Range(min=1)
    with pytest.raises(InvalidInputError, match="unknown key"):
        codec.decode_json(raw, Range, where="x")


def test_the_schema_refuses_unknown_keys_for_editors() -> None:
    schema = codec.json_schema(Blueprint)
    assert schema["$defs"]["Budget"]["additionalProperties"] is False
