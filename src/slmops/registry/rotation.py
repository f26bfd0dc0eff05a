"""Changing who signs: a next root is published, and what its keys sign is signed anew.

Order of writing: new targets and snapshot (nothing refers to them yet), the root, last
the timestamp. Clients fetch roots one after the other before anything else, so between
the last two files they see new keys and an old timestamp, refuse, and ask again later;
a run that was killed there is completed by publishing the same root again.
"""

from collections.abc import Iterable
from pathlib import Path

from tuf.api.metadata import (  # type: ignore[attr-defined]
    Metadata,
    Root,
    Snapshot,
    Targets,
    Timestamp,
)

from slmops.domain.errors import ConflictError, UntrustedError
from slmops.registry.bins import NextTargets, renewed
from slmops.registry.blobs import write_atomically
from slmops.registry.key_folder import RETIRED, KeyAccess, key_files
from slmops.registry.keys import SigningKey
from slmops.registry.metadata import MetadataFolder
from slmops.registry.roots import (
    DIRECTOR,
    ROLES,
    director_keys,
    role_keys,
    signatures_of,
)
from slmops.registry.signed_state import SignedState, signed_release
from slmops.registry.signers import file_signer
from slmops.registry.signing import RingKeys

_TUF_ROLES = tuple(role for role in ROLES if role != DIRECTOR)
_SIGNED = (Targets.type, Snapshot.type, Timestamp.type)


def publish_root(
    folder: MetadataFolder, metadata: Metadata[Root], keys: RingKeys, *, now: float
) -> Root:
    """Publish a next root, and sign anew what is signed by keys that it changes.

    Done again it changes nothing, and completes what a killed run left.

    Args:
        folder: of the registry; a lock is held.
        metadata: signed by thresholds of the old root and of itself.
        keys: those that the new root names for every role it changes.
        now: Unix time, seconds.

    Raises:
        ConflictError: it does not follow the newest root.
        UntrustedError: signatures are missing, or the registry does not hold.
        NotFoundError: a key that must sign is not here; nothing was written.
    """
    root = metadata.signed
    roots = folder.roots()
    resumed = _published_already(roots, metadata)
    previous = roots[-2] if resumed else roots[-1]
    progress = signatures_of(metadata, previous)
    if not progress.complete:
        raise UntrustedError(
            f"root version {root.version} is not signed by enough keys:"
            f" {'; '.join(progress.missing)}"
        )
    state = _state(folder, previous, root, resumed=resumed)
    made = None
    if state is not None and (changed := _changed(previous, root)):
        made = signed_release(
            _resigned(state, root, changed, now), state, root=root, keys=keys, now=now
        )
    folder.write_first_root()
    if made is not None:
        for name, raw in made.files.items():
            write_atomically(folder.path / name, raw)
    write_atomically(folder.path / f"{root.version}.root.json", metadata.to_bytes())
    if made is not None:
        write_atomically(folder.path / "timestamp.json", made.timestamp)
    return root


def retire_keys(folder: Path, root: Root, access: KeyAccess) -> tuple[Path, ...]:
    """Rename the key files that `root` names for no role; return their new names.

    They are kept: what they signed stays readable, and a mistake can be undone.

    Raises:
        UntrustedError: a key file cannot be read.
    """
    named = {*root.keys, *director_keys(root)}
    retired = []
    for role in ROLES if director_keys(root) else _TUF_ROLES:
        for path in key_files(folder, role):
            if _name(path, role, access) not in named:
                target = _free_name(path)
                path.rename(target)
                retired.append(target)
    return tuple(retired)


def _name(path: Path, role: str, access: KeyAccess) -> str:
    """Return what a root calls the key in a file."""
    if role == DIRECTOR:
        return SigningKey.load(path, passphrase=access.passphrase).public_hex
    keyid: str = file_signer(path, access.passphrase).public_key.keyid
    return keyid


def _free_name(path: Path) -> Path:
    candidates: Iterable[Path] = (
        path.with_name(f"{path.name}{suffix}{RETIRED}")
        for suffix in ("", *(f".{number}" for number in range(2, 10_000)))
    )
    return next(each for each in candidates if not each.exists())


def _published_already(roots: tuple[Root, ...], metadata: Metadata[Root]) -> bool:
    root = metadata.signed
    newest = roots[-1]
    if root.version == newest.version + 1:
        return False
    if root.version == newest.version and len(roots) > 1 and root == newest:
        return True
    raise ConflictError(
        f"root version {root.version} does not follow the registry's newest,"
        f" {newest.version}: begin the change anew"
    )


def _state(
    folder: MetadataFolder, previous: Root, root: Root, *, resumed: bool
) -> SignedState | None:
    """Read what the old keys signed; after a killed run the new ones may have."""
    if not resumed:
        return folder.state(root=previous)
    try:
        return folder.state(root=root)
    except UntrustedError:
        return folder.state(root=previous)


def _changed(previous: Root, root: Root) -> frozenset[str]:
    return frozenset(
        role for role in _SIGNED if _holders(previous, role) != _holders(root, role)
    )


def _holders(root: Root, role: str) -> tuple[frozenset[str], int]:
    holder = root.roles[role]
    return frozenset(holder.keyids), holder.threshold


def _resigned(
    state: SignedState, root: Root, changed: frozenset[str], now: float
) -> NextTargets:
    if Targets.type in changed:
        return renewed(state.tree, role_keys(root, Targets.type), now=now)
    return NextTargets(tree=state.tree, changed=frozenset())
