"""Properties of the codec: canonical, total on garbage, and never more lenient."""

import dataclasses

import hypothesis.strategies as st
import pytest
from hypothesis import given

from slmops.domain.blueprint import Blueprint
from slmops.domain.device import DeviceFacts, Range
from slmops.domain.errors import InvalidInputError
from slmops.domain.sync import Report, SyncRequest
from slmops.wire import codec

_COUNTS = st.lists(st.integers(0, 2**53), max_size=5).map(tuple)
_REPORTS = st.builds(
    Report,
    sequence=st.integers(1, 2**53),
    started_at=st.floats(0, 1e10),
    ended_at=st.floats(0, 1e10),
    release=st.none() | st.text(max_size=20),
    requests=st.integers(0, 10**9),
    first_token_ms=_COUNTS,
)
_TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner)
    ),
    max_leaves=12,
)


@given(_REPORTS)
def test_every_document_survives_the_round_trip_with_equal_bytes(
    report: Report,
) -> None:
    raw = codec.encode_json(report)
    again = codec.decode_json(raw, Report, where="report")
    assert again == report
    assert codec.encode_json(again) == raw


@given(st.binary(max_size=200))
def test_garbage_is_always_an_input_error(raw: bytes) -> None:
    for decode in (codec.decode_json, codec.decode_yaml):
        try:
            decode(raw, Range, where="garbage")
        except InvalidInputError as error:
            assert str(error).startswith("garbage:")


_FACTS = {field.name for field in dataclasses.fields(DeviceFacts)}


@given(_TREES)
def test_any_tree_is_a_document_or_an_input_error(tree: object) -> None:
    for lenient in (False, True):
        try:
            codec.convert(tree, SyncRequest, where="tree", lenient=lenient)
        except InvalidInputError as error:
            assert str(error).startswith("tree:")


@given(
    st.dictionaries(
        # Fields that exist are no unknown keys: `os` is short enough to be drawn.
        st.text(min_size=1, max_size=6).filter(lambda key: key not in _FACTS),
        st.integers(),
        max_size=4,
    )
)
def test_leniency_ignores_unknown_keys_and_nothing_else(extra: dict[str, int]) -> None:
    facts = {"memory_mib": 1, "disk_mib": 1, "cpu_count": 1, "architecture": "x86_64"}
    tree = {**extra, "facts": {**extra, **facts}}
    tree = {key: tree[key] for key in tree if key == "facts" or len(key) < 7}
    found = codec.convert(
        {"facts": tree["facts"]}, SyncRequest, where="x", lenient=True
    )
    assert found.facts == DeviceFacts(
        memory_mib=1, disk_mib=1, cpu_count=1, architecture="x86_64"
    )
    with pytest.raises(InvalidInputError):
        codec.convert({"facts": 3}, SyncRequest, where="x", lenient=True)


@given(_REPORTS, _REPORTS)
def test_digests_agree_exactly_when_documents_do(one: Report, other: Report) -> None:
    same = codec.document_digest(one) == codec.document_digest(other)
    assert same == (codec.encode_json(one) == codec.encode_json(other))


def test_deep_nesting_is_refused_in_both_languages() -> None:
    for raw in (b"[" * 50_000, b"[" * 50_000 + b"]" * 50_000):
        with pytest.raises(InvalidInputError):
            codec.parse_json(raw, where="deep")
    with pytest.raises(InvalidInputError):
        codec.parse_yaml("[" * 5_000, where="deep")


def test_a_too_large_document_is_refused_before_it_is_parsed() -> None:
    raw = b"[" * (codec.MAX_DOCUMENT_BYTES + 1)
    with pytest.raises(InvalidInputError, match="at most 16777216 bytes"):
        codec.parse_json(raw, where="large")


def test_the_path_inside_lists_is_named() -> None:
    text = "name: a\nmodel: m\nclasses: [{name: x}, {name: y, budgt: {}}]"
    with pytest.raises(InvalidInputError, match=r"b: classes\[1\]\.budgt: unknown key"):
        codec.decode_yaml(text, Blueprint, where="b")


def test_numbers_that_are_not_finite_are_refused_on_every_level() -> None:
    with pytest.raises(InvalidInputError, match=r"x: a\[1\]\.b must be finite"):
        codec.convert({"a": [1, {"b": float("inf")}]}, Range, where="x", lenient=True)


@pytest.mark.parametrize(
    "text", ["!!python/object/apply:os.system [ls]", "a: !!python/name:os.system"]
)
def test_yaml_makes_no_objects(text: str) -> None:
    with pytest.raises(InvalidInputError):
        codec.parse_yaml(text, where="x")
