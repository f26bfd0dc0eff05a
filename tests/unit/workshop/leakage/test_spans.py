"""Texts as hashes of spans: equal where they are copied, in every script."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from slmops.workshop.leakage import spans
from slmops.workshop.leakage.spans import SPAN, blocks, hashed, units_of


def all_spans(text: str) -> set[int]:
    found: set[int] = set()
    for block in blocks(enumerate(text.split("\n"), 1)):
        found |= set(block.rows(*block.spans()).tolist())
    return found


@pytest.mark.parametrize(
    ("text", "units"),
    [
        ("Two words", 2),
        ("\u732b\u304c\u597d\u304d", 4),
        ("\u0e41\u0e21\u0e27", 3),
        ("\uace0\uc591\uc774\uac00 \uc88b\ub2e4", 2),
        ("\u0939\u093f\u0928\u094d\u0926\u0940 \u092d\u093e\u0937\u093e", 2),
        ("a \u732b b", 3),
        (" --- ", 0),
    ],
)
def test_words_are_units_where_there_are_spaces(text: str, units: int) -> None:
    assert len(units_of([(1, text)])) == units


@given(
    st.lists(st.text(alphabet="ab \u732b\u0e41.\n", max_size=60), max_size=8),
    st.integers(1, 80),
)
def test_blocks_lose_no_span_and_count_none_twice(parts: list[str], size: int) -> None:
    text = "\n".join(parts)
    pieces = list(enumerate(text.split("\n"), 1))
    whole = hashed(units_of(pieces))
    expected = sorted(whole.rows(*whole.spans()).tolist())
    kept = spans.BLOCK_CHARACTERS
    try:
        spans.BLOCK_CHARACTERS = size
        cut = [row for block in blocks(pieces) for row in block.rows(*block.spans())]
    finally:
        spans.BLOCK_CHARACTERS = kept
    assert sorted(map(int, cut)) == expected


def test_spans_weigh_what_they_say() -> None:
    for text, count in ((" ".join("abcdefghijkl"), 12), ("\u732b" * 24, 24)):
        block = hashed(units_of([(1, text)]))
        begins, ends = block.spans()
        assert (begins.tolist(), ends.tolist()) == ([0], [count])
        assert int(block.units.weights.sum()) == SPAN


def test_case_spacing_and_form_do_not_count() -> None:
    one = "The FERRY leaves at six, and again at nine: when the tide allows it, \uff21gain."
    two = "the ferry leaves at six and again at nine when the tide\nallows it again"
    assert all_spans(one) == all_spans(two) != set()
