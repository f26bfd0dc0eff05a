"""`slmops rollout`: bring a release to the fleet in waves, watch, steer."""

import importlib
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

from slmops.cli import render
from slmops.cli.operator_client import OperatorClient, path_to, server_options
from slmops.domain.errors import NotFoundError, UnavailableError
from slmops.registry.workspace import Workspace

if TYPE_CHECKING:
    from slmops.control.views import RolloutDetail, RolloutView, WaveView

_ELSEWHERE = {
    "pause": "slmops.cli.rollout_steering",
    "resume": "slmops.cli.rollout_steering",
    "approve": "slmops.cli.rollout_steering",
    "abort": "slmops.cli.rollout_steering",
    "revert": "slmops.cli.rollout_steering",
    "emergency-stop": "slmops.cli.rollout_steering",
    "simulate": "slmops.cli.rollout_simulate",
}
"""Command → the module that holds it."""
_LOOK_EVERY_S = 0.5
_OUTAGE_S = 120.0
"""Watching survives a restart of the control plane this long."""
_GOING_ON = frozenset({"draft", "running", "paused"})


class _Steering(click.Group):
    """Finds the commands that steer or simulate in files of their own."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*super().list_commands(ctx), *_ELSEWHERE]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _ELSEWHERE:
            module = importlib.import_module(_ELSEWHERE[cmd_name])
            command: click.Command = getattr(module, cmd_name.replace("-", "_"))
            return command
        return super().get_command(ctx, cmd_name)


@click.group(cls=_Steering)
def rollout() -> None:
    """Bring a release to the fleet in waves; it halts by itself when devices fail.

    Example: slmops rollout start assistant-2 && slmops rollout status --watch
    """


@rollout.command()
@click.argument("release")
@click.option(
    "--allow-downgrade",
    is_flag=True,
    help="Bring RELEASE although a newer one was rolled out before.",
)
@click.option(
    "--despite-quarantine",
    is_flag=True,
    help="Bring variants that failed in a rollout which halted.",
)
@server_options
@render.as_json
@click.pass_obj
def start(
    workspace: Workspace,
    *,
    release: str,
    allow_downgrade: bool,
    despite_quarantine: bool,
    server: str | None,
    token: str | None,
    as_json: bool,
) -> None:
    """Start bringing RELEASE to the fleet.

    Example: slmops rollout start assistant-2

    `slmops rollout simulate` shows before what it would reach, and how its gates act.
    """
    from slmops.control.orders import RolloutOrder
    from slmops.control.views import RolloutDetail

    client = OperatorClient(workspace, server, token)
    order = RolloutOrder(
        release=release,
        allow_downgrade=allow_downgrade,
        despite_quarantine=despite_quarantine,
    )
    show(client.post("/v1/rollouts", order, RolloutDetail), as_json=as_json)


@rollout.command("list")
@server_options
@render.as_json
@click.pass_obj
def list_(
    workspace: Workspace, server: str | None, token: str | None, as_json: bool
) -> None:
    """List rollouts, newest first.

    Example: slmops rollout list
    """
    from slmops.control.views import RolloutList

    answer = OperatorClient(workspace, server, token).get("/v1/rollouts", RolloutList)
    if as_json:
        render.json_document(answer)
        return
    if not answer.rollouts:
        render.note("no rollout yet; `slmops rollout start RELEASE` makes one")
        return
    render.table(
        ("rollout", "release", "state", "wave", "devices", "ok", "failed", "reason"),
        [_row(one) for one in answer.rollouts],
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
    server: str | None,
    token: str | None,
    as_json: bool,
) -> None:
    """Show a rollout, the newest by default; exits with 0 whatever its state.

    Example: slmops rollout status r-2 --watch
    """
    from slmops.control.views import RolloutDetail

    client = OperatorClient(workspace, server, token)
    path = path_to("rollouts", rollout_id or _newest(client))
    if watch:
        _watch(client, path, quiet=as_json)
    show(client.get(path, RolloutDetail), as_json=as_json)


def _newest(client: OperatorClient) -> str:
    from slmops.control.views import RolloutList

    found = client.get("/v1/rollouts", RolloutList).rollouts
    if not found:
        raise NotFoundError("there is no rollout yet: slmops rollout start RELEASE")
    return found[0].id


def _row(one: "RolloutView") -> tuple[object, ...]:
    return (
        one.id,
        one.release,
        one.state,
        _where(one),
        sum(wave.devices for wave in one.waves),
        sum(wave.succeeded for wave in one.waves),
        sum(wave.failed + wave.silent for wave in one.waves),
        one.reason,
    )


def _where(one: "RolloutView") -> str:
    lab = int(one.lab)
    if one.wave < lab:
        return "lab"
    return f"{one.wave + 1 - lab} of {len(one.waves) - lab}"


def show(one: "RolloutDetail", *, as_json: bool) -> None:
    """Print a rollout with what failed, who is left out, and the newest verdicts."""
    if as_json:
        render.json_document(one)
        return
    for line in _summary(one):
        render.text(line)
    for member in one.members:
        if member.outcome in {"failed", "silent"}:
            render.text(f"  ✗ {member.device}: {member.reason or member.outcome}")
    for missed in one.left_out:
        render.text(f"  – {missed.device} left out: {missed.reason}")
    for verdict in one.evaluations[-3:]:
        result = verdict.result
        render.text(f"  {result.gate} {result.verdict}: {result.reason}")


def _summary(one: "RolloutDetail") -> Sequence[str]:
    why = f": {one.reason}" if one.reason else ""
    back = f", back from {one.reverts}" if one.reverts else ""
    lines = [f"{one.id} {one.release} {one.state}{back}{why}"]
    if one.state == "draft":
        lines.append(
            f"  {len(one.approved_by)} of {one.approvals} approvals; another operator"
            f" gives one with `slmops rollout approve {one.id}`"
        )
    for wave in one.waves:
        mark = ">" if wave.index == one.wave else " "
        number = wave.index + 1 - int(one.lab)
        name = f"wave {number}" if number else "lab   "
        lines.append(
            f"{mark} {name}  {_bar(wave)}  {wave.devices} devices,"
            f" {wave.succeeded} ok, {wave.failed + wave.silent} failed"
        )
    return lines


def _bar(wave: "WaveView", width: int = 24) -> str:
    """Draw a wave: done, failed, offered, not yet.

    >>> from slmops.control.views import WaveView
    >>> wave = WaveView(index=0, devices=4, offered=4, succeeded=2, failed=1, silent=0)
    >>> _bar(wave, 4)
    '██✗▒'
    """
    if not wave.devices:
        return "·" * width
    bad = wave.failed + wave.silent
    working = wave.offered - wave.succeeded - bad
    scale = width / wave.devices
    cells = [
        round(wave.succeeded * scale) * "█",
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

    if quiet or not sys.stderr.isatty():
        _follow(client, path, quiet=quiet)
        return
    console = Console(stderr=True)
    with Live(console=console, transient=True, auto_refresh=False) as live:
        for one in _looks(client, path):
            live.update(Text("\n".join(_summary(one))), refresh=True)


def _follow(client: OperatorClient, path: str, *, quiet: bool) -> None:
    last = ""
    for one in _looks(client, path):
        lines = _summary(one)
        line = f"{lines[0]}  {lines[one.wave - len(one.waves)]}"
        if line != last and not quiet:
            render.note(line)
        last = line


def _looks(client: OperatorClient, path: str) -> Iterator["RolloutDetail"]:
    """Read the rollout again and again until it ends.

    Raises:
        UnavailableError: the control plane was not there at first, or stayed away.
    """
    from slmops.control.views import RolloutDetail

    give_up = 0.0
    while True:
        begun = time.monotonic()
        try:
            one = client.get(path, RolloutDetail)
        except UnavailableError:
            if begun > give_up:
                raise
        else:
            give_up = begun + _OUTAGE_S
            yield one
            if one.state not in _GOING_ON:
                return
        # A large fleet's rollout is a large answer: leave the server most of its time.
        time.sleep(max(_LOOK_EVERY_S, 4 * (time.monotonic() - begun)))
