"""Changing keys from begin to end: who holds what, a next root, its signatures, its use.

The steps are the same whether all root keys are here or on three people's sticks: a
change becomes ``next-root.json`` in the keys folder, is signed with whatever is at hand,
and is published once enough have signed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from securesystemslib.signer import Key, Signer  # type: ignore[attr-defined]
from tuf.api.metadata import Metadata, Root  # type: ignore[attr-defined]

from slmops.domain.errors import ConflictError, InvalidInputError, NotFoundError
from slmops.registry.blobs import write_atomically
from slmops.registry.catalog import Catalog
from slmops.registry.key_folder import (
    KeyAccess,
    Ring,
    key_files,
    load_ring,
    read_pinned_root,
    store_signers,
)
from slmops.registry.keys import SigningKey
from slmops.registry.roots import (
    DIRECTOR,
    ROLES,
    RoleKeys,
    RootChange,
    Signatures,
    director_keys,
    find_keyid,
    next_root,
    parse_root,
    role_keys,
    roles_of,
    sign_root,
    signatures_of,
)
from slmops.registry.rotation import retire_keys
from slmops.registry.signers import StoredSigner
from slmops.registry.signing import RingKeys

NEXT_ROOT = "next-root.json"
"""File in the keys folder: a change of keys that waits for signatures."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyRow:
    """One key of one role."""

    role: str
    """root, targets, snapshot, timestamp or director."""
    keyid: str
    """As TUF names it; the director's public key for the director."""
    scheme: str
    """Such as ``ed25519``."""
    place: str
    """URI of the private half, or ``elsewhere``."""
    threshold: int
    """How many of the role's keys must sign."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """Who is to hold a role from now on."""

    role: str
    """root, targets, snapshot, timestamp or director."""
    stored: tuple[StoredSigner, ...] = ()
    """Keys elsewhere that take it."""
    files: int = 1
    """Keys to make as files here."""
    kept: tuple[str, ...] = ()
    """Key ids that go on holding it."""
    threshold: int | None = None
    """How many must sign; as now when None."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChangeResult:
    """How far a change is."""

    version: int
    """Of the next root."""
    published: bool
    """Whether devices see it."""
    signatures: Signatures
    """Which hold and which are missing."""
    retired: tuple[Path, ...] = ()
    """Key files that were put out of use."""


@dataclass(frozen=True, slots=True)
class KeyChanges:
    """Changes of the keys of one registry."""

    folder: Path
    """Of the keys."""
    catalog: Catalog
    """The registry, with the pinned root."""
    access: KeyAccess
    """Passphrase and PIN."""

    def newest_root(self) -> Root:
        """Return the newest root, from the registry or as it was pinned.

        Raises:
            NotFoundError: there are no keys yet.
            UntrustedError: the registry's chain of roots does not hold.
        """
        read_pinned_root(self.folder)
        return self.catalog.newest_root()

    def rows(self) -> tuple[KeyRow, ...]:
        """Say who holds which role, and where the private halves are."""
        root = self.newest_root()
        ring = self._ring()
        tuf_roles = [role for role in ROLES if role != DIRECTOR]
        rows = [
            _row(role, key, role_keys(root, role).threshold, ring)
            for role in tuf_roles
            for key in role_keys(root, role).keys
        ]
        here = self._director_files()
        rows += [
            KeyRow(
                role=DIRECTOR,
                keyid=public,
                scheme="ed25519",
                place=f"file:{here[public].name}" if public in here else "elsewhere",
                threshold=1,
            )
            for public in director_keys(root) or tuple(here)[:1]
        ]
        return tuple(rows)

    def rotate(self, wanted: Wanted, *, now: float) -> ChangeResult:
        """Give a role to other keys, and carry the change as far as it goes here.

        Args:
            wanted: who is to hold it.
            now: Unix time, seconds.

        Raises:
            ConflictError: another change waits for signatures.
            InvalidInputError: a threshold that the keys cannot meet.
        """
        self._require_no_other()
        root = self.newest_root()
        if wanted.role == DIRECTOR:
            change = RootChange(director=(self._make_file(DIRECTOR).public_hex,))
        else:
            change = RootChange(roles={wanted.role: self._holders(root, wanted)})
        return self._begin(root, change, now)

    def revoke(
        self, prefix: str, stored: Sequence[StoredSigner] = (), *, now: float
    ) -> ChangeResult:
        """Take every role from a key, and give each to a new one.

        Args:
            prefix: beginning of its id.
            stored: one key elsewhere to take its roles; a new file otherwise.
            now: Unix time, seconds.

        Raises:
            NotFoundError, ConflictError: no key, or more than one, is meant.
        """
        self._require_no_other()
        root = self.newest_root()
        known = (*director_keys(root), *self._tuf_keyids(root))
        keyid = find_keyid(known, prefix)
        if keyid in director_keys(root):
            return self.rotate(Wanted(role=DIRECTOR), now=now)
        roles = {}
        for role in roles_of(root, keyid):
            kept = tuple(each for each in root.roles[role].keyids if each != keyid)
            replacement = Wanted(
                role=role, stored=tuple(stored), files=int(not stored), kept=kept
            )
            roles[role] = self._holders(root, replacement)
        return self._begin(root, RootChange(roles=roles), now)

    def renew(self, *, now: float) -> ChangeResult:
        """Make a next root that says the same and holds longer."""
        self._require_no_other()
        return self._begin(self.newest_root(), RootChange(), now)

    def publish(self, raw: bytes, *, now: float) -> ChangeResult:
        """Use a root that was signed elsewhere; done again it completes a killed run.

        Raises:
            ConflictError: it does not follow the newest root.
            UntrustedError: it is none.
        """
        metadata = parse_root(raw, where=NEXT_ROOT)
        root = self.catalog.newest_root()
        if metadata.signed == root:
            return self._publish(metadata, None, now)
        sign_root(metadata, root, self._signers())
        return self._advance(metadata, root, now)

    def _begin(self, root: Root, change: RootChange, now: float) -> ChangeResult:
        metadata: Metadata[Root] = Metadata(next_root(root, change, now=now))
        sign_root(metadata, root, self._signers())
        return self._advance(metadata, root, now)

    def _advance(
        self, metadata: Metadata[Root], previous: Root, now: float
    ) -> ChangeResult:
        write_atomically(self.folder / NEXT_ROOT, metadata.to_bytes(), mode=0o600)
        progress = signatures_of(metadata, previous)
        if progress.complete:
            return self._publish(metadata, progress, now)
        return ChangeResult(
            version=metadata.signed.version, published=False, signatures=progress
        )

    def _publish(
        self, metadata: Metadata[Root], progress: Signatures | None, now: float
    ) -> ChangeResult:
        root = self.catalog.publish_root(metadata, RingKeys(ring=self._ring()), now)
        retired = retire_keys(self.folder, root, self.access)
        (self.folder / NEXT_ROOT).unlink(missing_ok=True)
        done = progress or Signatures(complete=True, signed=(), missing=())
        return ChangeResult(
            version=root.version, published=True, signatures=done, retired=retired
        )

    def _require_no_other(self) -> None:
        path = self.folder / NEXT_ROOT
        if path.exists():
            raise ConflictError(
                f"{path} waits for signatures: sign and publish it, or remove it and the"
                " keys made for it"
            )

    def _holders(self, root: Root, wanted: Wanted) -> RoleKeys:
        now_held = role_keys(root, wanted.role)
        kept = [key for key in now_held.keys if key.keyid in wanted.kept]
        threshold = wanted.threshold or now_held.threshold
        count = len(kept) + len(wanted.stored) + wanted.files
        if not 1 <= threshold <= count:  # before a key is made
            raise InvalidInputError(
                f"role {wanted.role} needs {threshold} signatures and would have"
                f" {count} keys"
            )
        store_signers(self.folder, wanted.stored)
        made = [self._make_file(wanted.role) for _ in range(wanted.files)]
        ring = self._ring()
        keys = kept + [one.key for one in wanted.stored]
        keys += [_public(ring, key) for key in made]
        return RoleKeys(keys=tuple(keys), threshold=threshold)

    def _make_file(self, role: str) -> SigningKey:
        number = 2
        while (path := self.folder / f"{role}-{number}.key").exists() or any(
            self.folder.glob(f"{path.name}*")
        ):
            number += 1
        return SigningKey.create(path, passphrase=self.access.passphrase)

    def _director_files(self) -> Mapping[str, Path]:
        return {
            SigningKey.load(path, passphrase=self.access.passphrase).public_hex: path
            for path in key_files(self.folder, DIRECTOR)
        }

    def _ring(self) -> Ring:
        return load_ring(self.folder, ROLES, access=self.access)

    def _signers(self) -> list[Signer]:
        return [held.signer for held in self._ring().values()]

    def _tuf_keyids(self, root: Root) -> tuple[str, ...]:
        return tuple(keyid for holder in root.roles.values() for keyid in holder.keyids)


def sign_file(path: Path, ring: Ring) -> int:
    """Sign a root that lies in a file, on whichever machine holds a key; write it back.

    That machine may know no other root, so it cannot tell who may sign: whoever publishes
    counts the signatures.

    Args:
        path: root metadata, signed or not.
        ring: keys to sign with.

    Returns:
        How many signatures were added.

    Raises:
        NotFoundError: there is no such file.
        UntrustedError: it is no root metadata.
        UnavailableError: a token or service cannot sign.
    """
    try:
        metadata = parse_root(path.read_bytes(), where=str(path))
    except FileNotFoundError:
        raise NotFoundError(f"{path} does not exist") from None
    added = [
        held.signer for keyid, held in ring.items() if keyid not in metadata.signatures
    ]
    for signer in added:
        metadata.sign(signer, append=True)
    if added:
        write_atomically(path, metadata.to_bytes(), mode=0o600)
    return len(added)


def _row(role: str, key: Key, threshold: int, ring: Ring) -> KeyRow:
    held = ring.get(key.keyid)
    return KeyRow(
        role=role,
        keyid=key.keyid,
        scheme=key.scheme,
        place=held.uri if held else "elsewhere",
        threshold=threshold,
    )


def _public(ring: Ring, made: SigningKey) -> Key:
    for held in ring.values():
        key = held.signer.public_key
        if key.keyval["public"] == made.public_hex:
            return key
    raise NotFoundError("a key that was just made is gone")  # pragma: no cover
