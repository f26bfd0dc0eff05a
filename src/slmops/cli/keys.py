"""``slmops keys``: who signs a registry; thresholds, rotation, revocation, offline signing."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from slmops.cli import render
from slmops.cli.key_access import key_access, release_keys
from slmops.registry.workspace import Workspace

if TYPE_CHECKING:
    from slmops.registry.key_changes import ChangeResult, KeyChanges
    from slmops.registry.key_folder import KeyAccess
    from slmops.registry.signers import StoredSigner

_ROLES = ("root", "targets", "snapshot", "timestamp", "director")
_URI = "URI of a key elsewhere: hsm:2?label=…, awskms:…, gcpkms:…, azurekms:…"


@click.group()
def keys() -> None:
    """Say who signs a registry, and change it: every step can be done offline.

    Keys are Ed25519 files in the workspace's keys folder, or stay in a token (PKCS #11)
    or a cloud's key service and are named by URI. SLMOPS_KEY_PASSPHRASE opens files,
    SLMOPS_KEY_PIN a token. What to do when a key is lost or stolen: docs/keys.md.

    Example: slmops keys show
    """


@keys.command()
@click.option(
    "--root-keys",
    type=click.IntRange(0, 16),
    default=1,
    show_default=True,
    help="Root keys to make as files.",
)
@click.option(
    "--root-threshold",
    type=click.IntRange(1, 16),
    default=1,
    show_default=True,
    help="How many of the root keys must sign a change of keys.",
)
@click.option("--root", "root_uris", multiple=True, help=f"{_URI}; repeatable.")
@click.option("--targets", "targets_uris", multiple=True, help=f"{_URI}; repeatable.")
@render.as_json
@click.pass_obj
def init(
    workspace: Workspace,
    root_keys: int,
    root_threshold: int,
    root_uris: tuple[str, ...],
    targets_uris: tuple[str, ...],
    as_json: bool,
) -> None:
    """Make a registry's keys before its first release, with a threshold for the root.

    Without this the first release makes one key for each role. Move the root keys away
    afterwards, each to another place: nothing but a change of keys needs them.

    Example: slmops keys init --root-keys 3 --root-threshold 2
    """
    from slmops.registry.key_folder import KeyPlan, create_keys

    access = key_access()
    stored = {
        "root": _imported(root_uris, access),
        "targets": _imported(targets_uris, access),
    }
    plan = KeyPlan(root_keys=root_keys, root_threshold=root_threshold, stored=stored)
    create_keys(workspace.keys, plan, now=time.time(), access=access)
    _show(_changes(workspace), as_json)


@keys.command()
@render.as_json
@click.pass_obj
def show(workspace: Workspace, as_json: bool) -> None:
    """Say who holds each role, where the private halves are, and when what expires.

    Example: slmops keys show
    """
    _show(_changes(workspace), as_json)


@keys.command()
@click.argument("role", type=click.Choice(_ROLES))
@click.option("--to", "uris", multiple=True, help=f"{_URI}; repeatable.")
@click.option(
    "--files", type=click.IntRange(0, 16), help="New key files; 1 without --to."
)
@click.option("--threshold", type=click.IntRange(1, 16), help="As now by default.")
@render.as_json
@click.pass_obj
def rotate(
    workspace: Workspace,
    role: str,
    uris: tuple[str, ...],
    files: int | None,
    threshold: int | None,
    as_json: bool,
) -> None:
    """Give a role to new keys, and sign anew what the old ones signed.

    Where the root keys are elsewhere, this writes keys/next-root.json to be signed there
    (`slmops keys root sign`) and published here (`slmops keys root publish`). Devices
    follow by themselves.

    Example: slmops keys rotate timestamp
    """
    from slmops.registry.key_changes import Wanted

    changes = _changes(workspace)
    stored = _imported(uris, changes.access)
    wanted = Wanted(
        role=role,
        stored=stored,
        files=files if files is not None else int(not stored),
        threshold=threshold,
    )
    _report(changes.rotate(wanted, now=time.time()), as_json)


@keys.command()
@click.argument("keyid")
@click.option("--to", "uri", help=_URI)
@render.as_json
@click.pass_obj
def revoke(workspace: Workspace, keyid: str, uri: str | None, as_json: bool) -> None:
    """Take every role from one key, for a new one: it was lost or stolen.

    KEYID is the beginning of its id, as `slmops keys show` prints it.

    Example: slmops keys revoke 3f2a9c
    """
    changes = _changes(workspace)
    stored = _imported((uri,) if uri else (), changes.access)
    _report(changes.revoke(keyid, stored, now=time.time()), as_json)


@keys.command()
@render.as_json
@click.pass_obj
def renew(workspace: Workspace, as_json: bool) -> None:
    """Sign a root that says the same and holds another year, and what else wears out.

    Example: slmops keys renew
    """
    changes = _changes(workspace)
    now = time.time()
    result = changes.renew(now=now)
    if result.published:
        changes.catalog.renew(release_keys(workspace, now=now), now)
    _report(result, as_json)


@keys.group()
def root() -> None:
    """Carry a change of keys between machines: sign it here, publish it there.

    Example: slmops keys root sign /media/stick/next-root.json --key root-2.key
    """


@root.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--key",
    "places",
    multiple=True,
    required=True,
    help=f"Key file, or {_URI}; repeatable.",
)
@render.as_json
def sign(file: Path, places: tuple[str, ...], as_json: bool) -> None:
    """Add signatures to a next root; needs no workspace and no network.

    Example: slmops keys root sign next-root.json --key /media/stick/root-2.key
    """
    from slmops.registry.key_changes import sign_file
    from slmops.registry.key_folder import given_ring

    added = sign_file(file, given_ring(places, key_access()))
    if as_json:
        render.json_document({"file": str(file), "signatures_added": added})
        return
    render.text(f"{added} signatures added to {file}")
    render.note("next: bring it back; slmops keys root publish FILE")


@root.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@render.as_json
@click.pass_obj
def publish(workspace: Workspace, file: Path, as_json: bool) -> None:
    """Publish a next root that enough keys have signed; says which are missing.

    Done again it completes a run that was killed.

    Example: slmops keys root publish /media/stick/next-root.json
    """
    result = _changes(workspace).publish(file.read_bytes(), now=time.time())
    _report(result, as_json)


@root.command()
@click.option("--yes", is_flag=True, help="Every device will be given the new root.")
@render.as_json
@click.pass_obj
def replace(workspace: Workspace, yes: bool, as_json: bool) -> None:
    """Begin a new chain of trust: so many root keys are lost that none can be signed.

    Keys and metadata are moved aside, releases are signed anew. No device believes the
    new root by itself: each must be given it with `slmops agent trust`.

    Example: slmops keys root replace --yes
    """
    from slmops.registry.reanchor import replace_root

    if not yes:
        raise click.UsageError(
            "no device follows by itself: visit each with `slmops agent trust`,"
            " then say --yes"
        )
    replace_root(workspace, key_access(), now=time.time())
    _show(_changes(workspace), as_json)


def _changes(workspace: Workspace) -> "KeyChanges":
    from slmops.registry.catalog import Catalog
    from slmops.registry.key_changes import KeyChanges
    from slmops.registry.key_folder import read_pinned_root

    pinned = read_pinned_root(workspace.keys)
    catalog = Catalog(workspace.registry, pinned_root=pinned)
    return KeyChanges(workspace.keys, catalog, key_access())


def _imported(uris: tuple[str, ...], access: "KeyAccess") -> "tuple[StoredSigner, ...]":
    from slmops.registry.signers import import_signer

    return tuple(import_signer(uri, access.secrets) for uri in uris)


def _show(changes: "KeyChanges", as_json: bool) -> None:
    from slmops.wire.codec import to_plain

    newest, rows = changes.newest_root(), changes.rows()
    expires = f"{newest.expires:%Y-%m-%d}"
    if as_json:
        render.json_document(
            {"root": newest.version, "expires": expires, "keys": to_plain(rows)}
        )
        return
    render.text(f"root version {newest.version}, expires {expires}")
    render.table(
        ("role", "must sign", "key", "kind", "private half"),
        [
            (row.role, row.threshold, row.keyid[:12], row.scheme, row.place)
            for row in rows
        ],
    )


def _report(result: "ChangeResult", as_json: bool) -> None:
    from slmops.wire.codec import to_plain

    if as_json:
        plain = {"version": result.version, "published": result.published}
        retired = [str(path) for path in result.retired]
        render.json_document(
            {**plain, "signatures": to_plain(result.signatures), "retired": retired}
        )
        return
    if result.published:
        render.text(f"published root version {result.version}")
        for path in result.retired:
            render.text(f"  retired {path.name}")
        return
    render.text(f"root version {result.version} waits in keys/next-root.json")
    for missing in result.signatures.missing:
        render.text(f"  to sign: {missing}")
    render.note(
        "next: slmops keys root sign FILE --key KEY; slmops keys root publish FILE"
    )
