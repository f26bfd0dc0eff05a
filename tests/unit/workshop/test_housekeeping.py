"""What can go from a workspace goes, and nothing that anything refers to."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from slmops.domain.errors import InvalidInputError, UnavailableError
from slmops.domain.ids import Digest
from slmops.registry.blobs import BlobStore
from slmops.registry.workspace import Workspace
from slmops.testing.sample_build import sample_build
from slmops.testing.tiny_gguf import write_tiny_llama
from slmops.workshop.builds import load_build, save_build
from slmops.workshop.housekeeping import Keeping, find_leftovers, remove_leftovers
from slmops.workshop.models import import_model
from slmops.workshop.own_folder import held, own_folder, user_scratch
from slmops.workshop.steps import Step, StepCache, StepRecord

NOW = 1_000_000.0


class Scene:
    """A workspace with blobs of a known age, and steps and builds that name them."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.blobs = BlobStore(workspace.blobs)
        self.cache = StepCache(workspace)

    def blob(self, content: str, *, age_s: float = 10_000) -> Digest:
        digest = self.blobs.put_bytes(content.encode())
        os.utime(self.blobs.path(digest), (NOW - age_s, NOW - age_s))
        return digest

    def step(self, name: str, *, at: float) -> StepRecord:
        step = Step(
            kind="quantize",
            tool=name,
            inputs={"model": self.blob(f"input of {name}")},
            parameters={},
        )
        record = StepRecord(
            step=step, outputs={"artefact": self.blob(f"output of {name}")}, seconds=1
        )
        self.cache.save(record)
        os.utime(self.cache._path(step), (at, at))
        return record

    def build(self, name: str, *steps: StepRecord, at: float) -> Digest:
        sample = sample_build()
        blueprint = replace(sample.blueprint, name=name)
        digest = save_build(
            self.workspace, replace(sample, blueprint=blueprint, provenance=steps)
        )
        hexes = digest.removeprefix("sha256:")
        os.utime(self.workspace.builds / f"{hexes}.json", (at, at))
        os.utime(self.blobs.path(digest), (NOW - 10_000, NOW - 10_000))
        return digest

    def gone(self, **keeping: object) -> set[Digest]:
        found = find_leftovers(
            self.workspace,
            now=NOW,
            keeping=Keeping(**keeping),  # type: ignore[arg-type]
        )
        return set(found.blobs)


@pytest.fixture
def scene(workspace: Workspace) -> Scene:
    return Scene(workspace)


def named(record: StepRecord) -> set[Digest]:
    return {*record.step.inputs.values(), *record.outputs.values()}


def test_what_no_build_refers_to_goes_and_what_one_does_stays(scene: Scene) -> None:
    stray = scene.blob("nobody's")
    used = scene.step("used", at=100)
    replaced = scene.step("replaced", at=100)
    scene.build("new", used, at=200)
    assert scene.gone() == {stray} | named(replaced)


def test_models_and_fresh_blobs_stay(
    scene: Scene, workspace: Workspace, tmp_path: Path
) -> None:
    record = import_model(str(write_tiny_llama(tmp_path / "tiny.gguf")), workspace)
    os.utime(scene.blobs.path(record.id), (0, 0))
    scene.blob("about to be referred to", age_s=60)
    assert scene.gone() == set()


def test_finished_steps_of_a_stopped_build_stay_unless_told(scene: Scene) -> None:
    used = scene.step("used", at=100)
    scene.build("old", used, at=200)
    unfinished = scene.step("of a stopped build", at=300)
    assert scene.gone() == set()
    assert scene.gone(unfinished=False) == named(unfinished)


def test_older_builds_are_dropped_only_when_told_and_the_newest_never(
    scene: Scene, workspace: Workspace
) -> None:
    old, new = scene.step("old", at=100), scene.step("new", at=150)
    old_build = scene.build("old", old, at=200)
    new_build = scene.build("new", new, at=300)
    assert scene.gone() == set()
    gone = scene.gone(builds=1)
    assert named(old) <= gone
    assert not gone & (named(new) | {new_build})
    remove_leftovers(
        workspace,
        find_leftovers(workspace, now=NOW, keeping=Keeping(builds=1)),
    )
    # Its figures can still be read.
    assert load_build(workspace, old_build).blueprint.name == "old"
    assert scene.cache.find(new.step) == new
    assert scene.cache.find(old.step) is None
    with pytest.raises(InvalidInputError, match="newest build is always kept"):
        Keeping(builds=0)


def test_looking_removes_nothing_and_removing_frees_what_was_said(
    scene: Scene, workspace: Workspace
) -> None:
    stray = scene.blob("x" * 5000)
    (scene.cache.scratch / "left").mkdir(parents=True)
    (scene.cache.scratch / "left" / "artefact.gguf").write_bytes(bytes(7000))
    found = find_leftovers(workspace, now=NOW)
    assert (found.blob_bytes, found.folder_bytes, found.bytes) == (5000, 7000, 12_000)
    assert scene.blobs.has(stray)
    remove_leftovers(workspace, found)
    assert not scene.blobs.has(stray)
    assert find_leftovers(workspace, now=NOW).bytes == 0


def test_a_blob_that_a_registry_has_too_frees_nothing(
    scene: Scene, workspace: Workspace, tmp_path: Path
) -> None:
    stray = scene.blob("released")
    os.link(scene.blobs.path(stray), tmp_path / "in the registry")
    found = find_leftovers(workspace, now=NOW)
    assert (found.blobs, found.blob_bytes) == ((stray,), 0)


def test_a_killed_merges_folder_goes_and_a_running_ones_stays(
    scene: Scene, workspace: Workspace
) -> None:
    running, killed = (workspace.root / f".merge-{name}" for name in ("a", "b"))
    for folder in (running, killed):
        folder.mkdir(parents=True)
    with held(running):
        remove_leftovers(workspace, find_leftovers(workspace, now=NOW))
        assert (running.exists(), killed.exists()) == (True, False)


def test_scratch_outside_a_workspace_is_this_users_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = user_scratch()
    assert folder.stat().st_mode & 0o777 == 0o700
    (folder / "ray-left").mkdir()
    (folder / "other").mkdir()
    with own_folder(user_scratch(), prefix="ray-") as own:
        assert sorted(folder.iterdir()) == sorted([own, folder / "other"])
    (folder / "other").rmdir()
    folder.rmdir()
    folder.symlink_to(tmp_path)
    with pytest.raises(UnavailableError, match="somebody else made it"):
        user_scratch()
