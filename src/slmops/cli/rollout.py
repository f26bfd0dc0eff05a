"""`slmops rollout`: bring a release to the fleet in waves, watch, steer."""

import time
from collections.abc import Sequence
from typing import Any

import click

from slmops.cli import render
from slmops.cli.operator_client import OperatorClient, server_options
from slmops.domain.errors import NotFoundError
from slmops.registry.workspace import Workspace

_LOOK_EVERY_S = 0.5
_GOING_ON = frozenset({"running", "paused"})


@click.group()
def rollout() -> None:
    """Bring a release to the fleet in waves; it halts by itself when devices fail.

    Example: slmops rollout start assistant-2 && slmops rollout status --watch
    """


@rollout.command()
@click.argument("release")
@server_options
@render.as_json
@click.pass_obj
def start(
    workspace: Workspace, release: str, server: str, token: str | None, as_json: bool
) -> None:
    """Start bringing RELEASE to the fleet.

    Example: slmops rollout start assistant-2
    """
    client = OperatorClient(workspace, server, token)
    _show(client.post("/v1/rollouts", {"release": release}), as_json=as_json)


@rollout.command("list")
@server_options
@render.as_json
@click.pass_obj
def list_(workspace: Workspace, server: str, token: str | None, as_json: bool) -> None:
    """List rollouts, newest first.

    Example: slmops rollout list
    """
    answer = OperatorClient(workspace, server, token).get("/v1/rollouts")
    if as_json:
        render.json_document(answer)
        return
    if not answer["rollouts"]:
        render.note("no rollout yet; `slmops rollout start RELEASE` makes one")
        return
    render.table(
        ("rollout", "release", "state", "wave", "devices", "ok", "failed", "reason"),
        [
            (
                one["id"],
                one["release"],
                one["state"],
                f"{one['wave'] + 1} of {len(one['waves'])}",
                _sum(one, "devices"),
                _sum(one, "succeeded"),
                _sum(one, "failed") + _sum(one, "silent"),
                one["reason"],
            )
            for one in answer["rollouts"]
        ],
    )


@rollout.command()
@click.argument("rollout_id", metavar="[ID]", required=False)
@click.option("--watch", is_flag=True, help="Keep updating until the rollout ends.")
@server_options
@render.as_json
@click.pass_obj
def status(
    workspace: Workspace,
    rollout_id: str | None,
    watch: bool,
    server: str,
    token: str | None,
    as_json: bool,
) -> None:
    """Show a rollout, the newest by default; exits with 0 whatever its state.

    Example: slmops rollout status r-2 --watch
    """
    client = OperatorClient(workspace, server, token)
    path = f"/v1/rollouts/{rollout_id or _newest(client)}"
    if watch:
        _watch(client, path, quiet=as_json)
    _show(client.get(path), as_json=as_json)


@rollout.command()
@click.argument("rollout_id", metavar="ID")
@click.option("--reason", default="", help="Why, for the record.")
@server_options
@render.as_json
@click.pass_obj
def pause(
    workspace: Workspace,
    rollout_id: str,
    reason: str,
    server: str,
    token: str | None,
    as_json: bool,
) -> None:
    """Make no new offers until resumed; what was offered goes on.

    Example: slmops rollout pause r-2 --reason "shop hours"
    """
    client = OperatorClient(workspace, server, token)
    answer = client.post(f"/v1/rollouts/{rollout_id}/pause", {"reason": reason})
    _show(answer, as_json=as_json)


@rollout.command()
@click.argument("rollout_id", metavar="ID")
@server_options
@render.as_json
@click.pass_obj
def resume(
    workspace: Workspace, rollout_id: str, server: str, token: str | None, as_json: bool
) -> None:
    """Go on after a pause.

    Example: slmops rollout resume r-2
    """
    client = OperatorClient(workspace, server, token)
    _show(client.post(f"/v1/rollouts/{rollout_id}/resume"), as_json=as_json)


@rollout.command()
@click.argument("rollout_id", metavar="ID")
@click.option(
    "--keep/--revert",
    default=False,
    show_default=True,
    help="Leave devices on the release they have, or bring them back.",
)
@server_options
@render.as_json
@click.pass_obj
def abort(
    workspace: Workspace,
    rollout_id: str,
    keep: bool,
    server: str,
    token: str | None,
    as_json: bool,
) -> None:
    """End a rollout; devices go back to what they ran unless --keep.

    Example: slmops rollout abort r-2 --revert
    """
    client = OperatorClient(workspace, server, token)
    answer = client.post(f"/v1/rollouts/{rollout_id}/abort", {"keep": keep})
    _show(answer, as_json=as_json)


def _newest(client: OperatorClient) -> str:
    found = client.get("/v1/rollouts")["rollouts"]
    if not found:
        raise NotFoundError("there is no rollout yet: slmops rollout start RELEASE")
    newest: str = found[0]["id"]
    return newest


def _sum(one: Any, name: str) -> int:  # noqa: ANN401 - a tree
    return sum(wave[name] for wave in one["waves"])


def _show(one: Any, *, as_json: bool) -> None:  # noqa: ANN401 - a tree
    if as_json:
        render.json_document(one)
        return
    for line in _summary(one):
        render.text(line)
    for member in one["members"]:
        if member["outcome"] in {"failed", "silent"}:
            render.text(f"  ✗ {member['device']}: {member['reason']}")
    for missed in one["left_out"]:
        render.text(f"  – {missed['device']} left out: {missed['reason']}")
    for verdict in one["evaluations"][-3:]:
        result = verdict["result"]
        render.text(f"  {result['gate']} {result['verdict']}: {result['reason']}")


def _summary(one: Any) -> Sequence[str]:  # noqa: ANN401 - a tree
    why = f": {one['reason']}" if one["reason"] else ""
    lines = [f"{one['id']} {one['release']} {one['state']}{why}"]
    for wave in one["waves"]:
        mark = ">" if wave["index"] == one["wave"] else " "
        lines.append(
            f"{mark} wave {wave['index'] + 1}  {_bar(wave)}  {wave['devices']} devices,"
            f" {wave['succeeded']} ok, {wave['failed'] + wave['silent']} failed"
        )
    return lines


def _bar(wave: Any, width: int = 24) -> str:  # noqa: ANN401 - a tree
    """Draw a wave: done, failed, offered, not yet.

    >>> _bar({"devices": 4, "succeeded": 2, "failed": 1, "silent": 0, "offered": 4}, 4)
    '██✗▒'
    """
    if not wave["devices"]:
        return "·" * width
    bad = wave["failed"] + wave["silent"]
    working = wave["offered"] - wave["succeeded"] - bad
    scale = width / wave["devices"]
    cells = [
        round(wave["succeeded"] * scale) * "█",
        round(bad * scale) * "✗",
        round(working * scale) * "▒",
    ]
    return "".join(cells).ljust(width, "░")[:width]


def _watch(client: OperatorClient, path: str, *, quiet: bool) -> None:
    """Update until the end: in place on a terminal, else a line per change."""
    import sys

    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(stderr=True)
    in_place = sys.stderr.isatty() and not quiet
    last: Sequence[str] = ()
    with Live(console=console, transient=True, auto_refresh=False) as live:
        while True:
            one = client.get(path)
            lines = _summary(one)
            if in_place:
                live.update(Text("\n".join(lines)), refresh=True)
            elif lines != last and not quiet:
                wave = lines[1 + one["wave"]]
                render.note(f"{lines[0]}  {wave}")
            last = lines
            if one["state"] not in _GOING_ON:
                return
            time.sleep(_LOOK_EVERY_S)
