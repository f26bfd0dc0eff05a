"""Commands of `slmops rollout` that steer: pause, resume, approve, abort, revert, stop."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from slmops.cli import render
from slmops.cli.operator_client import OperatorClient, path_to, server_options
from slmops.cli.rollout import show
from slmops.registry.workspace import Workspace

if TYPE_CHECKING:
    from slmops.control.aborted import AbortAnswer


@click.command()
@click.argument("rollout_id", metavar="ID")
@click.option("--reason", default="", help="Why, for the record.")
@server_options
@render.as_json
@click.pass_obj
def pause(
    workspace: Workspace,
    rollout_id: str,
    reason: str,
    server: str | None,
    token: str | None,
    as_json: bool,
) -> None:
    """Make no new offers until resumed; what was offered goes on.

    Example: slmops rollout pause r-2 --reason "shop hours"
    """
    from slmops.control.orders import PauseOrder

    client = OperatorClient(workspace, server, token)
    _steer(client, rollout_id, "pause", PauseOrder(reason=reason), as_json=as_json)


@click.command()
@click.argument("rollout_id", metavar="ID")
@server_options
@render.as_json
@click.pass_obj
def resume(
    workspace: Workspace,
    rollout_id: str,
    server: str | None,
    token: str | None,
    as_json: bool,
) -> None:
    """Go on after a pause.

    Example: slmops rollout resume r-2
    """
    client = OperatorClient(workspace, server, token)
    _steer(client, rollout_id, "resume", {}, as_json=as_json)


@click.command()
@click.argument("rollout_id", metavar="ID")
@server_options
@render.as_json
@click.pass_obj
def approve(
    workspace: Workspace,
    rollout_id: str,
    server: str | None,
    token: str | None,
    as_json: bool,
) -> None:
    """Approve a draft with a token of your own; the last approval needed starts it.

    Example: slmops rollout approve r-2

    Your token is read from SLMOPS_OPERATOR_TOKEN, or given with --token.
    """
    client = OperatorClient(workspace, server, token)
    _steer(client, rollout_id, "approve", {}, as_json=as_json)


@click.command()
@click.argument("rollout_id", metavar="ID")
@server_options
@render.as_json
@click.pass_obj
def revert(
    workspace: Workspace,
    rollout_id: str,
    server: str | None,
    token: str | None,
    as_json: bool,
) -> None:
    """Bring the devices of a finished rollout back, as a rollout with the same waves.

    Example: slmops rollout revert r-2
    """
    client = OperatorClient(workspace, server, token)
    _steer(client, rollout_id, "revert", {}, as_json=as_json)


@click.command("emergency-stop")
@click.option("--reason", required=True, help="Why, for the record.")
@server_options
@render.as_json
@click.pass_obj
def emergency_stop(
    workspace: Workspace,
    reason: str,
    server: str | None,
    token: str | None,
    as_json: bool,
) -> None:
    """End every rollout at once and bring its devices back, without waves or gates.

    Example: slmops rollout emergency-stop --reason "wrong prices in answers"

    A device that is away hears of it first of all when it returns.
    """
    from slmops.control.orders import ReasonOrder
    from slmops.control.views import RolloutList

    client = OperatorClient(workspace, server, token)
    stopped = client.post("/v1/emergency-stop", ReasonOrder(reason=reason), RolloutList)
    if as_json:
        render.json_document(stopped)
        return
    for one in stopped.rollouts:
        reached = sum(wave.offered for wave in one.waves)
        render.text(
            f"{one.id} {one.release} {one.state}: {reached} devices were offered it"
        )
    if not stopped.rollouts:
        render.text(
            "no rollout was going on; `slmops rollout revert ID` undoes a done one"
        )


@click.command()
@click.argument("rollout_id", metavar="ID")
@click.option("--keep", is_flag=True, help="Leave devices on the release they have.")
@click.option("--revert", is_flag=True, help="Bring devices back to what they ran.")
@server_options
@render.as_json
@click.pass_obj
def abort(
    workspace: Workspace,
    *,
    rollout_id: str,
    keep: bool,
    revert: bool,
    server: str | None,
    token: str | None,
    as_json: bool,
) -> None:
    """End a rollout; say what its devices shall do: exactly one of --keep and --revert.

    Example: slmops rollout abort r-2 --revert
    """
    from slmops.control.aborted import AbortAnswer
    from slmops.control.orders import AbortOrder

    if keep == revert:
        raise click.UsageError("give exactly one of --keep and --revert")
    client = OperatorClient(workspace, server, token)
    path = path_to("rollouts", rollout_id, "abort")
    aborted = client.post(path, AbortOrder(keep=keep), AbortAnswer)
    show(aborted, as_json=as_json)
    if not as_json:
        _show_ways(aborted)


def _steer(
    client: OperatorClient, rollout_id: str, verb: str, order: object, *, as_json: bool
) -> None:
    """Send an order about one rollout, and show what became of it."""
    from slmops.control.views import RolloutDetail

    path = path_to("rollouts", rollout_id, verb)
    show(client.post(path, order, RolloutDetail), as_json=as_json)


def _show_ways(aborted: "AbortAnswer") -> None:
    """Say who goes back, who stays and why; many with one reason share a line."""
    by_reason: dict[str, list[str]] = {}
    for one in aborted.stay:
        by_reason.setdefault(one.reason, []).append(one.device)
    if aborted.back:
        render.text(f"{_devices(aborted.back)} go back to what they ran before")
    for reason, devices in by_reason.items():
        render.text(f"{_devices(devices)} stay as they are: {reason}")
    if not aborted.back and not aborted.stay:
        render.text("no device has the release")


def _devices(names: Sequence[str], most: int = 5) -> str:
    """Name some of the devices.

    >>> _devices(["a", "b"])
    '2 device(s) (a, b)'
    """
    more = f", and {len(names) - most} more" if len(names) > most else ""
    return f"{len(names)} device(s) ({', '.join(names[:most])}{more})"
