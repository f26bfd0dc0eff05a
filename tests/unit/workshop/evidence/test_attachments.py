"""A release's evidence: attached, signed, checked, and written out as it was."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from slmops.domain.errors import ConflictError, InvalidInputError, UntrustedError
from slmops.domain.release import Attachment, AttachmentKind, Release
from slmops.registry.blobs import bytes_digest
from slmops.testing.sample_build import candidate_content
from slmops.testing.sample_evidence import released_build
from slmops.testing.sample_release import digest_of, sample_release
from slmops.wire.codec import decode_json
from slmops.workshop.build_result import BuildResult
from slmops.workshop.evidence.attachments import (
    verify_evidence,
    write_evidence,
)
from slmops.workshop.evidence.statement import provenance_statement, seal_statement
from slmops.workshop.releases import create_release

NOW = 1_760_000_000.0


class Published:
    """One release of the sample build in a registry of its own."""

    def __init__(self, folder: Path) -> None:
        sample, self.build = released_build(folder, now=NOW)
        self.workspace, self.catalog, self.keys = (
            sample.workspace,
            sample.catalog,
            sample.keys,
        )
        (self.release,) = sample.releases

    def verify(self, release: Release | None = None) -> tuple[str, ...]:
        return verify_evidence(
            release or self.catalog.load(self.release.label)[0],
            self.catalog.blobs,
            self.catalog.targets_keys(),
        )


@pytest.fixture
def published(tmp_path: Path) -> Published:
    return Published(tmp_path)


def test_a_release_is_published_with_all_its_evidence(published: Published) -> None:
    loaded, _ = published.catalog.load("sample-1")
    assert loaded == published.release
    kinds = [attachment.kind for attachment in loaded.attachments]
    assert set(kinds) == set(AttachmentKind)
    assert kinds.count(AttachmentKind.CARD) == 1 + len(loaded.variants)
    assert published.catalog.verify("sample-1").blobs > len(kinds)
    assert any("provenance signed" in line for line in published.verify())


def test_the_attached_build_is_the_one_the_release_names(published: Published) -> None:
    (attached,) = [
        one for one in published.release.attachments if one.kind is AttachmentKind.BUILD
    ]
    assert attached.digest == published.release.build
    content = published.catalog.blobs.read_bytes(attached.digest)
    assert decode_json(content, BuildResult, where="build") == published.build


def test_whoever_copies_the_image_copies_the_evidence(published: Published) -> None:
    index = json.loads((published.catalog.root / "index.json").read_bytes())
    blobs = published.catalog.blobs
    image = json.loads(blobs.read_bytes(index["manifests"][0]["digest"]))
    (manifest,) = [
        json.loads(blobs.read_bytes(entry["digest"]))
        for entry in image["manifests"]
        if entry["artifactType"] == "application/vnd.slmops.evidence.v1"
    ]
    assert blobs.read_bytes(manifest["config"]["digest"]) == b"{}"
    named = {
        layer["annotations"]["org.opencontainers.image.title"]: layer["digest"]
        for layer in manifest["layers"]
    }
    assert named == {a.name: a.digest for a in published.release.attachments}


def test_equal_builds_are_released_with_equal_bytes(tmp_path: Path) -> None:
    one = Published(tmp_path / "one")
    again = Published(tmp_path / "one" / "again")
    same = [
        a for a in one.release.attachments if a.kind is not AttachmentKind.PROVENANCE
    ]
    assert set(same) <= set(again.release.attachments)
    with pytest.raises(ConflictError, match="holds this build already"):
        create_release(one.workspace, one.build, one.keys, NOW)


def test_written_files_are_the_attached_bytes(
    published: Published, tmp_path: Path
) -> None:
    files = write_evidence(published.release, published.catalog.blobs, tmp_path / "out")
    assert "README.md" in files
    for attachment in published.release.attachments:
        content = files[attachment.name].read_bytes()
        assert bytes_digest(content) == attachment.digest
    assert {path.parent for path in files.values()} == {tmp_path / "out"}


def _damage(published: Published) -> Release:
    attachment = published.release.attachments[1]
    path = published.catalog.blobs.path(attachment.digest)
    content = bytearray(path.read_bytes())
    content[10] ^= 1
    path.write_bytes(content)
    return published.release


def _wrong_size(published: Published) -> Release:
    first, *rest = published.release.attachments
    return replace(
        published.release, attachments=(replace(first, bytes=first.bytes + 1), *rest)
    )


def _other_variants(published: Published) -> Release:
    (kept, *_) = published.release.variants
    names = tuple(c.name for c in published.release.classes)
    return replace(published.release, variants=(replace(kept, classes=names),))


def _other_build(published: Published) -> Release:
    return replace(published.release, build=digest_of(b"another build"))


def _other_signer(published: Published) -> Release:
    envelope = seal_statement(
        provenance_statement(published.build), published.keys.director
    )
    digest = published.catalog.blobs.put_bytes(envelope)
    first, *rest = published.release.attachments
    forged = replace(first, digest=digest, bytes=len(envelope))
    return replace(published.release, attachments=(forged, *rest))


WRONG: dict[str, tuple[Callable[[Published], Release], str]] = {
    "a flipped bit": (_damage, "damaged"),
    "another size": (_wrong_size, "must have"),
    "other variants": (_other_variants, "must speak of its 1 artefacts"),
    "another build": (_other_build, "must describe build"),
    "the director's signature": (_other_signer, "not signed by the targets key"),
}


@pytest.mark.parametrize("case", WRONG)
def test_evidence_that_does_not_hold_is_not_believed(
    case: str, published: Published
) -> None:
    change, message = WRONG[case]
    with pytest.raises(UntrustedError, match=message):
        published.verify(change(published))


def test_damage_is_found_by_the_registrys_own_check_too(published: Published) -> None:
    _damage(published)
    with pytest.raises(UntrustedError, match="damaged"):
        published.catalog.verify("sample-1")


def test_a_release_without_evidence_still_holds(published: Published) -> None:
    assert published.verify(replace(published.release, attachments=())) == ()
    assert published.catalog.targets_keys() == (
        published.keys.targets.public_key.keyval["public"],
    )


@pytest.mark.parametrize("name", ["../a", "/etc/a", "a/b", ".a", "", " a", "a\\b"])
def test_an_attachment_cannot_be_written_elsewhere(name: str) -> None:
    with pytest.raises(InvalidInputError, match="no file's"):
        attachment(name)


def test_two_attachments_of_one_name_are_refused() -> None:
    twice = (attachment("a"), attachment("a"))
    with pytest.raises(InvalidInputError, match="used twice"):
        replace(sample_release(), attachments=twice)


def attachment(name: str) -> Attachment:
    return Attachment(
        kind=AttachmentKind.CARD,
        name=name,
        media_type="text/markdown",
        digest=digest_of(candidate_content("x")),
        bytes=1,
    )
