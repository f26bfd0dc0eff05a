"""The workspace's registry, as commands open it."""

from typing import TYPE_CHECKING

from slmops.registry.workspace import Workspace

if TYPE_CHECKING:
    from slmops.registry.catalog import Catalog


def open_catalog(workspace: Workspace) -> "Catalog":
    """Open the registry, checked against the workspace's pinned root where it has one."""
    from slmops.registry.catalog import Catalog
    from slmops.registry.key_folder import PINNED_ROOT

    pinned = workspace.keys / PINNED_ROOT
    return Catalog(
        workspace.registry,
        pinned_root=pinned.read_bytes() if pinned.exists() else None,
    )
