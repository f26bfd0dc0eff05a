"""What is learnt from shares nothing with what is measured on, or both places are named."""

import importlib.resources
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from slmops.domain.errors import InvalidInputError
from slmops.workshop.leakage.held_out import HeldOut, Source

EVALUATION = """The ferry leaves at six, and again at nine when the tide allows it.

Anyone with a bicycle waits on the left
until the cars are on board, and pays at the kiosk with the green roof afterwards.
"""
CHINESE = """\u6e21\u8f6e\u516d\u70b9\u51fa\u53d1\uff0c\u6f6e\u6c34\u5141\u8bb8\u65f6\u4e5d\u70b9\u518d\u5f00\u4e00\u73ed\u3002
\u5e26\u81ea\u884c\u8f66\u7684\u4e58\u5ba2\u5728\u5de6\u4fa7\u7b49\u5019\uff0c\u7b49\u6c7d\u8f66\u4e0a\u8239\u4e4b\u540e\u518d\u5230\u7eff\u9876\u552e\u7968\u4ead\u4ed8\u94b1\u3002
"""
JAPANESE = "\u30d5\u30a7\u30ea\u30fc\u306f\u516d\u6642\u306b\u51fa\u3066\u3001\u6f6e\u304c\u8a31\u305b\u3070\u4e5d\u6642\u306b\u3082\u3046\u4e00\u5ea6\u51fa\u307e\u3059\u3002"
THAI = (
    "\u0e40\u0e23\u0e37\u0e2d\u0e02\u0e49\u0e32\u0e21\u0e1f\u0e32\u0e01\u0e2d\u0e2d\u0e01\u0e15\u0e2d\u0e19\u0e2b\u0e01\u0e42\u0e21\u0e07\u0e40\u0e0a\u0e49\u0e32"
    "\u0e41\u0e25\u0e30\u0e2d\u0e35\u0e01\u0e04\u0e23\u0e31\u0e49\u0e07\u0e15\u0e2d\u0e19\u0e40\u0e01\u0e49\u0e32\u0e42\u0e21\u0e07\u0e40\u0e21\u0e37\u0e48\u0e2d\u0e19\u0e49\u0e33\u0e02\u0e36\u0e49\u0e19"
)
LEARNT = Source(key="recipe.calibration.text", path=Path("mine.txt"))
TEMPLATE = (
    "Read the message of a customer of our bank below and name its one intent now: "
)


def lines(text: str) -> Iterator[tuple[int, str]]:
    return iter(enumerate(text.split("\n"), 1))


def check(learnt: str, *, text: str = "", prompts: tuple[str, ...] = ()) -> None:
    held = HeldOut()
    held.add_text(Source(key="evaluation.text", path=Path("scored.txt")), lines(text))
    held.add_prompts(
        Source(key="tasks.intents.examples", path=Path("test.jsonl")),
        list(enumerate(prompts, 1)),
    )
    held.refuse_shared(LEARNT, lines(learnt))


def builtin(name: str) -> str:
    folder = importlib.resources.files("slmops.workshop") / "texts"
    return (folder / name).read_text(encoding="utf-8")


def test_the_built_in_texts_are_apart() -> None:
    check(builtin("calibration.txt"), text=builtin("evaluation.txt"))


def test_both_places_of_a_shared_line_are_named() -> None:
    learnt = "Something else.\nThe FERRY leaves at six - and again at nine when the tide allows it\n"
    with pytest.raises(
        InvalidInputError,
        match=r"^recipe\.calibration\.text: mine\.txt:2: 'the ferry leaves at six and"
        r" .* is also in evaluation\.text: scored\.txt:1;",
    ):
        check(learnt, text=EVALUATION)


def test_a_sentence_copied_across_lines_is_found() -> None:
    learnt = "Mind this:\nwaits on the left until the\ncars are on board, and pays at the kiosk\n"
    with pytest.raises(InvalidInputError, match=r"mine\.txt:2: 'waits .*scored\.txt:3"):
        check(learnt, text=EVALUATION)


@pytest.mark.parametrize("text", [CHINESE, JAPANESE, THAI])
def test_copies_are_found_where_words_have_no_spaces(text: str) -> None:
    learnt = "One line.\n" + text[1:60]
    with pytest.raises(InvalidInputError, match=r"mine\.txt:2: .*scored\.txt:1"):
        check(learnt, text=text)


@pytest.mark.parametrize(
    ("learnt", "text"),
    [
        ("", EVALUATION),
        ("The ferry leaves at six.\nAnyone with a bicycle waits.", EVALUATION),
        (EVALUATION[:20], EVALUATION),
        # A name of 13 characters is no copy, nor is a common turn of phrase.
        (
            "\u4e2d\u534e\u4eba\u6c11\u5171\u548c\u56fd\u56fd\u52a1\u9662\u529e\u516c\u5385\u7684\u4eba",
            "\u4e2d\u534e\u4eba\u6c11\u5171\u548c\u56fd\u56fd\u52a1\u9662\u529e\u516c\u5385\u53d1",
        ),
        (CHINESE[:14], CHINESE),
        (JAPANESE[:15], JAPANESE),
        (THAI[:30], THAI),
        (
            "\u0939\u093f\u0928\u094d\u0926\u0940 \u092d\u093e\u0937\u093e \u0939\u0948",
            "\u0939\u093f\u0928\u094d\u0926\u0940 \u092d\u093e\u0937\u093e \u0939\u0948 \u091c\u094b",
        ),
    ],
)
def test_short_phrases_may_be_shared(learnt: str, text: str) -> None:
    check(learnt, text=text)


def test_boilerplate_is_no_copy() -> None:
    notice = (
        "All rights reserved; no part of this text may be copied in any form at all.\n"
    )
    pages = [
        f"Page {n} tells {n * 17} things about the number {n}.\n" for n in range(20)
    ]
    check(notice, text="".join(page + notice for page in pages) + EVALUATION * 2)
    with pytest.raises(InvalidInputError, match="the ferry"):
        check(EVALUATION, text="".join(page + notice for page in pages) + EVALUATION)


def test_a_text_that_only_repeats_itself_is_compared_all_the_same() -> None:
    with pytest.raises(InvalidInputError, match="the ferry"):
        check(EVALUATION, text=EVALUATION * 50)


def test_a_prompt_inside_a_text_is_found_with_its_line() -> None:
    learnt = (
        f"A line.\nThey said: why has my card not arrived yet? And left.\n{EVALUATION}"
    )
    prompts = ("short one", "Why has my card not arrived yet?")
    with pytest.raises(
        InvalidInputError,
        match=r"mine\.txt:2: 'why has my card .*tasks\.intents\.examples: test\.jsonl:2",
    ):
        check(learnt, prompts=prompts)


def test_half_of_a_long_prompt_is_a_copy_and_a_sentence_of_it_is_not() -> None:
    prompt = " ".join(f"word{n}" for n in range(60))
    check(" ".join(prompt.split()[:20]), prompts=(prompt,))
    with pytest.raises(InvalidInputError, match=r"mine\.txt:1: .*test\.jsonl:1"):
        check(" ".join(prompt.split()[:40]), prompts=(prompt,))


def test_prompts_of_one_template_do_not_leak_into_each_other() -> None:
    held = tuple(f"{TEMPLATE}Can you tell me what {n} is?" for n in range(10))
    learnt = "\n".join(f"{TEMPLATE}Can you tell me what {n} is?" for n in range(20, 40))
    check(learnt, prompts=held)
    with pytest.raises(InvalidInputError, match=r"mine\.txt:21: .*test\.jsonl:4"):
        check(f"{learnt}\n{held[3]}", prompts=held)


def test_what_everybody_asks_is_no_leak() -> None:
    check(
        "Where is my card?\nHow are you?", prompts=("Where is my card?", "how are you")
    )


def test_a_long_text_takes_the_memory_of_a_block() -> None:
    held = HeldOut()
    held.add_text(Source(key="evaluation.text", path=None), lines(EVALUATION))
    learnt = (
        (n, f"line {n} of a long text that says nothing new") for n in range(60_000)
    )
    tracemalloc.start()
    held.refuse_shared(LEARNT, learnt)
    assert tracemalloc.get_traced_memory()[1] < 40 << 20
    tracemalloc.stop()
