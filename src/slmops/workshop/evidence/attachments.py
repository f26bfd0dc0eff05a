"""The evidence that goes with a release: made, stored, checked and written out.

A release document names its attachments by digest, and the TUF targets role signs that
document; the statement is signed once more on its own, so that it can be handed on and
checked without the registry.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from securesystemslib.signer import Signer  # type: ignore[attr-defined]

from slmops.domain.errors import UntrustedError
from slmops.domain.ids import Digest
from slmops.domain.release import Attachment, AttachmentKind, Release
from slmops.registry.blobs import BlobStore, write_atomically
from slmops.registry.keys import SigningKey
from slmops.wire.codec import encode_json
from slmops.workshop.build_result import BuildResult
from slmops.workshop.evidence.bom import Product, bill_of_materials
from slmops.workshop.evidence.graph import file_label
from slmops.workshop.evidence.model_card import release_card, variant_card
from slmops.workshop.evidence.statement import (
    build_digest,
    open_statement,
    provenance_statement,
    seal_statement,
    subject_digests,
)

MEDIA_TYPES: Mapping[AttachmentKind, str] = {
    AttachmentKind.BUILD: "application/vnd.slmops.build.v1+json",
    AttachmentKind.PROVENANCE: "application/vnd.dsse.envelope.v1+json",
    AttachmentKind.BOM: "application/vnd.cyclonedx+json",
    AttachmentKind.CARD: "text/markdown",
}
"""Kind → media type of its blob."""
CARD_FILE = "README.md"
"""The product's card: what the Hub shows for a repository."""
BOM_FILE = "bom.cdx.json"
"""CycloneDX recommends this ending."""
PROVENANCE_FILE = "provenance.intoto.dsse.json"
"""The signed statement."""
BUILD_FILE = "build.json"
"""The build result: every figure, step and reason."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvidenceFile:
    """One attachment with its bytes."""

    kind: AttachmentKind
    """What it is."""
    name: str
    """File name when it is written out."""
    content: bytes
    """Its bytes."""


def evidence_files(
    build: BuildResult, product: Product, key: SigningKey | Signer
) -> tuple[EvidenceFile, ...]:
    """Make all evidence of a build; equal builds, products and keys give equal bytes.

    Raises:
        InvalidInputError: the bill of materials does not meet its schema.
    """
    statement = seal_statement(provenance_statement(build), key)
    bom = bill_of_materials(build, product)
    return (
        _file(AttachmentKind.PROVENANCE, PROVENANCE_FILE, statement),
        _file(AttachmentKind.BOM, BOM_FILE, bom),
        *card_files(build, product),
        _file(AttachmentKind.BUILD, BUILD_FILE, encode_json(build)),
    )


def card_files(build: BuildResult, product: Product) -> Iterator[EvidenceFile]:
    """Yield the product's card and one for each variant."""
    whole = release_card(build, product).encode()
    yield _file(AttachmentKind.CARD, CARD_FILE, whole)
    for variant in build.variants:
        text = variant_card(build, variant, product).encode()
        yield _file(AttachmentKind.CARD, f"{file_label(variant.card)}.md", text)


def store_evidence(
    files: Sequence[EvidenceFile], blobs: BlobStore
) -> tuple[Attachment, ...]:
    """Store files as blobs and return how a release names them."""
    return tuple(
        Attachment(
            kind=file.kind,
            name=file.name,
            media_type=MEDIA_TYPES[file.kind],
            digest=blobs.put_bytes(file.content),
            bytes=len(file.content),
        )
        for file in files
    )


def verify_evidence(
    release: Release, blobs: BlobStore, targets_keys: Sequence[str]
) -> tuple[str, ...]:
    """Check a release's attachments, and say in words what holds.

    Digests are checked for all; the statement's signature, that it speaks of this
    release's variants and no others, and that it describes the build which the
    release names.

    Args:
        release: from the registry, its signatures checked.
        blobs: of the registry.
        targets_keys: trusted public keys of the TUF targets role, hex or PEM.

    Raises:
        UntrustedError: anything differs.
        NotFoundError: an attachment's blob is missing.
    """
    said = []
    for attachment in release.attachments:
        content = blobs.read_bytes(attachment.digest)
        if len(content) != attachment.bytes:
            raise UntrustedError(
                f"attachment {attachment.name} must have {attachment.bytes} bytes,"
                f" got {len(content)}"
            )
        if attachment.kind is AttachmentKind.PROVENANCE:
            _check_statement(release, content, targets_keys)
            said.append("provenance signed by the targets key, of these variants")
    if release.attachments:
        said.append(f"{len(release.attachments)} attachments whole")
    return tuple(said)


def write_evidence(release: Release, blobs: BlobStore, folder: Path) -> dict[str, Path]:
    """Write a release's attachments as files; each is checked against its digest.

    Returns:
        Name → path.

    Raises:
        NotFoundError: a blob is missing.
        UntrustedError: a blob is damaged.
    """
    contents = {one.name: blobs.read_bytes(one.digest) for one in release.attachments}
    for name, content in contents.items():
        write_atomically(folder / name, content)
    return {name: folder / name for name in contents}


def _check_statement(
    release: Release, content: bytes, targets_keys: Sequence[str]
) -> None:
    statement = open_statement(content, targets_keys)
    wanted = {digest for variant in release.variants for digest, _ in variant.artefacts}
    found: frozenset[Digest] = subject_digests(statement)
    if found != wanted:
        raise UntrustedError(
            f"provenance of release {release.label} must speak of its"
            f" {len(wanted)} artefacts, it names {len(found & wanted)} of them and"
            f" {len(found - wanted)} others"
        )
    if build_digest(statement) != release.build:
        raise UntrustedError(
            f"provenance of release {release.label} must describe build"
            f" {release.build}, got {build_digest(statement)[:80]}"
        )


def _file(kind: AttachmentKind, name: str, content: bytes) -> EvidenceFile:
    return EvidenceFile(kind=kind, name=name, content=content)
