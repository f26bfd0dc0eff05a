"""Texts a blueprint names: our own or the user's, and what is wrong with bad ones."""

import importlib.resources
from pathlib import Path

import pytest

from slmops.domain.blueprint import EvaluationPlan, GoldenPlan
from slmops.domain.errors import InvalidInputError, NotFoundError
from slmops.workshop import text_sources
from slmops.workshop.text_sources import (
    MAX_PROMPTS,
    evaluation_text,
    golden_prompts,
)


def test_our_own_evaluation_text_shares_no_line_with_calibration() -> None:
    own = evaluation_text(EvaluationPlan(), Path("nowhere"))
    lines = {line.strip() for line in own.splitlines() if line.strip()}
    texts = importlib.resources.files("slmops.workshop") / "texts"
    kept_apart = (texts / "calibration.txt").read_text(encoding="utf-8")
    others = {line.strip() for line in kept_apart.splitlines() if line.strip()}
    assert len(own) > 8000
    assert not lines & others


def test_our_own_golden_prompts_are_few_and_distinct() -> None:
    prompts = golden_prompts(GoldenPlan(), Path("nowhere"))
    assert 8 <= len(prompts) <= MAX_PROMPTS
    assert len(set(prompts)) == len(prompts)


def test_a_custom_text_lies_beside_the_blueprint(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("Grüße aus Köln.\n", encoding="utf-8")
    plan = EvaluationPlan(text="mine.txt")
    assert evaluation_text(plan, tmp_path) == "Grüße aus Köln.\n"


def test_blank_lines_between_prompts_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("\n One? \n\n\tTwo?\n")
    assert golden_prompts(GoldenPlan(prompts="prompts.txt"), tmp_path) == (
        "One?",
        "Two?",
    )


def test_a_missing_text_is_named_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"evaluation\.text: .*missing\.txt"):
        evaluation_text(EvaluationPlan(text="missing.txt"), tmp_path)


@pytest.mark.parametrize("content", [b"", b" \n\t\n"])
def test_an_empty_text_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "mine.txt").write_bytes(content)
    with pytest.raises(InvalidInputError, match="is empty"):
        evaluation_text(EvaluationPlan(text="mine.txt"), tmp_path)


def test_a_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_bytes("Grüße".encode("latin-1"))
    with pytest.raises(InvalidInputError, match="not UTF-8"):
        evaluation_text(EvaluationPlan(text="mine.txt"), tmp_path)


def test_a_huge_text_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_sources, "MAX_TEXT_BYTES", 10)
    (tmp_path / "mine.txt").write_text("eleven byte")
    with pytest.raises(InvalidInputError, match="at most 10 bytes, has more"):
        evaluation_text(EvaluationPlan(text="mine.txt"), tmp_path)


def test_too_many_prompts_are_refused(tmp_path: Path) -> None:
    (tmp_path / "many.txt").write_text("Why?\n" * (MAX_PROMPTS + 1))
    with pytest.raises(InvalidInputError, match=f"at most {MAX_PROMPTS} lines, got 65"):
        golden_prompts(GoldenPlan(prompts="many.txt"), tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"fine\nno\xff\n", r"mine\.txt:2: not UTF-8"),
        ("fine\nfine\nbro\ufffdken\n".encode(), r"mine\.txt:3: .*U\+FFFD"),
        (b"a \x00 byte", r"mine\.txt:1: .*U\+0000"),
        (b"short\n" + b"x" * (1 << 20) + b"yz", r"mine\.txt:2: a line must have"),
    ],
)
def test_what_is_no_text_is_named_with_its_line(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "mine.txt").write_bytes(content)
    with pytest.raises(InvalidInputError, match=message):
        evaluation_text(EvaluationPlan(text="mine.txt"), tmp_path)


def test_line_ends_of_other_systems_are_read_as_ours(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_bytes(b"one\r\ntwo\rthree\n")
    found = evaluation_text(EvaluationPlan(text="mine.txt"), tmp_path)
    assert found == "one\ntwo\nthree\n"
