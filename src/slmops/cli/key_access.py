"""How commands open signing keys: passphrase and PIN from variables or the terminal."""

import os
from typing import TYPE_CHECKING

import click

from slmops.registry.workspace import Workspace

if TYPE_CHECKING:
    from slmops.registry.key_folder import KeyAccess
    from slmops.registry.signing import ReleaseKeys


def key_access() -> "KeyAccess":
    """Return the passphrase of ``SLMOPS_KEY_PASSPHRASE``, and a PIN when it is needed."""
    from slmops.registry.key_folder import KeyAccess
    from slmops.registry.keys import key_settings

    settings = key_settings(os.environ)

    def secret(name: str) -> str:
        if settings.pin is not None:
            return settings.pin
        answer: str = click.prompt(f"{name} of the token", hide_input=True, err=True)
        return answer

    return KeyAccess(passphrase=settings.passphrase, secrets=secret)


def release_keys(workspace: Workspace, *, now: float) -> "ReleaseKeys":
    """Return the keys that publish a release; the first call makes them."""
    from slmops.registry.catalog import Catalog
    from slmops.registry.key_folder import PINNED_ROOT, KeyPlan, create_keys
    from slmops.registry.signing import ReleaseKeys

    access = key_access()
    pinned = workspace.keys / PINNED_ROOT
    if not pinned.exists():
        create_keys(workspace.keys, KeyPlan(), now=now, access=access)
    catalog = Catalog(workspace.registry, pinned_root=pinned.read_bytes())
    return ReleaseKeys.load(
        workspace.keys,
        passphrase=access.passphrase,
        secrets=access.secrets,
        root=catalog.newest_root(),
    )
