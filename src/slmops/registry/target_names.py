"""How releases and artefacts are named as TUF targets."""

from collections.abc import Iterable

from tuf.api.metadata import TargetFile  # type: ignore[attr-defined]

from slmops.domain.errors import InvalidInputError, UntrustedError
from slmops.domain.ids import Digest, check_name, digest_hex, parse_digest
from slmops.domain.release import Release
from slmops.registry.signed_state import SignedState


def release_target(label: str) -> str:
    """Return the TUF target path of a release.

    Raises:
        InvalidInputError: not a valid label.

    >>> release_target("assistant-2")
    'releases/assistant-2.json'
    """
    name, _, version = label.rpartition("-")
    check_name(name, where="release label's name")
    if not (version.isascii() and version.isdigit()):
        raise InvalidInputError(
            f"release label must be a name, '-' and a version, got {label[:80]!r}"
        )
    return f"releases/{label}.json"


def blob_target(digest: Digest) -> str:
    """Return the TUF target path of an artefact.

    >>> blob_target(Digest("sha256:" + "0" * 64))[:16]
    'blobs/sha256/000'
    """
    return f"blobs/sha256/{digest_hex(parse_digest(digest))}"


def release_blobs(release: Release) -> dict[Digest, int]:
    """Return all that a release names, with sizes."""
    served = (pair for variant in release.variants for pair in variant.artefacts)
    return {**dict(served), **{a.digest: a.bytes for a in release.attachments}}


def release_targets(release: Release, document: bytes) -> list[TargetFile]:
    """Return the targets of a release: its document and every artefact."""
    targets = [
        TargetFile.from_data(release_target(release.label), document, ["sha256"])
    ]
    for variant in release.variants:
        for digest, size in variant.artefacts:
            hashes = {"sha256": digest_hex(digest)}
            targets.append(TargetFile(size, hashes, blob_target(digest)))
    return targets


def signed_digest(state: SignedState | None, label: str) -> Digest | None:
    """Return the signed digest of a release's document; None for no such release.

    Raises:
        UntrustedError: it was signed without a SHA-256.
    """
    target = state.targets.get(f"releases/{label}.json") if state else None
    if target is None:
        return None
    if "sha256" not in target.hashes:
        raise UntrustedError(f"release {label}: its signed target has no SHA-256")
    return Digest("sha256:" + target.hashes["sha256"])


def signed_labels(state: SignedState | None) -> tuple[str, ...]:
    """Return the labels of all signed releases, sorted."""
    paths: Iterable[str] = state.targets if state else ()
    return tuple(
        sorted(
            path.removeprefix("releases/").removesuffix(".json")
            for path in paths
            if path.startswith("releases/")
        )
    )
