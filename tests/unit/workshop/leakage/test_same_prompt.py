"""Which prompts are the same: how people write one question, and what is another."""

import pytest

from slmops.workshop.leakage.same_prompt import prompt_form


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Where is my card?", "where  is my card"),
        ("\u201cWhere\u201d is my card...", "Where is my card!"),
        ("\uff37here is my card", "Where is my card"),
        ("\u5361\u5728\u54ea\u91cc\uff1f", "\u5361\u5728\u54ea\u91cc"),
        (
            "\u0939\u093f\u0928\u094d\u0926\u0940\u0964",
            "\u0939\u093f\u0928\u094d\u0926\u0940",
        ),
        ("cafe\u0301", "caf\u00e9"),
    ],
)
def test_spelling_makes_no_other_prompt(one: str, other: str) -> None:
    assert prompt_form([one]) == prompt_form([other])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("3 + 4", "3 - 4"),
        ("3.14", "314"),
        ("print(a)", "print(b)"),
        ("!", "?"),
        (":-)", ":-("),
        ("it's", "its"),
        ("yes", "no"),
        ("f(x) = 1", "f x 1"),
    ],
)
def test_signs_with_a_meaning_make_another(one: str, other: str) -> None:
    assert prompt_form([one]) != prompt_form([other])


def test_turns_are_no_running_text() -> None:
    assert prompt_form(["a b", "c"]) != prompt_form(["a", "b c"])
