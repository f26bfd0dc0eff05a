"""From a build's evidence to a signed and published release."""

from dataclasses import replace

from slmops.domain.errors import ConflictError, OverBudgetError
from slmops.domain.ids import Digest
from slmops.domain.release import ForcedRelease, Release
from slmops.registry.bins import BinSettings
from slmops.registry.blobs import BlobStore
from slmops.registry.catalog import Catalog
from slmops.registry.signing import ReleaseKeys
from slmops.registry.workspace import Workspace
from slmops.wire.codec import document_digest
from slmops.workshop.build_result import BuildResult
from slmops.workshop.evidence.attachments import evidence_files, store_evidence
from slmops.workshop.evidence.bom import Product


def create_release(
    workspace: Workspace,
    build: BuildResult,
    keys: ReleaseKeys,
    now: float,
    forced: str | None = None,
    bins: BinSettings | None = None,
) -> tuple[Release, Digest]:
    """Compose, sign and publish the next version of a build's product, with its evidence.

    Killed midway it has published nothing; run again it begins anew.

    Args:
        workspace: holds artefacts, and takes the release into its registry.
        build: the evidence.
        keys: of all roles.
        now: Unix time, seconds.
        forced: why it may be below the quality floor.
        bins: when the registry splits its targets.

    Returns:
        The release and the digest of its document.

    Raises:
        ConflictError: the latest version holds this very build.
        OverBudgetError, UntrustedError, NotFoundError: as `compose_release`.
    """
    catalog = Catalog(workspace.registry, pinned_root=keys.root_json, bins=bins)
    versions = catalog.versions(build.blueprint.name)
    previous = versions[-1] if versions else None
    if previous is not None:
        latest, _ = catalog.load(f"{build.blueprint.name}-{previous}")
        if latest.build == document_digest(build):
            raise ConflictError(
                f"release {latest.label} holds this build already; change the blueprint"
                " and build again for a new version"
            )
    release = compose_release(
        workspace, build, (previous or 0) + 1, previous, now, forced
    )
    blobs = BlobStore(workspace.blobs)
    product = Product(
        name=release.name, version=str(release.version), created_at=release.created_at
    )
    files = evidence_files(build, product, keys.targets)
    release = replace(release, attachments=store_evidence(files, blobs))
    digest = catalog.publish(release, blobs, keys)
    return release, digest


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
            "the build cannot be released: "
            + "; ".join(violations)
            + ". To release it all the same, force it with a reason"
        )
    blobs = BlobStore(workspace.blobs)
    for variant in build.variants:
        for digest, _ in variant.artefacts:
            blobs.verify(digest)
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
    """Say what the quality floor has against each chosen variant, and for whom."""
    classes: dict[str, list[str]] = {}
    for selection in build.selection:
        for violation in selection.violations:
            classes.setdefault(f"{selection.quantization}: {violation}", []).append(
                selection.device_class
            )
    return tuple(f"{what} (for {', '.join(names)})" for what, names in classes.items())
