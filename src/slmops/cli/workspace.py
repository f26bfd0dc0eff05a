"""`slmops workspace`: how full it is, and what can go."""

import time
from typing import TYPE_CHECKING

import click

from slmops.cli import render
from slmops.registry.workspace import Workspace

if TYPE_CHECKING:
    from slmops.workshop.housekeeping import Leftovers

_MIB = 1 << 20


@click.group("workspace")
def workspace_() -> None:
    """See how full the workspace is, and free space.

    Example: slmops workspace gc
    """


@workspace_.command()
@click.option("--apply", is_flag=True, help="Remove it; without this, only look.")
@click.option(
    "--keep-builds",
    type=click.IntRange(min=1),
    metavar="N",
    help="Drop what only builds older than the N newest refer to; default: none.",
)
@click.option(
    "--unfinished",
    is_flag=True,
    help="Drop finished steps of a stopped build too: it would begin anew.",
)
@render.as_json
@click.pass_obj
def gc(
    workspace: Workspace,
    apply: bool,
    keep_builds: int | None,
    unfinished: bool,
    as_json: bool,
) -> None:
    """Show what no model, build or release refers to, and free it with --apply.

    Never touched are imported models, releases, and what the newest build refers to.
    Whatever goes can be computed again; figures of old builds stay readable.

    Example: slmops workspace gc --keep-builds 1 --apply
    """
    from slmops.workshop.build_lock import build_lock
    from slmops.workshop.housekeeping import Keeping, find_leftovers, remove_leftovers

    keeping = Keeping(builds=keep_builds, unfinished=not unfinished)
    with render.progress(quiet=as_json) as progress, build_lock(workspace, progress):
        found = find_leftovers(workspace, now=time.time(), keeping=keeping)
        if apply:
            remove_leftovers(workspace, found)
    if as_json:
        render.json_document(
            {"removed": apply, "freed_bytes": found.bytes, "leftovers": found}
        )
        return
    _show(found, removed=apply)


def _show(found: "Leftovers", *, removed: bool) -> None:
    render.table(
        ("what", "count", "MiB"),
        [
            ("kept blobs", found.kept_blobs, round(found.kept_bytes / _MIB, 1)),
            ("blobs nothing refers to", len(found.blobs), _mib(found.blob_bytes)),
            ("folders left behind", len(found.folders), _mib(found.folder_bytes)),
        ],
    )
    said = "freed" if removed else "can be freed: slmops workspace gc --apply"
    render.note(f"{_mib(found.bytes)} MiB {said}")


def _mib(count: int) -> float:
    return round(count / _MIB, 1)
