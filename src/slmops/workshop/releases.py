"""From a build's evidence to a release document; signing and publishing come after."""

from slmops.domain.errors import ConflictError, OverBudgetError
from slmops.domain.release import ForcedRelease, Release
from slmops.registry.blobs import BlobStore
from slmops.registry.workspace import Workspace
from slmops.wire.codec import document_digest
from slmops.workshop.build_result import BuildResult


def compose_release(
    workspace: Workspace,
    build: BuildResult,
    version: int,
    previous: int | None,
    now: float,
    forced: str | None = None,
) -> Release:
    """Make the release document of a build.

    Args:
        workspace: holds the variants' artefacts.
        build: the evidence.
        version: 1, 2, 3 …
        previous: version it follows; None for the first.
        now: Unix time, seconds.
        forced: why it may be below the quality floor; ignored when it is not below.

    Raises:
        OverBudgetError: below the quality floor and not forced; lists what is violated.
        ConflictError: the version does not follow the previous one.
        NotFoundError: an artefact is missing.
        UntrustedError: an artefact's bytes have changed.
        InvalidInputError: the reason is blank.
    """
    if previous is not None and version <= previous:
        raise ConflictError(
            f"release version must be above the previous {previous}, got {version}"
        )
    violations = release_violations(build)
    if violations and forced is None:
        raise OverBudgetError(
            "the build is below the quality floor: "
            + "; ".join(violations)
            + ". To release it all the same, force it with a reason"
        )
    blobs = BlobStore(workspace.blobs)
    for variant in build.variants:
        blobs.verify(variant.digest)
    return Release(
        name=build.blueprint.name,
        version=version,
        created_at=now,
        blueprint=build.blueprint,
        model=build.model,
        variants=build.variants,
        golden=build.golden,
        build=document_digest(build),
        previous=previous,
        forced=(
            ForcedRelease(reason=forced, violations=violations)
            if violations and forced is not None
            else None
        ),
    )


def release_violations(build: BuildResult) -> tuple[str, ...]:
    """Say what the quality floor has against a build, class by class."""
    return tuple(
        f"class {selection.device_class}, {selection.quantization}: {violation}"
        for selection in build.selection
        for violation in selection.violations
    )
