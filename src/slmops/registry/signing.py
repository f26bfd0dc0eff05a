"""Who signs a registry: the keys of the TUF roles and of the director.

Roles as in the TUF specification 1.0: root and targets sign releases and may stay
offline; snapshot and timestamp keep the metadata fresh, and the director signs which
device should run what: these three live where the control plane runs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

from securesystemslib.signer import (  # type: ignore[attr-defined]
    CryptoSigner,
    SSlibKey,
)
from tuf.api.metadata import (  # type: ignore[attr-defined]
    Metadata,
    Root,
    Signed,
    Snapshot,
    Targets,
    Timestamp,
)

from slmops.domain.errors import ConflictError, NotFoundError
from slmops.registry.blobs import write_atomically
from slmops.registry.keys import SigningKey

LIFE: Mapping[str, timedelta] = {
    Root.type: timedelta(days=365),
    Targets.type: timedelta(days=365),
    Snapshot.type: timedelta(days=30),
    Timestamp.type: timedelta(days=7),
}
"""How long each role's metadata holds; short where a key is online and signs often."""

PINNED_ROOT = "root.json"
"""File in the keys folder: root metadata version 1, the anchor clients pin."""

_ONLINE = (Snapshot.type, Timestamp.type, "director")
_OFFLINE = (Root.type, Targets.type)


@dataclass(frozen=True, kw_only=True, slots=True)
class OnlineKeys:
    """What the control plane needs to keep a registry fresh; cannot make a release."""

    snapshot: SigningKey
    """Signs which metadata versions belong together."""
    timestamp: SigningKey
    """Signs which snapshot is the newest."""
    director: SigningKey
    """Signs assignments; no TUF role."""
    root_json: bytes
    """Root metadata version 1: public, the anchor of trust."""

    @classmethod
    def load(cls, folder: Path, *, passphrase: str | None = None) -> Self:
        """Read the keys and the pinned root.

        Raises:
            NotFoundError: a file is missing.
            UntrustedError: others may read a key, or it cannot be read.
        """
        return cls(
            root_json=read_pinned_root(folder),
            **{
                name: SigningKey.load(key_path(folder, name), passphrase=passphrase)
                for name in cls._roles()
            },
        )

    @classmethod
    def _roles(cls) -> tuple[str, ...]:
        return _ONLINE


@dataclass(frozen=True, kw_only=True, slots=True)
class ReleaseKeys(OnlineKeys):
    """All keys: what publishing a release needs."""

    root: SigningKey
    """Signs which keys hold which role."""
    targets: SigningKey
    """Signs which releases and artefacts exist."""

    @classmethod
    def load_or_create(
        cls, folder: Path, *, now: float, passphrase: str | None = None
    ) -> Self:
        """Read all keys; make them and the first root metadata on first use.

        Args:
            folder: made with mode 0700.
            now: Unix time, seconds; the root metadata holds a year from here.
            passphrase: encrypts keys that are made here, opens those that exist.

        Raises:
            NotFoundError: the pinned root exists but a key is missing: a new key would
                not be trusted by anyone.
            UntrustedError: as `OnlineKeys.load`.
        """
        if not (folder / PINNED_ROOT).exists():
            _create(folder, now=now, passphrase=passphrase)
        return cls.load(folder, passphrase=passphrase)

    @classmethod
    def _roles(cls) -> tuple[str, ...]:
        return _OFFLINE + _ONLINE


def key_path(folder: Path, role: str) -> Path:
    """Return the file of a role's private key."""
    return folder / f"{role}.key"


def read_pinned_root(folder: Path) -> bytes:
    """Return root metadata version 1 from a keys folder.

    Raises:
        NotFoundError: no keys were made there yet.
    """
    path = folder / PINNED_ROOT
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise NotFoundError(
            f"{path} does not exist; `slmops release create` makes keys on first use"
        ) from None


def signed_bytes(signed: Signed, key: SigningKey) -> bytes:
    """Return metadata with one signature; equal content and key give equal bytes."""
    metadata: Metadata[Any] = Metadata(signed)
    metadata.sign(CryptoSigner(key.private))
    return metadata.to_bytes()


def expiry(role: str, now: float) -> datetime:
    """Return when metadata of `role` signed at `now` stops to hold."""
    return datetime.fromtimestamp(int(now), UTC) + LIFE[role]


def wears_out(signed: Signed, now: float) -> bool:
    """Tell whether less than half of the metadata's life is left.

    Half leaves an unreachable control plane days to come back before devices refuse.
    """
    left = signed.expires - datetime.fromtimestamp(now, UTC)
    return left < LIFE[signed.type] / 2


def _create(folder: Path, *, now: float, passphrase: str | None) -> None:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    keys = {}
    for role in _OFFLINE + _ONLINE:
        path = key_path(folder, role)
        # A run that was killed before the root was written left some keys: they are
        # fine, nobody has trusted them yet.
        try:
            keys[role] = SigningKey.create(path, passphrase=passphrase)
        except ConflictError:
            keys[role] = SigningKey.load(path, passphrase=passphrase)
    root = Root(consistent_snapshot=True, expires=expiry(Root.type, now))
    for role in (Root.type, Targets.type, Snapshot.type, Timestamp.type):
        root.add_key(SSlibKey.from_crypto(keys[role].private.public_key()), role)
    write_atomically(folder / PINNED_ROOT, signed_bytes(root, keys[Root.type]))
