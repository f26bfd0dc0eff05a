"""Finished builds are found by digest, by its beginning, and as the latest."""

from dataclasses import replace
from pathlib import Path

import pytest

from slmops.domain.errors import InvalidInputError, NotFoundError
from slmops.domain.ids import digest_hex
from slmops.registry.blobs import BlobStore
from slmops.registry.workspace import Workspace
from slmops.testing.sample_build import SAMPLE_FIGURES, sample_build
from slmops.wire.codec import document_digest
from slmops.workshop.builds import load_build, save_build


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(root=tmp_path)


def test_a_saved_build_comes_back_whole(workspace: Workspace) -> None:
    build = sample_build()
    digest = save_build(workspace, build)
    assert digest == document_digest(build)
    for name in ("latest", digest, digest_hex(digest), digest_hex(digest)[:8]):
        assert load_build(workspace, name) == build
    assert BlobStore(workspace.blobs).has(digest)


def test_the_latest_is_the_one_that_was_saved_last(workspace: Workspace) -> None:
    first, second = sample_build(), sample_build(SAMPLE_FIGURES[:3])
    for build in (first, second, first):
        save_build(workspace, build)
    assert load_build(workspace) == first
    assert load_build(workspace, document_digest(second)) == second


def test_no_build_says_how_to_make_one(workspace: Workspace) -> None:
    with pytest.raises(NotFoundError, match="slmops build BLUEPRINT"):
        load_build(workspace)


@pytest.mark.parametrize("name", ["0" * 64, "ab", "", "../../etc/passwd"])
def test_an_unknown_build_is_not_found(workspace: Workspace, name: str) -> None:
    save_build(workspace, sample_build())
    with pytest.raises(NotFoundError):
        load_build(workspace, name)


def test_a_beginning_that_fits_two_builds_is_refused(workspace: Workspace) -> None:
    digest = save_build(workspace, sample_build())
    path = workspace.builds / f"{digest_hex(digest)}.json"
    twin = digest_hex(digest)[:-1] + ("0" if digest[-1] != "0" else "1")
    (workspace.builds / f"{twin}.json").write_bytes(path.read_bytes())
    with pytest.raises(InvalidInputError, match="2 builds begin with it"):
        load_build(workspace, digest_hex(digest)[:10])


def test_a_damaged_build_names_its_file(workspace: Workspace) -> None:
    digest = save_build(workspace, sample_build())
    (workspace.builds / f"{digest_hex(digest)}.json").write_text('{"blueprint": 3}')
    with pytest.raises(InvalidInputError, match=digest_hex(digest)[:8]):
        load_build(workspace)


def test_equal_evidence_is_one_build(workspace: Workspace) -> None:
    one, same = sample_build(), sample_build()
    other = replace(one, machine="another machine")
    assert save_build(workspace, one) == save_build(workspace, same)
    assert save_build(workspace, other) != document_digest(one)
