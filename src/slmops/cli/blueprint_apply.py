"""`slmops blueprint apply`: from a changed file to a release, and on to the fleet."""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from slmops.cli import render
from slmops.cli.blueprint import changes_since, render_changes
from slmops.cli.operator_client import OperatorClient, server_options
from slmops.domain.errors import NotFoundError
from slmops.registry.workspace import Workspace

if TYPE_CHECKING:
    from slmops.control.views import RolloutDetail
    from slmops.domain.release import Release


@click.command()
@click.argument("path", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--yes", is_flag=True, help="Do it without asking.")
@click.option(
    "--rollout", is_flag=True, help="Start bringing the release to the fleet, too."
)
@server_options
@render.as_json
@click.pass_obj
def apply(
    workspace: Workspace,
    *,
    path: Path,
    yes: bool,
    rollout: bool,
    server: str | None,
    token: str | None,
    as_json: bool,
) -> None:
    """Bring about what the blueprint at PATH says: show the changes, ask, build, release.

    What did not change is not computed again. A blueprint that says what the newest
    release was made from changes nothing. A build below its quality floor ends here:
    release it by hand, with a reason.

    Example: slmops blueprint apply blueprint.yaml --rollout
    """
    label = _show_changes(workspace, path, quiet=as_json)
    if label is not None:
        _done(label, None, as_json=as_json)
        return
    if not yes:
        what = "Build, release and roll out?" if rollout else "Build and release?"
        click.confirm(what, abort=True, err=True)
    made = _release(workspace, path, quiet=as_json)
    started = None
    if rollout:
        started = _start(OperatorClient(workspace, server, token), made.label)
    _done(made.label, started, as_json=as_json)


def _show_changes(workspace: Workspace, path: Path, *, quiet: bool) -> str | None:
    """Print the plan; return the release that already is what PATH says, or None."""
    try:
        label, changes = changes_since(workspace, path, None)
    except NotFoundError as error:
        render.note(f"the first release: {error}" if not quiet else "")
        return None
    if not quiet and changes:
        render_changes(path, label, changes)
    return None if changes else label


def _release(workspace: Workspace, path: Path, *, quiet: bool) -> "Release":
    from slmops.cli.key_access import release_keys
    from slmops.registry.bins import bin_settings
    from slmops.workshop.blueprints import load_resolved
    from slmops.workshop.pipeline import BuildOptions, run_build
    from slmops.workshop.recipe_lock import lock_build
    from slmops.workshop.releases import create_release
    from slmops.workshop.requirements import require_extras

    resolved = load_resolved(path)
    require_extras(resolved.blueprint, on_ray=False, to_mlflow=False)
    lock_build(resolved, workspace, path, locked=False)
    now = time.time()
    keys = release_keys(workspace, now=now)
    with render.progress(quiet=quiet) as progress:
        run = run_build(
            resolved.blueprint,
            workspace,
            folder=path.absolute().parent,
            options=BuildOptions(),
            progress=progress,
        )
        progress("hash artefacts and sign", 0, 0)
        bins = bin_settings(os.environ)
        made, _ = create_release(workspace, run.result, keys, now, None, bins)
    return made


def _start(client: OperatorClient, label: str) -> "RolloutDetail":
    from slmops.control.orders import RolloutOrder
    from slmops.control.views import RolloutDetail

    return client.post("/v1/rollouts", RolloutOrder(release=label), RolloutDetail)


def _done(label: str, started: "RolloutDetail | None", *, as_json: bool) -> None:
    if as_json:
        rollout = None if started is None else started.id
        render.json_document({"release": label, "rollout": rollout})
        return
    if started is not None:
        render.text(f"{label} is on its way: rollout {started.id} is {started.state}")
        render.note("watch it: slmops rollout status --watch")
        return
    render.text(f"the newest release is {label}")
