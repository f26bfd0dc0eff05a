"""The registry's TUF metadata files, as the side that signs them sees them.

Consistent snapshots: ``N.root.json``, ``N.targets.json``, ``N.bins….json`` and
``N.snapshot.json`` never change once ``timestamp.json`` names them; replacing that one
file is the commit. What was signed before is verified before it is built upon, so that
nobody who can write to the folder gets their bytes signed.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (  # type: ignore[attr-defined]
    Metadata,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from slmops.domain.errors import ConflictError, UntrustedError
from slmops.registry.bins import (
    BinSettings,
    NextTargets,
    TargetTree,
    renewed,
    with_targets,
)
from slmops.registry.blobs import write_atomically
from slmops.registry.roots import RootChange, next_root, role_keys
from slmops.registry.signed_state import (
    SignedState,
    Unpublished,
    next_version,
    signed_release,
    signed_targets,
)
from slmops.registry.signing import OnlineKeys, ReleaseKeys, wears_out

_Role = TypeVar("_Role", Root, Targets, Snapshot, Timestamp)


@dataclass(frozen=True, slots=True)
class MetadataFolder:
    """The ``metadata`` folder of one registry."""

    path: Path
    """Folder of the files."""
    pinned_root: bytes
    """Root metadata version 1: the only thing trusted here."""
    bins: BinSettings = field(default_factory=BinSettings)
    """When targets are split."""

    def state(self, *, root: Root | None = None) -> SignedState | None:
        """Read and verify what is signed now; None before the first release.

        Expiry is not looked at: the signer may extend what has expired.

        Args:
            root: to verify against; the newest by default.

        Raises:
            UntrustedError: a signature, hash or version does not hold.
        """
        if not (self.path / "timestamp.json").exists():
            return None
        try:
            return self._state(root or self.newest_root())
        except (RepositoryError, KeyError) as error:
            raise UntrustedError(
                f"registry metadata in {self.path} does not hold: {error}"
            ) from None

    def newest_root(self) -> Root:
        """Return the newest root that a chain from the pinned one vouches for.

        Raises:
            UntrustedError: a link of the chain does not hold.
        """
        return self.roots()[-1]

    def roots(self) -> tuple[Root, ...]:
        """Return all roots, oldest first; each is verified by the one before and itself.

        Raises:
            UntrustedError: a link of the chain does not hold.
        """
        try:
            return tuple(self._roots())
        except (RepositoryError, KeyError) as error:
            raise UntrustedError(
                f"registry roots in {self.path} do not hold: {error}"
            ) from None

    def add_targets(
        self,
        added: Iterable[TargetFile],
        *,
        state: SignedState | None,
        keys: ReleaseKeys,
        now: float,
    ) -> None:
        """Sign new targets and commit; files a client may know already stay as they are.

        The root is renewed when it wears out and its keys are here. Without the keys of
        snapshot and timestamp nothing names what was signed yet: it waits for
        `slmops.registry.admission.admit`.

        Args:
            added: targets to add.
            state: from `state`, read under the same lock.
            keys: of targets, snapshot and timestamp.
            now: Unix time, seconds.

        Raises:
            NotFoundError: a key is not here.
        """
        root = self._renewed_root(state, keys=keys, now=now)
        following = with_targets(
            state.tree if state else None,
            added,
            role_keys(root, Targets.type),
            settings=self.bins,
            now=now,
        )
        online = (root.roles[role] for role in (Snapshot.type, Timestamp.type))
        if all(map(keys.holds, online)):
            made = signed_release(following, state, root=root, keys=keys, now=now)
            self.publish(made)
            return
        files = signed_targets(following, root=root, keys=keys)
        for name, raw in files.items():
            path = self.path / name
            if path.exists() and path.read_bytes() != raw:
                raise ConflictError(
                    f"{path} waits to be admitted where the snapshot's and timestamp's"
                    " keys are: `slmops release admit`"
                )
        self.write_first_root()
        self._write(files)

    def renew(self, state: SignedState, *, keys: ReleaseKeys, now: float) -> bool:
        """Sign anew what wears out of root, targets and bins.

        Returns:
            Whether anything was written.

        Raises:
            NotFoundError: a key is not here.
        """
        root = self._renewed_root(state, keys=keys, now=now)
        tree = state.tree
        worn = {name for name, each in tree.bins.items() if wears_out(each, now)}
        if wears_out(tree.top, now):
            worn.add(Targets.type)
        if worn:
            following = renewed(tree, role_keys(root, Targets.type), now=now, only=worn)
            self.publish(
                signed_release(following, state, root=root, keys=keys, now=now)
            )
        return bool(worn) or root is not state.root

    def refresh(self, state: SignedState, *, keys: OnlineKeys, now: float) -> bool:
        """Sign snapshot and timestamp anew when half of their life is over.

        Returns:
            Whether anything was written.
        """
        if wears_out(state.snapshot, now):
            following = NextTargets(tree=state.tree, changed=frozenset())
            self.publish(
                signed_release(following, state, root=state.root, keys=keys, now=now)
            )
        elif wears_out(state.timestamp, now):
            timestamp = next_version(state.timestamp, now)
            raw = keys.signed(timestamp, state.root.roles[Timestamp.type])
            self.publish(Unpublished(files={}, timestamp=raw))
        else:
            return False
        return True

    def publish(self, made: Unpublished) -> None:
        """Write signed metadata; the last file is the commit."""
        self.write_first_root()
        self._write(made.files)
        write_atomically(self.path / "timestamp.json", made.timestamp)

    def write_first_root(self) -> None:
        """Write root version 1 into a new registry."""
        first = self.path / "1.root.json"
        if not first.exists():
            write_atomically(first, self.pinned_root)

    def _write(self, files: Mapping[str, bytes]) -> None:
        for name, raw in files.items():
            write_atomically(self.path / name, raw)

    def root_files(self) -> Iterator[tuple[Path, bytes]]:
        """Yield path and bytes of the root files, oldest first."""
        version = 1
        while (path := self.path / f"{version}.root.json").exists():
            yield path, read_part(path)
            version += 1

    def _state(self, root: Root) -> SignedState:
        timestamp = _verified(Timestamp, self._read("timestamp.json"), root)
        snapshot_file = timestamp.snapshot_meta
        raw = self._read(f"{snapshot_file.version}.snapshot.json")
        snapshot_file.verify_length_and_hashes(raw)
        snapshot = _verified(Snapshot, raw, root)
        top = self._targets(snapshot, Targets.type, root)
        names: Iterable[str] = ()
        if top.delegations is not None and top.delegations.succinct_roles is not None:
            names = top.delegations.succinct_roles.get_roles()
        bins = {name: self._targets(snapshot, name, top) for name in names}
        return SignedState(
            root=root,
            tree=TargetTree(top=top, bins=bins),
            snapshot=snapshot,
            timestamp=timestamp,
        )

    def _targets(
        self, snapshot: Snapshot, name: str, delegator: Root | Targets
    ) -> Targets:
        file = snapshot.meta[f"{name}.json"]
        raw = self._read(f"{file.version}.{name}.json")
        file.verify_length_and_hashes(raw)
        return verified_targets(raw, delegator, name)

    def _roots(self) -> Iterator[Root]:
        root = Metadata[Root].from_bytes(self.pinned_root).signed
        yield root
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
            yield root

    def _renewed_root(
        self, state: SignedState | None, *, keys: ReleaseKeys, now: float
    ) -> Root:
        root = self.newest_root() if state is None else state.root
        holder = root.roles[Root.type]
        if state is None or not wears_out(root, now) or not keys.holds(holder):
            return root
        root = next_root(root, RootChange(), now=now)
        write_atomically(
            self.path / f"{root.version}.root.json", keys.signed(root, holder)
        )
        return root

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


def verified_targets(raw: bytes, delegator: Root | Targets, name: str) -> Targets:
    """Return targets metadata that `delegator` vouches for.

    Raises:
        RepositoryError, UntrustedError: a signature does not hold.
    """
    return _verified(Targets, raw, delegator, name)


def _verified(
    role: type[_Role], raw: bytes, delegator: Root | Targets, name: str | None = None
) -> _Role:
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
    delegator.verify_delegate(
        name or role.type, metadata.signed_bytes, metadata.signatures
    )
    return metadata.signed
