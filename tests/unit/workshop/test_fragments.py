"""Recipes from several files, and locks of what they stood for."""

from dataclasses import replace
from pathlib import Path

import pytest

from slmops.domain.errors import ConflictError, InvalidInputError, NotFoundError
from slmops.testing.sample_release import digest_of
from slmops.workshop.fragments import Resolved, resolve_blueprint
from slmops.workshop.recipe_lock import (
    check_lock,
    lock_of,
    lock_path,
    save_lock,
)

MODEL = digest_of(b"model")
BLUEPRINT = """\
name: a
model: m
classes: [{name: any}]
recipe:
  import: [shared/calibration.yaml, shared/slim.yaml]
  calibration: {tokens: 512}
  structures:
    - name: own
      steps: [{prune_depth: {layers: [20, 24]}}]
"""
CALIBRATION = "calibration: {tokens: 4096, rounding: nearest}\nseed: 7\n"
SLIM = """\
import: [more/seed.yaml]
structures:
  - name: slim
    steps: [{trim_vocabulary: {text: texts.txt, tokens: 512}}]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shared" / "more").mkdir(parents=True)
    (tmp_path / "blueprint.yaml").write_text(BLUEPRINT)
    (tmp_path / "shared" / "calibration.yaml").write_text(CALIBRATION)
    (tmp_path / "shared" / "slim.yaml").write_text(SLIM)
    (tmp_path / "shared" / "more" / "seed.yaml").write_text("seed: 9\n")
    (tmp_path / "texts.txt").write_text("Some text.")
    return tmp_path


@pytest.fixture
def resolved(folder: Path) -> Resolved:
    return resolve_blueprint(folder / "blueprint.yaml")


def test_the_importing_file_wins_key_by_key_and_structures_are_joined(
    resolved: Resolved,
) -> None:
    recipe = resolved.blueprint.recipe
    assert recipe.calibration is not None
    assert recipe.calibration.tokens == 512
    assert recipe.calibration.rounding == "nearest"
    assert recipe.seed == 9  # of the later import, which has it from its own
    assert [plan.name for plan in recipe.structures] == ["slim", "own"]
    assert [path.name for path in resolved.fragments] == [
        "calibration.yaml",
        "slim.yaml",
        "seed.yaml",
    ]


def test_a_blueprint_without_imports_is_read_as_it_is(folder: Path) -> None:
    path = folder / "plain.yaml"
    path.write_text("name: a\nmodel: m\nclasses: [{name: any}]\n")
    assert resolve_blueprint(path).fragments == ()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("shared/more/seed.yaml", "import: [../slim.yaml]", "by a circle"),
        ("shared/more/seed.yaml", "- a list", "must hold keys and values"),
        ("shared/slim.yaml", "import: once.yaml", "must be a list of paths"),
        ("shared/slim.yaml", "sed: 3", "sed"),
        ("shared/slim.yaml", "seed: [", "not valid YAML"),
    ],
)
def test_a_bad_fragment_is_refused_by_its_name(
    folder: Path, name: str, content: str, message: str
) -> None:
    (folder / name).write_text(content)
    with pytest.raises(InvalidInputError, match=message):
        resolve_blueprint(folder / "blueprint.yaml")


def test_a_fragment_that_is_not_there_is_named(folder: Path) -> None:
    (folder / "shared/slim.yaml").write_text("import: [nothing.yaml]")
    with pytest.raises(NotFoundError, match=r"nothing\.yaml does not exist"):
        resolve_blueprint(folder / "blueprint.yaml")


def test_a_lock_says_what_everything_was(folder: Path, resolved: Resolved) -> None:
    lock = lock_of(resolved, MODEL, folder)
    assert set(lock.files) == {
        "texts.txt",
        "shared/calibration.yaml",
        "shared/slim.yaml",
        "shared/more/seed.yaml",
    }
    assert set(lock.structures) == {"slim", "own-1", "own-2"}
    assert lock.tools["quantize"].startswith("code-")


def test_what_a_lock_holds_is_built_and_nothing_else(
    folder: Path, resolved: Resolved
) -> None:
    path = lock_path(folder / "blueprint.yaml")
    with pytest.raises(NotFoundError, match="a build without --locked writes it"):
        check_lock(lock_of(resolved, MODEL, folder), path)
    save_lock(lock_of(resolved, MODEL, folder), path)
    check_lock(lock_of(resolved, MODEL, folder), path)
    (folder / "texts.txt").write_text("Another text.")
    with pytest.raises(ConflictError, match=r"files: texts\.txt has changed"):
        check_lock(lock_of(resolved, MODEL, folder), path)
    other = replace(
        resolved, blueprint=replace(resolved.blueprint, candidates=("Q4_0",))
    )
    with pytest.raises(ConflictError, match="the blueprint or one of its imports"):
        check_lock(lock_of(other, MODEL, folder), path)
    with pytest.raises(ConflictError, match="model was"):
        check_lock(lock_of(resolved, digest_of(b"other"), folder), path)
