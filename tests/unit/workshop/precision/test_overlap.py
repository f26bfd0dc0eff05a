"""Calibration and evaluation text share nothing, or the line that they share is named."""

import importlib.resources
from pathlib import Path

import pytest

from slmops.domain.errors import InvalidInputError
from slmops.workshop.blueprints import load_blueprint
from slmops.workshop.precision.overlap import check_apart

EVALUATION = """The ferry leaves at six, and again at nine when the tide allows it.

Anyone with a bicycle waits on the left
until the cars are on board, and pays at the kiosk with the green roof afterwards.
"""


def builtin(name: str) -> str:
    folder = importlib.resources.files("slmops.workshop") / "texts"
    return (folder / name).read_text(encoding="utf-8")


def test_the_built_in_texts_are_apart() -> None:
    check_apart(builtin("calibration.txt"), builtin("evaluation.txt"))


def test_a_shared_line_is_named() -> None:
    text = "Something else.\nThe FERRY leaves at six - and again at nine when the tide allows it\n"
    with pytest.raises(InvalidInputError, match="line 2: 'the ferry leaves at six"):
        check_apart(text, EVALUATION)


def test_a_sentence_copied_across_lines_is_found() -> None:
    text = "Mind this:\nwaits on the left until the\ncars are on board, and pays at the kiosk\n"
    with pytest.raises(InvalidInputError, match="line 2: 'waits on the left"):
        check_apart(text, EVALUATION)


@pytest.mark.parametrize(
    "text",
    ["", "The ferry leaves at six.\nAnyone with a bicycle waits.", EVALUATION[:20]],
)
def test_short_phrases_may_be_shared(text: str) -> None:
    check_apart(text, EVALUATION)


def test_a_blueprint_that_calibrates_on_what_it_scores_is_refused(
    tmp_path: Path,
) -> None:
    (tmp_path / "mine.txt").write_text("A first line.\n" + EVALUATION)
    (tmp_path / "scored.txt").write_text(EVALUATION)
    blueprint = tmp_path / "blueprint.yaml"
    blueprint.write_text(
        "name: shop\nmodel: m.gguf\nclasses: [{name: any}]\n"
        "evaluation: {text: scored.txt}\nrecipe: {calibration: {text: mine.txt}}\n"
    )
    with pytest.raises(InvalidInputError, match="calibration text, line 2"):
        load_blueprint(blueprint)
