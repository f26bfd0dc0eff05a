"""What a registry's metadata says, and signing what it shall say next.

Everything is signed before anything is written: a key that is missing leaves no trace.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import TypeVar

from tuf.api.metadata import (  # type: ignore[attr-defined]
    MetaFile,
    Role,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from slmops.domain.errors import NotFoundError
from slmops.registry.bins import NextTargets, TargetTree
from slmops.registry.roots import expiry
from slmops.registry.signing import RingKeys

_HASHES = ["sha256"]
_Role = TypeVar("_Role", Root, Targets, Snapshot, Timestamp)


@dataclass(frozen=True, kw_only=True, slots=True)
class SignedState:
    """What the registry's metadata says now; every signature was verified."""

    root: Root
    """Newest root."""
    tree: TargetTree
    """Releases and artefacts that exist."""
    snapshot: Snapshot
    """Versions that belong together."""
    timestamp: Timestamp
    """The newest snapshot."""

    @property
    def targets(self) -> Mapping[str, TargetFile]:
        """All targets by path."""
        return self.tree.files


@dataclass(frozen=True, kw_only=True, slots=True)
class Unpublished:
    """Signed metadata on its way to the folder: all of it is made before any is written."""

    files: Mapping[str, bytes]
    """File name → bytes; nothing refers to them yet."""
    timestamp: bytes
    """Written last: that is the commit."""


def signed_release(
    following: NextTargets,
    state: SignedState | None,
    *,
    root: Root,
    keys: RingKeys,
    now: float,
) -> Unpublished:
    """Sign changed targets, then the snapshot and the timestamp that name them.

    Args:
        following: what changes; nothing when only snapshot and timestamp are due.
        state: what is signed now; None in a new registry.
        root: says who signs.
        keys: of the roles.
        now: Unix time, seconds.

    Raises:
        NotFoundError: a key is not here.
    """
    files = signed_targets(following, root=root, keys=keys)
    return named(files, state, root=root, keys=keys, now=now)


def signed_targets(
    following: NextTargets, *, root: Root, keys: RingKeys
) -> dict[str, bytes]:
    """Sign changed targets; return file name → bytes.

    Raises:
        NotFoundError: a key is not here.
    """
    files = {}
    for name in sorted(following.changed):
        own = following.tree.top if name == Targets.type else following.tree.bins[name]
        raw = keys.signed(own, _holder(root, following.tree, name))
        files[f"{own.version}.{name}.json"] = raw
    return files


def named(
    targets: Mapping[str, bytes],
    state: SignedState | None,
    *,
    root: Root,
    keys: RingKeys,
    now: float,
) -> Unpublished:
    """Sign the snapshot that names new targets files, and the timestamp.

    Args:
        targets: file name, such as ``2.targets.json``, → signed bytes.
        state: what is signed now; None in a new registry.
        root: says who signs.
        keys: of snapshot and timestamp.
        now: Unix time, seconds.

    Raises:
        NotFoundError: a key is not here.
    """
    snapshot = (
        next_version(state.snapshot, now)
        if state
        else Snapshot(expires=expiry(Snapshot.type, now))
    )
    for file, content in targets.items():
        version, _, name = file.partition(".")
        snapshot.meta[name] = MetaFile.from_data(int(version), content, _HASHES)
    files = dict(targets)
    raw = keys.signed(snapshot, root.roles[Snapshot.type])
    files[f"{snapshot.version}.snapshot.json"] = raw
    timestamp = (
        next_version(state.timestamp, now)
        if state
        else Timestamp(expires=expiry(Timestamp.type, now))
    )
    timestamp.snapshot_meta = MetaFile.from_data(snapshot.version, raw, _HASHES)
    return Unpublished(
        files=files, timestamp=keys.signed(timestamp, root.roles[Timestamp.type])
    )


def _holder(root: Root, tree: TargetTree, name: str) -> Role:
    if name == Targets.type:
        return root.roles[Targets.type]
    if tree.roles is None:  # pragma: no cover - bins exist by delegation only
        raise NotFoundError(f"nobody delegates to {name}")
    return tree.roles


def next_version(signed: _Role, now: float) -> _Role:
    """Return the version that follows, holding from `now`; it says the same."""
    following = deepcopy(signed)
    following.version += 1
    following.expires = expiry(signed.type, now)
    return following
