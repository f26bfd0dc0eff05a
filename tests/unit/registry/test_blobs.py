"""Blobs appear whole or not at all."""

import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmops.domain.errors import ConflictError, NotFoundError, UntrustedError
from slmops.domain.ids import Digest
from slmops.registry.blobs import BlobStore, bytes_digest
from slmops.registry.envelope import open_envelope, seal
from slmops.registry.keys import SigningKey, verify_signature


def test_bytes_files_and_streams_of_the_same_content_are_one_blob(
    tmp_path: Path,
) -> None:
    store = BlobStore(tmp_path)
    source = tmp_path / "source"
    source.write_bytes(b"weights")
    with store.writer() as writer:
        writer.write(b"weights")
    assert store.put_bytes(b"weights") == store.put_file(source) == writer.digest
    assert list(store.digests()) == [writer.digest]
    assert store.read_bytes(writer.digest) == b"weights"


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    with pytest.raises(RuntimeError, match="cut"), store.writer() as writer:
        writer.write(b"half")
        raise RuntimeError("cut")
    assert list(store.folder.iterdir()) == []


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    store.folder.mkdir(parents=True)
    (store.folder / ".partial-x").write_bytes(b"half")
    assert store.remove_partials() == 1
    assert list(store.digests()) == []


def test_damaged_and_missing_blobs_are_told_apart(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    digest = store.put_bytes(b"good")
    store.path(digest).write_bytes(b"evil")
    with pytest.raises(UntrustedError, match="damaged"):
        store.verify(digest)
    with pytest.raises(UntrustedError, match="damaged"):
        store.read_bytes(digest)
    with pytest.raises(NotFoundError, match="is not in"):
        store.path(Digest("sha256:" + "0" * 64))


def test_keys_are_private_and_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "director"
    key = SigningKey.create(path, passphrase="long words")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert SigningKey.load(path, passphrase="long words").public_hex == key.public_hex
    with pytest.raises(ConflictError, match="never overwritten"):
        SigningKey.create(path)
    with pytest.raises(UntrustedError, match="cannot be read"):
        SigningKey.load(path)
    path.chmod(0o644)
    with pytest.raises(UntrustedError, match="0600"):
        SigningKey.load(path, passphrase="long words")
    with pytest.raises(NotFoundError, match="does not exist"):
        SigningKey.load(tmp_path / "none")


@given(payload=st.binary(max_size=200))
def test_an_envelope_opens_for_its_signer_only(
    tmp_path_factory: pytest.TempPathFactory, payload: bytes
) -> None:
    folder = tmp_path_factory.mktemp("keys")
    key, other = SigningKey.create(folder / "a"), SigningKey.create(folder / "b")
    sealed = seal(payload, key)
    assert open_envelope(sealed, key.public_hex) == payload
    with pytest.raises(UntrustedError, match="not signed"):
        open_envelope(sealed, other.public_hex)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"payload": 3}', "\ud800"[:0] + "x"])
def test_a_malformed_envelope_is_untrusted(text: str) -> None:
    with pytest.raises(UntrustedError, match="envelope"):
        open_envelope(text, "00" * 32)


def test_a_signature_over_other_bytes_does_not_hold(tmp_path: Path) -> None:
    key = SigningKey.create(tmp_path / "key")
    verify_signature(key.public_hex, key.sign(b"one"), b"one")
    for public, signature in [
        (key.public_hex, key.sign(b"two")),
        ("zz", key.sign(b"one")),
        (key.public_hex, "00"),
    ]:
        with pytest.raises(UntrustedError, match="does not hold"):
            verify_signature(public, signature, b"one")


def test_digests_are_sha256() -> None:
    assert bytes_digest(b"abc").startswith("sha256:ba7816bf")


def test_tidying_up_leaves_a_running_writer_alone(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    with store.writer() as writer:
        writer.write(b"half")
        abandoned = store.folder / ".partial-abandoned"
        abandoned.write_bytes(b"left by a kill")
        assert store.remove_partials() == 1
        assert not abandoned.exists()
        writer.write(b" done")
    assert store.read_bytes(writer.digest) == b"half done"
