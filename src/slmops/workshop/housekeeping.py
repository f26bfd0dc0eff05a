"""What of a workspace can go: blobs that no model, build or release refers to.

Finding and removing are apart, so that one can look first. Kept are: imported models; what
releases of this workspace's registry refer to; what builds refer to, inputs and every step
included; and steps that were finished after the newest build, because a build that was
stopped goes on from them. What is dropped can be computed again.

The registry's own files are hard links of their own and are never touched.
"""

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from slmops.domain.errors import InvalidInputError
from slmops.domain.ids import Digest
from slmops.registry.blobs import BlobStore
from slmops.registry.catalog import Catalog
from slmops.registry.workspace import Workspace
from slmops.wire.codec import encode_json
from slmops.workshop.builds import LATEST
from slmops.workshop.models import list_models
from slmops.workshop.own_folder import remove_abandoned
from slmops.workshop.steps import StepCache

YOUNG_S = 3600.0
"""Blobs younger than this stay: an import or a merge may be about to refer to them."""
_DIGEST = re.compile(rb"sha256:[0-9a-f]{64}")
_MERGE = ".merge-"


@dataclass(frozen=True, kw_only=True, slots=True)
class Keeping:
    """What is kept besides what must be."""

    builds: int | None = None
    """How many of the newest builds keep what they refer to, one at least; None: all."""
    unfinished: bool = True
    """Whether steps that no build refers to stay when they were finished after the newest
    build: a build that was stopped goes on from them."""

    def __post_init__(self) -> None:
        if self.builds is not None and self.builds < 1:
            raise InvalidInputError(
                f"the newest build is always kept: builds must be >= 1, got {self.builds}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Leftovers:
    """What can go."""

    blobs: tuple[Digest, ...]
    """Nothing that is kept refers to them."""
    blob_bytes: int
    """Disk space that removing them frees; those a registry has too free none."""
    folders: tuple[str, ...]
    """Left by killed processes, and caches."""
    folder_bytes: int
    """Disk space in them."""
    kept_blobs: int
    """How many stay."""
    kept_bytes: int
    """Size of those."""

    @property
    def bytes(self) -> int:
        """Disk space that is freed in all."""
        return self.blob_bytes + self.folder_bytes


def find_leftovers(
    workspace: Workspace, *, now: float, keeping: Keeping | None = None
) -> Leftovers:
    """Find what can go; removes nothing.

    Args:
        workspace: to look through.
        now: Unix time, seconds.
        keeping: what stays; by default all builds and unfinished work.

    Raises:
        InvalidInputError: a record is damaged: nobody knows what it refers to.
        UntrustedError: the registry's metadata is not its own.
    """
    keep = _kept(workspace, keeping or Keeping())
    blobs = BlobStore(workspace.blobs)
    gone, freed, kept, kept_bytes = [], 0, 0, 0
    for digest in blobs.digests():
        found = blobs.path(digest).stat()
        if digest in keep or now - found.st_mtime < YOUNG_S:
            kept, kept_bytes = kept + 1, kept_bytes + found.st_size
            continue
        gone.append(digest)
        freed += found.st_size if found.st_nlink == 1 else 0
    folders = [folder for folder in _folders(workspace) if folder.is_dir()]
    return Leftovers(
        blobs=tuple(gone),
        blob_bytes=freed,
        folders=tuple(str(folder) for folder in folders),
        folder_bytes=sum(map(_bytes_below, folders)),
        kept_blobs=kept,
        kept_bytes=kept_bytes,
    )


def remove_leftovers(workspace: Workspace, leftovers: Leftovers) -> None:
    """Remove what was found; only under the build lock.

    Records of steps go before what they refer to, so that a kill in between leaves
    nothing that lacks its bytes.
    """
    gone = set(leftovers.blobs)
    for path in workspace.steps.glob("*.json"):
        if gone & set(_digests_in(path.read_bytes())):
            path.unlink()
    blobs = BlobStore(workspace.blobs)
    for digest in leftovers.blobs:
        blobs.remove(digest)
    blobs.remove_partials()
    remove_abandoned(workspace.root, prefix=_MERGE)
    cache = StepCache(workspace)
    for folder in (cache.scratch, _ray_cache(workspace)):
        shutil.rmtree(folder, ignore_errors=True)


def _kept(workspace: Workspace, keeping: Keeping) -> set[Digest]:
    keep = {record.id for record in list_models(workspace)}
    for release in _releases(workspace):
        keep |= set(_digests_in(release))
    builds = _newest_builds(workspace)
    for path in builds[: keeping.builds]:
        keep |= {Digest(f"sha256:{path.stem}"), *_digests_in(path.read_bytes())}
    if keeping.unfinished:
        for path in _steps_since(workspace, builds):
            keep |= set(_digests_in(path.read_bytes()))
    return keep


def _releases(workspace: Workspace) -> Iterator[bytes]:
    if not workspace.registry.is_dir():
        return
    catalog = Catalog(workspace.registry)
    for label in catalog.labels():
        release, digest = catalog.load(label)
        yield encode_json(release) + digest.encode()


def _newest_builds(workspace: Workspace) -> list[Path]:
    """Return the files of all builds, the latest first."""
    pointer = workspace.builds / LATEST
    latest = pointer.read_text() if pointer.is_file() else ""
    return sorted(
        workspace.builds.glob("*.json"),
        key=lambda path: (f"sha256:{path.stem}" != latest, -path.stat().st_mtime_ns),
    )


def _steps_since(workspace: Workspace, builds: list[Path]) -> list[Path]:
    # A build that finds its result again writes it again, too: the newest is the latest.
    since = max((path.stat().st_mtime_ns for path in builds), default=0)
    steps = workspace.steps.glob("*.json")
    return [path for path in steps if path.stat().st_mtime_ns > since]


def _digests_in(content: bytes) -> Iterator[Digest]:
    """Yield every digest a document names, in whatever field."""
    for found in _DIGEST.findall(content):
        yield Digest(found.decode())


def _folders(workspace: Workspace) -> Iterator[Path]:
    yield StepCache(workspace).scratch
    yield _ray_cache(workspace)
    yield from workspace.root.glob(f"{_MERGE}*")


def _ray_cache(workspace: Workspace) -> Path:
    """Return where a Ray cluster of this machine keeps inputs; see `ray_executor`."""
    return workspace.steps / ".ray"


def _bytes_below(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())
