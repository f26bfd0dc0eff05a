"""Root metadata as a document: who signs what, and how one version follows another.

A root says which keys hold the roles root, targets, snapshot and timestamp, and how many
of them must sign. The director has no TUF role; its public keys stand in the root as
``x-slmops-director``, a field that other TUF clients carry and ignore: so only whoever
holds the root can name another director.

A next root is signed by a threshold of the old root keys and of the new ones (TUF
specification 1.0, 5.3.4). Until then it is a file that travels between machines.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import MappingProxyType

from securesystemslib.signer import Key, Signer  # type: ignore[attr-defined]
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (  # type: ignore[attr-defined]
    Metadata,
    Root,
    Snapshot,
    Targets,
    Timestamp,
)

from slmops.domain.errors import (
    ConflictError,
    InvalidInputError,
    NotFoundError,
    UntrustedError,
)

LIFE: Mapping[str, timedelta] = MappingProxyType(
    {
        Root.type: timedelta(days=365),
        Targets.type: timedelta(days=365),
        Snapshot.type: timedelta(days=30),
        Timestamp.type: timedelta(days=7),
    }
)
"""How long each role's metadata holds; short where a key is online and signs often."""

DIRECTOR = "director"
"""Signs assignments; no TUF role."""
OFFLINE = (Root.type, Targets.type)
ONLINE = (Snapshot.type, Timestamp.type, DIRECTOR)
ROLES = OFFLINE + ONLINE

_DIRECTOR_FIELD = "x-slmops-director"
_PUBLIC = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True, slots=True)
class RoleKeys:
    """Who holds a role."""

    keys: tuple[Key, ...]
    """Public keys; any `threshold` of them must sign."""
    threshold: int = 1
    """1 to the number of keys."""

    def __post_init__(self) -> None:
        if not 1 <= self.threshold <= len(self.keys):
            raise InvalidInputError(
                f"threshold must be in 1..{len(self.keys)}, the number of keys,"
                f" got {self.threshold}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class RootChange:
    """What a next root says otherwise than the one before."""

    roles: Mapping[str, RoleKeys] = field(default_factory=dict)
    """Role → who holds it from now on; roles that are not named stay as they are."""
    director: tuple[str, ...] | None = None
    """Public keys of the director, hex; None leaves them."""


def first_root(
    roles: Mapping[str, RoleKeys], director: Sequence[str], *, now: float
) -> Root:
    """Make root version 1; `now` is Unix time, seconds."""
    root = Root(consistent_snapshot=True, expires=expiry(Root.type, now))
    _apply(root, RootChange(roles=roles, director=tuple(director)))
    return root


def next_root(root: Root, change: RootChange, *, now: float) -> Root:
    """Make the version that follows `root`."""
    following = deepcopy(root)
    following.version += 1
    following.expires = expiry(Root.type, now)
    _apply(following, change)
    return following


def director_keys(root: Root) -> tuple[str, ...]:
    """Return the director's public keys (hex) as a root names them; () when it does not.

    Raises:
        UntrustedError: the field is malformed.
    """
    said = root.unrecognized_fields.get(_DIRECTOR_FIELD)
    if said is None:
        return ()
    keys = said.get("keys") if isinstance(said, dict) else None
    if not isinstance(keys, list) or not keys or not all(map(_is_public, keys)):
        raise UntrustedError(f"root metadata: {_DIRECTOR_FIELD} names no public keys")
    return tuple(keys)


def role_keys(root: Root, role: str) -> RoleKeys:
    """Return who holds a TUF role."""
    holder = root.roles[role]
    return RoleKeys(
        keys=tuple(root.keys[keyid] for keyid in holder.keyids),
        threshold=holder.threshold,
    )


def roles_of(root: Root, keyid: str) -> tuple[str, ...]:
    """Return the TUF roles that a key holds."""
    return tuple(role for role, holder in root.roles.items() if keyid in holder.keyids)


def find_keyid(known: Iterable[str], prefix: str) -> str:
    """Return the one key id that begins with `prefix`.

    Raises:
        NotFoundError: none does.
        ConflictError: more than one does.
    """
    found = sorted({keyid for keyid in known if keyid.startswith(prefix)})
    if not found or not prefix:
        raise NotFoundError(f"no key of the newest root has an id like {prefix[:80]!r}")
    if len(found) > 1:
        raise ConflictError(
            f"{prefix!r} is the beginning of {len(found)} key ids; give more of it"
        )
    return found[0]


def parse_root(raw: bytes, *, where: str) -> Metadata[Root]:
    """Read root metadata, signed or not.

    Raises:
        UntrustedError: it is none.
    """
    try:
        metadata: Metadata[Root] = Metadata.from_bytes(raw)
    except RepositoryError as error:
        raise UntrustedError(f"{where} is no root metadata: {error}") from None
    if not isinstance(metadata.signed, Root):
        raise UntrustedError(f"{where} must be root, got {metadata.signed.type}")
    return metadata


def sign_root(
    metadata: Metadata[Root], previous: Root | None, signers: Iterable[Signer]
) -> int:
    """Add the signatures of those `signers` that may sign; return how many were new."""
    holders = set(metadata.signed.roles[Root.type].keyids)
    if previous is not None:
        holders |= set(previous.roles[Root.type].keyids)
    added = 0
    for signer in signers:
        keyid = signer.public_key.keyid
        if keyid in holders and keyid not in metadata.signatures:
            metadata.sign(signer, append=True)
            added += 1
    return added


@dataclass(frozen=True, kw_only=True, slots=True)
class Signatures:
    """How far the signing of a root is."""

    complete: bool
    """Both thresholds are met."""
    signed: tuple[str, ...]
    """Key ids that have signed."""
    missing: tuple[str, ...]
    """In words: what is still to sign, from which keys."""


def signatures_of(metadata: Metadata[Root], previous: Root | None) -> Signatures:
    """Say which signatures hold and which are missing.

    Raises:
        ConflictError: the root does not follow `previous`.
    """
    root = metadata.signed
    if previous is not None and root.version != previous.version + 1:
        raise ConflictError(
            f"root version {root.version} does not follow version {previous.version}:"
            " begin the change anew"
        )
    result = root.get_root_verification_result(
        previous, metadata.signed_bytes, metadata.signatures
    )
    sides = {"new root": result.second}
    if previous is not None:
        sides = {"old root": result.first, **sides}
    missing = tuple(
        f"{side.missing} of the {name}'s keys"
        f" {', '.join(sorted(keyid[:8] for keyid in side.unsigned))}"
        for name, side in sides.items()
        if side.missing
    )
    return Signatures(
        complete=not missing, signed=tuple(sorted(result.signed)), missing=missing
    )


def expiry(role: str, now: float) -> datetime:
    """Return when metadata of `role` signed at `now` stops to hold."""
    return datetime.fromtimestamp(int(now), UTC) + LIFE[role]


def _apply(root: Root, change: RootChange) -> None:
    for role, holders in change.roles.items():
        for keyid in tuple(root.roles[role].keyids):
            root.revoke_key(keyid, role)
        for key in holders.keys:
            root.add_key(key, role)
        root.roles[role].threshold = holders.threshold
    if change.director is not None:
        root.unrecognized_fields[_DIRECTOR_FIELD] = {"keys": list(change.director)}


def _is_public(key: object) -> bool:
    return isinstance(key, str) and _PUBLIC.fullmatch(key) is not None
