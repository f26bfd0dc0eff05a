"""The registry's TUF metadata files, as the side that signs them sees them.

Consistent snapshots: ``N.root.json``, ``N.targets.json`` and ``N.snapshot.json`` never
change once ``timestamp.json`` names them; replacing that one file is the commit. What
was signed before is verified before it is built upon, so that nobody who can write to
the folder gets their bytes signed.
"""

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (  # type: ignore[attr-defined]
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from slmops.domain.errors import UntrustedError
from slmops.registry.blobs import write_atomically
from slmops.registry.signing import (
    OnlineKeys,
    ReleaseKeys,
    expiry,
    signed_bytes,
    wears_out,
)

_HASHES = ["sha256"]
_Role = TypeVar("_Role", Root, Targets, Snapshot, Timestamp)


@dataclass(frozen=True, kw_only=True, slots=True)
class SignedState:
    """What the registry's metadata says now; every signature was verified."""

    root: Root
    """Newest root."""
    targets: Targets
    """Releases and artefacts that exist."""
    snapshot: Snapshot
    """Versions that belong together."""
    timestamp: Timestamp
    """The newest snapshot."""


@dataclass(frozen=True, slots=True)
class MetadataFolder:
    """The ``metadata`` folder of one registry."""

    path: Path
    """Folder of the files."""
    pinned_root: bytes
    """Root metadata version 1: the only thing trusted here."""

    def state(self) -> SignedState | None:
        """Read and verify what is signed now; None before the first release.

        Expiry is not looked at: the signer may extend what has expired.

        Raises:
            UntrustedError: a signature, hash or version does not hold.
        """
        if not (self.path / "timestamp.json").exists():
            return None
        try:
            root = self._newest_root()
            timestamp = _verified(Timestamp, self._read("timestamp.json"), root)
            snapshot_file = timestamp.snapshot_meta
            raw = self._read(f"{snapshot_file.version}.snapshot.json")
            snapshot_file.verify_length_and_hashes(raw)
            snapshot = _verified(Snapshot, raw, root)
            targets_file = snapshot.meta["targets.json"]
            raw = self._read(f"{targets_file.version}.targets.json")
            targets_file.verify_length_and_hashes(raw)
            targets = _verified(Targets, raw, root)
        except (RepositoryError, KeyError) as error:
            raise UntrustedError(
                f"registry metadata in {self.path} does not hold: {error}"
            ) from None
        return SignedState(
            root=root, targets=targets, snapshot=snapshot, timestamp=timestamp
        )

    def add_targets(
        self,
        added: Iterable[TargetFile],
        *,
        state: SignedState | None,
        keys: ReleaseKeys,
        now: float,
    ) -> None:
        """Sign new targets and commit; files a client may know already stay as they are.

        Args:
            added: targets to add.
            state: from `state`, read under the same lock.
            keys: of all roles.
            now: Unix time, seconds.
        """
        self._renew_root(state, keys=keys, now=now)
        targets = _next(state.targets, now) if state else _first(Targets(), now)
        for target in added:
            targets.targets[target.path] = target
        raw = signed_bytes(targets, keys.targets)
        write_atomically(self.path / f"{targets.version}.targets.json", raw)
        snapshot = _next(state.snapshot, now) if state else _first(Snapshot(), now)
        snapshot.meta["targets.json"] = MetaFile.from_data(
            targets.version, raw, _HASHES
        )
        timestamp = _next(state.timestamp, now) if state else _first(Timestamp(), now)
        self._commit(snapshot, timestamp, keys)

    def refresh(self, state: SignedState, *, keys: OnlineKeys, now: float) -> bool:
        """Sign snapshot and timestamp anew when half of their life is over.

        Returns:
            Whether anything was written.
        """
        if wears_out(state.snapshot, now):
            self._commit(_next(state.snapshot, now), _next(state.timestamp, now), keys)
        elif wears_out(state.timestamp, now):
            self._write_timestamp(_next(state.timestamp, now), keys)
        else:
            return False
        return True

    def root_files(self) -> Iterable[tuple[Path, bytes]]:
        """Yield path and bytes of the root files, oldest first."""
        version = 1
        while (path := self.path / f"{version}.root.json").exists():
            yield path, read_part(path)
            version += 1

    def _newest_root(self) -> Root:
        root = Metadata[Root].from_bytes(self.pinned_root).signed
        for path, raw in self.root_files():
            if path.name == "1.root.json":
                if raw != self.pinned_root:
                    raise UntrustedError(
                        f"{path} is not the pinned root: this registry was signed"
                        " with other keys"
                    )
                continue
            newer = Metadata[Root].from_bytes(raw)
            root.verify_delegate(Root.type, newer.signed_bytes, newer.signatures)
            newer.signed.verify_delegate(
                Root.type, newer.signed_bytes, newer.signatures
            )
            if newer.signed.version != root.version + 1:
                raise UntrustedError(
                    f"{path} must be version {root.version + 1},"
                    f" got {newer.signed.version}"
                )
            root = newer.signed
        return root

    def _renew_root(
        self, state: SignedState | None, *, keys: ReleaseKeys, now: float
    ) -> None:
        first = self.path / "1.root.json"
        if not first.exists():
            write_atomically(first, self.pinned_root)
        if state is not None and wears_out(state.root, now):
            root = _next(state.root, now)
            write_atomically(
                self.path / f"{root.version}.root.json", signed_bytes(root, keys.root)
            )

    def _commit(
        self, snapshot: Snapshot, timestamp: Timestamp, keys: OnlineKeys
    ) -> None:
        raw = signed_bytes(snapshot, keys.snapshot)
        write_atomically(self.path / f"{snapshot.version}.snapshot.json", raw)
        timestamp.snapshot_meta = MetaFile.from_data(snapshot.version, raw, _HASHES)
        self._write_timestamp(timestamp, keys)

    def _write_timestamp(self, timestamp: Timestamp, keys: OnlineKeys) -> None:
        raw = signed_bytes(timestamp, keys.timestamp)
        write_atomically(self.path / "timestamp.json", raw)

    def _read(self, name: str) -> bytes:
        return read_part(self.path / name)


def read_part(path: Path) -> bytes:
    """Return a file that belongs to a published registry.

    Raises:
        UntrustedError: it is missing or cannot be read: the registry is not whole.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UntrustedError(f"registry is incomplete: {path} is missing") from None
    except OSError as error:
        raise UntrustedError(
            f"registry is damaged: {path} cannot be read: {error.strerror}"
        ) from None


def _first(signed: _Role, now: float) -> _Role:
    signed.expires = expiry(signed.type, now)
    return signed


def _next(signed: _Role, now: float) -> _Role:
    following = deepcopy(signed)
    following.version += 1
    following.expires = expiry(signed.type, now)
    return following


def _verified(role: type[_Role], raw: bytes, root: Root) -> _Role:
    metadata: Metadata[_Role] = Metadata.from_bytes(raw)
    # The signature covers content, not spelling: refuse any other spelling of it, so
    # that every flipped bit is found.
    signatures = metadata.signatures.values()
    if metadata.to_bytes() != raw or any(
        signature.signature != signature.signature.lower() for signature in signatures
    ):
        raise UntrustedError(f"{role.type} metadata is not in the form it was signed")
    if not isinstance(metadata.signed, role):
        raise UntrustedError(
            f"metadata must be {role.type}, got {metadata.signed.type}"
        )
    root.verify_delegate(role.type, metadata.signed_bytes, metadata.signatures)
    return metadata.signed
