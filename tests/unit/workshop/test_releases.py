"""Releases out of builds: versions go up, floors hold, exceptions carry their reason."""

from pathlib import Path

import pytest

from slmops.domain.blueprint import QualityFloor
from slmops.domain.errors import (
    ConflictError,
    InvalidInputError,
    NotFoundError,
    OverBudgetError,
    UntrustedError,
)
from slmops.domain.release import Release
from slmops.registry.blobs import BlobStore
from slmops.registry.workspace import Workspace
from slmops.testing.sample_build import SampleFigures, sample_build
from slmops.wire.codec import document_digest
from slmops.workshop.build_result import BuildResult
from slmops.workshop.releases import compose_release

NOW = 1_760_000_000.0
BAD = (
    SampleFigures(name="Q8_0", kld=0.0036, mb=144.8, same_top1=0.96, eligible=False),
    SampleFigures(name="Q2_K", kld=0.9, mb=80.0, same_top1=0.4),
)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(root=tmp_path)


def good_build(workspace: Workspace) -> BuildResult:
    return sample_build(blobs=BlobStore(workspace.blobs))


def bad_build(workspace: Workspace) -> BuildResult:
    return sample_build(BAD, below_floor=True, blobs=BlobStore(workspace.blobs))


def composed(
    workspace: Workspace, build: BuildResult, forced: str | None = None
) -> Release:
    return compose_release(workspace, build, 1, None, NOW, forced)


def test_a_release_holds_the_builds_variants_and_names_its_evidence(
    workspace: Workspace,
) -> None:
    build = good_build(workspace)
    release = composed(workspace, build)
    assert release.variants == build.variants
    assert release.build == document_digest(build)
    assert release.golden == build.golden
    assert release.created_at == NOW
    assert release.forced is None


def test_every_class_of_the_blueprint_has_exactly_one_variant(
    workspace: Workspace,
) -> None:
    release = composed(workspace, good_build(workspace))
    served = [name for variant in release.variants for name in variant.classes]
    assert sorted(served) == ["large", "small"]


def test_below_the_floor_is_refused_and_says_what_is_violated(
    workspace: Workspace,
) -> None:
    with pytest.raises(OverBudgetError, match=r"KL divergence.*small.*same-top-1"):
        composed(workspace, bad_build(workspace))


def test_a_forced_release_records_the_reason_and_the_violations(
    workspace: Workspace,
) -> None:
    release = composed(workspace, bad_build(workspace), "trial of the alarm")
    assert release.forced is not None
    assert release.forced.reason == "trial of the alarm"
    assert len(release.forced.violations) == 2
    assert all("Q2_K" in text for text in release.forced.violations)


@pytest.mark.parametrize("reason", ["", "  \n"])
def test_a_forced_release_needs_words(workspace: Workspace, reason: str) -> None:
    with pytest.raises(InvalidInputError, match="needs a reason"):
        composed(workspace, bad_build(workspace), reason)


def test_a_reason_nobody_needed_is_not_recorded(workspace: Workspace) -> None:
    assert composed(workspace, good_build(workspace), "just in case").forced is None


def test_a_build_below_the_floor_whose_choice_meets_it_needs_no_force(
    workspace: Workspace,
) -> None:
    build = sample_build(below_floor=True, blobs=BlobStore(workspace.blobs))
    assert composed(workspace, build).forced is None


@pytest.mark.parametrize("version", [1, 2])
def test_a_version_must_follow_the_previous(workspace: Workspace, version: int) -> None:
    with pytest.raises(ConflictError, match="above the previous 2"):
        compose_release(workspace, good_build(workspace), version, 2, NOW)


def test_a_missing_artefact_is_not_released(workspace: Workspace) -> None:
    build = good_build(workspace)
    BlobStore(workspace.blobs).remove(build.variants[0].digest)
    with pytest.raises(NotFoundError):
        composed(workspace, build)


def test_a_changed_artefact_is_not_released(workspace: Workspace) -> None:
    build = good_build(workspace)
    path = BlobStore(workspace.blobs).path(build.variants[0].digest)
    path.chmod(0o644)
    path.write_bytes(b"something else")
    with pytest.raises(UntrustedError):
        composed(workspace, build)


def test_a_stricter_floor_makes_the_same_figures_a_violation(
    workspace: Workspace,
) -> None:
    strict = QualityFloor(max_kld_times_8bit=2, min_same_top1=0.7)
    build = sample_build(
        quality=strict, below_floor=True, blobs=BlobStore(workspace.blobs)
    )
    with pytest.raises(OverBudgetError, match=r"at most 0\.0072 is allowed"):
        composed(workspace, build)
