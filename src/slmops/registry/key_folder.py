"""The keys folder: which private keys are at hand, in files and by URI.

::

    root.json            root metadata version 1, the anchor that clients pin
    <role>.key           Ed25519, PKCS #8 PEM, mode 0600
    <role>-<…>.key       further ones: thresholds, rotations
    signers.json         keys elsewhere: tokens and key services, by URI
    next-root.json       a change of keys that waits for signatures
    *.retired            keys that no root names any more
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from securesystemslib.signer import Signer  # type: ignore[attr-defined]
from tuf.api.metadata import (  # type: ignore[attr-defined]
    Metadata,
    Root,
    Signed,
)

from slmops.domain.errors import ConflictError, NotFoundError, UnavailableError
from slmops.registry.blobs import write_atomically
from slmops.registry.keys import SigningKey
from slmops.registry.roots import (
    DIRECTOR,
    OFFLINE,
    ONLINE,
    RoleKeys,
    director_keys,
    first_root,
    parse_root,
)
from slmops.registry.signers import (
    FILE,
    SERVICES,
    Secrets,
    StoredSigner,
    file_signer,
    import_signer,
    open_signer,
)
from slmops.wire import codec

PINNED_ROOT = "root.json"
"""File in the keys folder: root metadata version 1, the anchor clients pin."""
SIGNERS = "signers.json"
"""File in the keys folder: `StoredSigners`."""
RETIRED = ".retired"
"""Ending of key files that no root names any more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredSigners:
    """``signers.json``: private keys that are in no file here."""

    keys: tuple[StoredSigner, ...] = ()
    """One for each key."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyAccess:
    """How private keys are opened."""

    passphrase: str | None = None
    """Of encrypted key files."""
    secrets: Secrets = field(default=lambda name: no_secret(name))
    """Asked for a token's PIN."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldKey:
    """A private key that can be used here."""

    uri: str
    """Where it is."""
    signer: Signer
    """Signs with it."""


Ring = Mapping[str, HeldKey]
"""Key id → key, for all that are at hand."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyPlan:
    """Which keys a first root is to name."""

    root_keys: int = 1
    """Root keys made as files here."""
    root_threshold: int = 1
    """How many of all root keys must sign a next root."""
    stored: Mapping[str, tuple[StoredSigner, ...]] = field(default_factory=dict)
    """Role → keys elsewhere; a role with one gets no file, root gets both."""


def create_keys(
    folder: Path, plan: KeyPlan, *, now: float, access: KeyAccess
) -> Metadata[Root]:
    """Make the keys and root version 1, signed by a threshold of its keys.

    Args:
        folder: made with mode 0700.
        plan: how many keys, and which are elsewhere.
        now: Unix time, seconds.
        access: passphrase of the files, PIN of the tokens.

    Raises:
        ConflictError: the folder has a root.
        InvalidInputError: the threshold is above the number of keys.
        UnavailableError: a token or service cannot sign.
    """
    if (folder / PINNED_ROOT).exists():
        raise ConflictError(
            f"{folder / PINNED_ROOT} exists; keys are never overwritten"
        )
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for stored in plan.stored.values():
        store_signers(folder, stored)
    roles = {}
    signers: list[Signer] = []
    for role in (*OFFLINE, *ONLINE[:-1]):
        held = [open_signer(one, access.secrets) for one in plan.stored.get(role, ())]
        files = plan.root_keys if role == Root.type else int(not held)
        held += [
            _made(key_path(folder, role, number), access.passphrase)
            for number in range(1, files + 1)
        ]
        threshold = plan.root_threshold if role == Root.type else 1
        roles[role] = RoleKeys(
            keys=tuple(signer.public_key for signer in held), threshold=threshold
        )
        if role == Root.type:
            signers = held[:threshold]
    director = _made_key(key_path(folder, DIRECTOR), access.passphrase)
    root = first_root(roles, (director.public_hex,), now=now)
    raw = signed_bytes(root, signers)
    write_atomically(folder / PINNED_ROOT, raw)
    return parse_root(raw, where=PINNED_ROOT)


def key_path(folder: Path, role: str, number: int = 1) -> Path:
    """Return the file of a role's private key."""
    return folder / (f"{role}.key" if number == 1 else f"{role}-{number}.key")


def key_files(folder: Path, role: str) -> tuple[Path, ...]:
    """Return the files of a role's private keys."""
    return tuple(
        path
        for path in (key_path(folder, role), *sorted(folder.glob(f"{role}-*.key")))
        if path.exists()
    )


def load_ring(
    folder: Path,
    roles: Iterable[str],
    *,
    access: KeyAccess,
    required: Iterable[str] = (),
) -> Ring:
    """Return the keys of some roles that are at hand, in files and by URI.

    Raises:
        NotFoundError: a required role has no key at all.
        UntrustedError: a key file cannot be read.
    """
    ring = {
        one.keyid: HeldKey(uri=one.uri, signer=open_signer(one, access.secrets))
        for one in stored_signers(folder)
    }
    by_uri = bool(ring)
    files = {role: key_files(folder, role) for role in roles}
    for role in required:
        if not files[role] and not by_uri:
            raise NotFoundError(f"key {key_path(folder, role)} does not exist")
    for paths in files.values():
        for path in paths:
            signer = file_signer(path, access.passphrase)
            uri = f"{FILE}:{path.name}"
            ring[signer.public_key.keyid] = HeldKey(uri=uri, signer=signer)
    return ring


def given_ring(places: Iterable[str], access: KeyAccess) -> Ring:
    """Return keys by file or URI, wherever they lie.

    Raises:
        NotFoundError, UntrustedError: a file does not exist or cannot be read.
        UnavailableError: a token or service cannot be reached.
    """
    ring = {}
    for place in places:
        if place.partition(":")[0] in SERVICES:
            stored = import_signer(place, access.secrets)
            held = HeldKey(uri=stored.uri, signer=open_signer(stored, access.secrets))
        else:
            path = Path(place.removeprefix(f"{FILE}:"))
            signer = file_signer(path, access.passphrase)
            held = HeldKey(uri=f"{FILE}:{path.name}", signer=signer)
        ring[held.signer.public_key.keyid] = held
    return ring


def load_director(folder: Path, root: Root, passphrase: str | None) -> SigningKey:
    """Return the director's key that `root` names.

    Raises:
        NotFoundError: it is not here.
        UntrustedError: a key file cannot be read.
    """
    named = director_keys(root)
    paths = key_files(folder, DIRECTOR)
    if not paths:
        raise NotFoundError(f"key {key_path(folder, DIRECTOR)} does not exist")
    for path in paths:
        key = SigningKey.load(path, passphrase=passphrase)
        if key.public_hex in named or not named:
            return key
    raise NotFoundError(
        f"no key of the director in {folder} is the one that root version"
        f" {root.version} names: {', '.join(each[:8] for each in named)}"
    )


def stored_signers(folder: Path) -> tuple[StoredSigner, ...]:
    """Return the keys that are elsewhere, as ``signers.json`` names them.

    Raises:
        InvalidInputError: the file is malformed.
    """
    path = folder / SIGNERS
    if not path.exists():
        return ()
    return codec.decode_json(path.read_bytes(), StoredSigners, where=str(path)).keys


def store_signers(folder: Path, added: Iterable[StoredSigner]) -> None:
    """Remember where keys are; one that is known is replaced."""
    known = {one.keyid: one for one in stored_signers(folder)}
    known |= {one.keyid: one for one in added}
    document = StoredSigners(keys=tuple(known.values()))
    text = codec.encode_json_pretty(document) + "\n"
    write_atomically(folder / SIGNERS, text.encode(), mode=0o600)


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


def signed_bytes(signed: Signed, signers: Iterable[Signer]) -> bytes:
    """Return signed metadata; equal content and Ed25519 keys give equal bytes."""
    metadata: Metadata[Any] = Metadata(signed)
    for signer in signers:
        metadata.sign(signer, append=True)
    return metadata.to_bytes()


def _made(path: Path, passphrase: str | None) -> Signer:
    _made_key(path, passphrase)
    return file_signer(path, passphrase)


def _made_key(path: Path, passphrase: str | None) -> SigningKey:
    """Make a key; one that a killed run left is fine: nobody has trusted it yet."""
    try:
        return SigningKey.create(path, passphrase=passphrase)
    except ConflictError:
        return SigningKey.load(path, passphrase=passphrase)


def no_secret(name: str) -> str:
    """Refuse to tell a secret: nobody is there to ask."""
    raise UnavailableError(
        f"the {name} of a signing token is needed: set SLMOPS_KEY_PIN"
    )
