"""The catalog: immutable releases, deterministic bytes, every flipped bit found."""

import dataclasses
import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tuf.api.metadata import Metadata

from slmops.domain.errors import ConflictError, NotFoundError, UntrustedError
from slmops.domain.runtime_settings import RuntimeSettings
from slmops.registry.blobs import BlobStore, bytes_digest
from slmops.registry.catalog import Catalog
from slmops.registry.keys import SigningKey
from slmops.registry.signing import OnlineKeys, ReleaseKeys
from slmops.testing.sample_release import (
    DAY_S,
    SAMPLE_TIME,
    PublishedSample,
    publish_sample,
    sample_release,
)


def tree_digest(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    state = hashlib.sha256()
    for path in files:
        state.update(str(path.relative_to(folder)).encode() + b"\0")
        state.update(hashlib.sha256(path.read_bytes()).digest())
    return state.hexdigest()


def metadata_of(catalog: Catalog, name: str) -> Metadata:  # type: ignore[type-arg]
    return Metadata.from_file(str(catalog.root / "metadata" / name))


def test_a_published_release_is_loaded_as_it_was(tmp_path: Path) -> None:
    sample = publish_sample(tmp_path)
    release, digest = sample.catalog.load("sample-1")
    assert release == sample.releases[0]
    assert sample.catalog.labels() == ("sample-1",)
    assert sample.catalog.verify("sample-1").digest == digest


def test_publishing_in_two_folders_gives_the_same_bytes(tmp_path: Path) -> None:
    releases = [sample_release(1), sample_release(2)]
    first = publish_sample(tmp_path / "a", releases)
    second = publish_sample(tmp_path / "b", releases, keys=first.keys)
    assert tree_digest(first.catalog.root) == tree_digest(second.catalog.root)


def test_publishing_again_changes_nothing(tmp_path: Path) -> None:
    sample = publish_sample(tmp_path)
    before = tree_digest(sample.catalog.root)
    publish_sample(tmp_path, keys=sample.keys)
    assert tree_digest(sample.catalog.root) == before


def test_a_label_never_gets_another_document(tmp_path: Path) -> None:
    sample = publish_sample(tmp_path)
    changed = dataclasses.replace(sample.releases[0], created_at=SAMPLE_TIME + 1)
    before = tree_digest(sample.catalog.root)
    with pytest.raises(ConflictError, match="releases never change"):
        publish_sample(tmp_path, [changed], keys=sample.keys)
    assert tree_digest(sample.catalog.root) == before


def test_an_unknown_label_names_the_known_ones(tmp_path: Path) -> None:
    sample = publish_sample(tmp_path)
    with pytest.raises(NotFoundError, match="sample-1"):
        sample.catalog.load("sample-9")


def test_an_empty_registry_has_no_releases(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path)
    assert catalog.labels() == ()
    with pytest.raises(NotFoundError, match="known: none"):
        catalog.load("sample-1")


def test_a_damaged_artefact_is_not_published(tmp_path: Path) -> None:
    release = sample_release()
    blobs = BlobStore(tmp_path)
    for content in (b"artefact of small, version 1", b"artefact of large, version 1"):
        blobs.put_bytes(content)
    blobs.path(release.variants[1].digest).write_bytes(b"artefact of LARGE, version 1")
    keys = ReleaseKeys.load_or_create(tmp_path / "keys", now=SAMPLE_TIME)
    catalog = Catalog(tmp_path / "registry")
    with pytest.raises(UntrustedError, match="damaged"):
        catalog.publish(release, blobs, keys)
    assert catalog.labels() == ()


def test_a_run_killed_before_the_commit_is_completed_by_publishing_again(
    tmp_path: Path,
) -> None:
    releases = [sample_release(1), sample_release(2)]
    whole = publish_sample(tmp_path / "whole", releases)
    killed = publish_sample(tmp_path / "killed", releases[:1], keys=whole.keys)
    committed = (killed.catalog.root / "metadata" / "timestamp.json").read_bytes()
    publish_sample(tmp_path / "killed", releases[1:], keys=whole.keys)
    (killed.catalog.root / "metadata" / "timestamp.json").write_bytes(committed)
    assert killed.catalog.labels() == ("sample-1",)
    publish_sample(tmp_path / "killed", releases[1:], keys=whole.keys)
    assert tree_digest(killed.catalog.root) == tree_digest(whole.catalog.root)


def test_foreign_keys_cannot_add_a_release(tmp_path: Path) -> None:
    sample = publish_sample(tmp_path / "ours")
    other = publish_sample(tmp_path / "theirs")
    with pytest.raises(UntrustedError, match="other keys"):
        publish_sample(tmp_path / "ours", [sample_release(2)], keys=other.keys)
    assert sample.catalog.labels() == ("sample-1",)


def test_targets_slipped_into_the_folder_are_not_signed(tmp_path: Path) -> None:
    sample = publish_sample(tmp_path)
    path = sample.catalog.root / "metadata" / "1.targets.json"
    path.write_bytes(path.read_bytes().replace(b"sample-1.json", b"sample-7.json"))
    with pytest.raises(UntrustedError):
        publish_sample(tmp_path, [sample_release(2)], keys=sample.keys)


def test_the_index_and_its_manifests_are_a_valid_oci_layout(tmp_path: Path) -> None:
    sample = publish_sample(tmp_path, [sample_release(1), sample_release(2)])
    root = sample.catalog.root
    layout = json.loads((root / "oci-layout").read_text())
    assert layout == {"imageLayoutVersion": "1.0.0"}
    index = json.loads((root / "index.json").read_text())
    assert index["schemaVersion"] == 2
    assert index["mediaType"] == "application/vnd.oci.image.index.v1+json"
    names = [
        entry["annotations"]["org.opencontainers.image.ref.name"]
        for entry in index["manifests"]
    ]
    assert names == ["sample-1", "sample-2"]
    for entry in index["manifests"]:
        image = follow(root, entry)
        assert len(image["manifests"]) == 2
        for descriptor in image["manifests"]:
            manifest = follow(root, descriptor)
            assert manifest["artifactType"] == (
                "application/vnd.cncf.model.manifest.v1+json"
            )
            config = follow(root, manifest["config"])
            assert set(config) == {"descriptor", "config", "modelfs"}
            assert config["modelfs"]["diffIds"] == [
                layer["digest"] for layer in manifest["layers"]
            ]
            for layer in manifest["layers"]:
                blob = root / "blobs/sha256" / layer["digest"].removeprefix("sha256:")
                assert blob.stat().st_size == layer["size"]
                assert layer["annotations"]["org.cncf.model.filepath"]


def follow(root: Path, descriptor: dict) -> dict:  # type: ignore[type-arg]
    name = descriptor["digest"].removeprefix("sha256:")
    content = (root / "blobs" / "sha256" / name).read_bytes()
    assert len(content) == descriptor["size"]
    assert hashlib.sha256(content).hexdigest() == name
    found: dict = json.loads(content)  # type: ignore[type-arg]
    return found


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> PublishedSample:
    sample = publish_sample(tmp_path_factory.mktemp("flip"))
    assert sample.catalog.verify("sample-1").blobs == 8
    return sample


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_flipped_bit_of_what_was_published_is_found(
    data: st.DataObject, published: PublishedSample
) -> None:
    root = published.catalog.root
    files = sorted(
        path for path in root.rglob("*") if path.is_file() and path.name != ".lock"
    )
    path = data.draw(st.sampled_from(files))
    content = path.read_bytes()
    bit = data.draw(st.integers(0, len(content) * 8 - 1))
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << (bit % 8)
    path.write_bytes(changed)
    try:
        with pytest.raises(UntrustedError):
            published.catalog.verify("sample-1")
    finally:
        path.write_bytes(content)


def test_metadata_holds_as_long_as_its_role_says(tmp_path: Path) -> None:
    sample = publish_sample(tmp_path)
    for name, days in (
        ("1.root.json", 365),
        ("1.targets.json", 365),
        ("1.snapshot.json", 30),
        ("timestamp.json", 7),
    ):
        expires = metadata_of(sample.catalog, name).signed.expires
        left = expires - datetime.fromtimestamp(SAMPLE_TIME, UTC)
        assert left.days == days


def test_the_timestamp_is_signed_anew_only_when_it_wears_out(tmp_path: Path) -> None:
    sample = publish_sample(tmp_path)
    online = OnlineKeys.load(sample.workspace.keys)
    assert not sample.catalog.refresh_timestamp(online, SAMPLE_TIME + DAY_S)
    assert sample.catalog.refresh_timestamp(online, SAMPLE_TIME + 5 * DAY_S)
    timestamp = metadata_of(sample.catalog, "timestamp.json").signed
    assert timestamp.version == 2
    assert metadata_of(sample.catalog, "1.snapshot.json").signed.version == 1
    assert not (sample.catalog.root / "metadata" / "2.snapshot.json").exists()
    assert sample.catalog.refresh_timestamp(online, SAMPLE_TIME + 20 * DAY_S)
    assert metadata_of(sample.catalog, "2.snapshot.json").signed.version == 2
    assert sample.catalog.verify("sample-1").blobs


def test_a_root_that_wears_out_is_renewed_by_the_next_release(tmp_path: Path) -> None:
    sample = publish_sample(tmp_path)
    later = SAMPLE_TIME + 300 * DAY_S
    publish_sample(tmp_path, [sample_release(2)], keys=sample.keys, now=later)
    assert metadata_of(sample.catalog, "2.root.json").signed.version == 2
    assert sample.catalog.labels() == ("sample-1", "sample-2")


def test_keys_are_private_and_never_replaced(tmp_path: Path) -> None:
    keys = ReleaseKeys.load_or_create(tmp_path / "keys", now=SAMPLE_TIME)
    again = ReleaseKeys.load_or_create(tmp_path / "keys", now=SAMPLE_TIME + DAY_S)
    assert again.targets.public_key == keys.targets.public_key
    assert again.root_json == keys.root_json
    for path in (tmp_path / "keys").glob("*.key"):
        assert path.stat().st_mode & 0o777 == 0o600
    (tmp_path / "keys" / "targets.key").unlink()
    with pytest.raises(NotFoundError, match=r"targets\.key"):
        ReleaseKeys.load_or_create(tmp_path / "keys", now=SAMPLE_TIME)
    assert OnlineKeys.load(tmp_path / "keys").director.public_hex


def test_an_encrypted_key_needs_its_passphrase(tmp_path: Path) -> None:
    keys = ReleaseKeys.load_or_create(tmp_path, now=SAMPLE_TIME, passphrase="secret")
    with pytest.raises(UntrustedError):
        ReleaseKeys.load_or_create(tmp_path, now=SAMPLE_TIME)
    again = ReleaseKeys.load_or_create(tmp_path, now=SAMPLE_TIME, passphrase="secret")
    assert again.director.public_hex == keys.director.public_hex


def test_of_many_that_create_a_key_at_once_one_wins(tmp_path: Path) -> None:
    def create(_: int) -> str | None:
        try:
            return SigningKey.create(tmp_path / "root.key").public_hex
        except ConflictError:
            return None

    with ThreadPoolExecutor(8) as pool:
        made = [key for key in pool.map(create, range(8)) if key]
    assert made == [SigningKey.load(tmp_path / "root.key").public_hex]
    assert [path.name for path in tmp_path.iterdir()] == ["root.key"]


def test_a_draft_is_published_with_the_variant_that_runs_with_it(
    tmp_path: Path,
) -> None:
    draft = b"a smaller model"
    plain = sample_release()
    runs_with = RuntimeSettings(draft=bytes_digest(draft), draft_bytes=len(draft))
    variants = tuple(
        dataclasses.replace(variant, settings=runs_with) for variant in plain.variants
    )
    release = dataclasses.replace(plain, variants=variants)
    sample = publish_sample(tmp_path, [release], artefacts=[draft])
    assert sample.catalog.blobs.read_bytes(bytes_digest(draft)) == draft
    without = publish_sample(tmp_path / "plain")
    found = sample.catalog.verify("sample-1")
    assert found.blobs == without.catalog.verify("sample-1").blobs + 1
    path = sample.catalog.blobs.path(bytes_digest(draft))
    path.write_bytes(b"another model !")
    with pytest.raises(UntrustedError, match="damaged"):
        sample.catalog.verify("sample-1")
