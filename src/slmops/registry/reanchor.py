"""A new chain of trust for a registry whose root keys are lost below their threshold.

TUF has no way out of that on purpose (specification 1.0, 6.1): whoever could move
devices to another root without the old root's keys could do it always. Releases are
kept, and each device must be given the new root by hand.
"""

from dataclasses import replace
from pathlib import Path

from tuf.api.metadata import (  # type: ignore[attr-defined]
    Snapshot,
    Targets,
    Timestamp,
)

from slmops.domain.errors import NotFoundError
from slmops.registry.bins import BinSettings, TargetTree, with_targets
from slmops.registry.key_folder import (
    KeyAccess,
    KeyPlan,
    create_keys,
    read_pinned_root,
)
from slmops.registry.metadata import MetadataFolder
from slmops.registry.roots import expiry, role_keys
from slmops.registry.signed_state import signed_release
from slmops.registry.signing import ReleaseKeys
from slmops.registry.workspace import Workspace


def replace_root(
    workspace: Workspace,
    access: KeyAccess,
    *,
    now: float,
    plan: KeyPlan | None = None,
) -> None:
    """Move keys and metadata aside, make new keys, sign all releases anew.

    What the old keys signed is verified first: nothing else is carried over. Versions go
    on rising, so that nobody mixes old and new metadata up.

    Args:
        workspace: holds keys and registry; nothing else may write to it meanwhile.
        access: passphrase of the new key files.
        now: Unix time, seconds.
        plan: of the new keys; one for each role by default.

    Raises:
        NotFoundError: there are no keys to replace.
        UntrustedError: the registry does not hold under the old root.
    """
    pinned = read_pinned_root(workspace.keys)
    metadata = workspace.registry / "metadata"
    state = MetadataFolder(metadata, pinned).state()
    aside = _aside(workspace.keys)
    workspace.keys.rename(aside)
    root = create_keys(workspace.keys, plan or KeyPlan(), now=now, access=access).signed
    if metadata.exists():
        metadata.rename(_aside(metadata))
    if state is None:
        return
    keys = ReleaseKeys.load(
        workspace.keys, passphrase=access.passphrase, secrets=access.secrets
    )
    top = state.tree.top
    following = with_targets(
        TargetTree(top=Targets(version=top.version, expires=top.expires)),
        state.targets.values(),
        role_keys(root, Targets.type),
        settings=BinSettings(),
        now=now,
    )
    counting = replace(
        state,
        root=root,
        snapshot=Snapshot(
            version=state.snapshot.version, expires=expiry(Snapshot.type, now)
        ),
        timestamp=Timestamp(
            version=state.timestamp.version, expires=expiry(Timestamp.type, now)
        ),
    )
    made = signed_release(following, counting, root=root, keys=keys, now=now)
    MetadataFolder(metadata, keys.root_json).publish(made)


def _aside(path: Path) -> Path:
    for number in range(1, 1000):
        candidate = path.with_name(f"{path.name}.lost-{number}")
        if not candidate.exists():
            return candidate
    raise NotFoundError(f"no name is left beside {path}")
