"""`slmops device`: enrolment tokens and the fleet's devices."""

import time
from typing import TYPE_CHECKING

import click

from slmops.cli import render
from slmops.cli.operator_client import OperatorClient, path_to, server_options
from slmops.registry.workspace import Workspace

if TYPE_CHECKING:
    from slmops.control.views import DeviceDetail, DeviceView
    from slmops.domain.sync import Assignment

_MINUTE_S = 60
_HOUR_S = 3600
_DAY_S = 86_400
_TOLD = frozenset({"refused", "adrift"})
"""Drift worth a word in a list."""


@click.group()
def device() -> None:
    """Enrolment tokens and the fleet's devices.

    Example: slmops device token, then on the device: slmops agent enrol --token …
    """


@device.command()
@click.option(
    "--expires-in-s",
    type=click.FloatRange(min=1, max=30 * _DAY_S),
    default=3600.0,
    show_default=True,
    help="Life of the token, seconds.",
)
@server_options
@render.as_json
@click.pass_obj
def token(
    workspace: Workspace,
    expires_in_s: float,
    server: str | None,
    token: str | None,
    as_json: bool,
) -> None:
    """Make a token that enrols one device, once.

    Example: slmops device token --expires-in-s 600
    """
    from slmops.control.orders import TokenAnswer, TokenOrder

    client = OperatorClient(workspace, server, token)
    order = TokenOrder(expires_in_s=expires_in_s)
    made = client.post("/v1/tokens", order, TokenAnswer)
    if as_json:
        render.json_document(made)
        return
    render.text(made.token)
    render.note(
        f"valid once, for {expires_in_s:g} s; on the device:"
        f" slmops agent enrol --server {client.server} --token …"
    )


@device.command("list")
@click.option("--all", "everything", is_flag=True, help="Retired devices, too.")
@server_options
@render.as_json
@click.pass_obj
def list_(
    workspace: Workspace,
    everything: bool,
    server: str | None,
    token: str | None,
    as_json: bool,
) -> None:
    """List the fleet as last seen.

    Example: slmops device list --json
    """
    from slmops.control.views import DeviceList

    answer = OperatorClient(workspace, server, token).get("/v1/devices", DeviceList)
    retired = 0
    if not everything:
        belong = tuple(one for one in answer.devices if one.retired_at is None)
        retired = len(answer.devices) - len(belong)
        answer = DeviceList(devices=belong)
    if as_json:
        render.json_document(answer)
        return
    if retired:
        render.note(f"not listed: {retired} retired, see --all")
    if not answer.devices:
        render.note("no device is enrolled; `slmops device token` is the first step")
        return
    now = time.time()
    render.table(
        (
            *("device", "class", "release", "state", "drift", "seen", "tok/s"),
            *("RSS MiB", "failures"),
        ),
        [_row(one, now) for one in answer.devices],
    )


@device.command()
@click.argument("device_id", metavar="DEVICE")
@server_options
@render.as_json
@click.pass_obj
def show(
    workspace: Workspace,
    device_id: str,
    server: str | None,
    token: str | None,
    as_json: bool,
) -> None:
    """Show everything known of a device.

    Example: slmops device show till-7
    """
    answer = _detail(workspace, device_id, server, token)
    if as_json:
        render.json_document(answer)
        return
    render.table(("what", "value"), _lines(answer, time.time()))


@device.command()
@click.argument("device_id", metavar="DEVICE")
@server_options
@render.as_json
@click.pass_obj
def explain(
    workspace: Workspace,
    device_id: str,
    server: str | None,
    token: str | None,
    as_json: bool,
) -> None:
    """Say why a device has its class: the first whose conditions all hold.

    Example: slmops device explain till-7
    """
    answer = _detail(workspace, device_id, server, token)
    if as_json:
        render.json_document(
            {"device": answer.device, "release": answer.release, "fits": answer.fits}
        )
        return
    chosen = answer.device.device_class
    if answer.release is None:
        render.note("no release is published yet, so there are no classes")
        return
    render.text(f"{device_id} is of class {chosen or '(none)'} in {answer.release}:")
    for fit in answer.fits:
        if fit.mismatches:
            render.text(f"  {fit.device_class}: no, {'; '.join(fit.mismatches)}")
        elif fit.device_class == chosen:
            render.text(f"  {fit.device_class}: yes, all its conditions hold")
        else:
            render.text(
                f"  {fit.device_class}: would fit too, but {chosen} comes first"
            )


@device.command()
@click.argument("device_id", metavar="DEVICE")
@server_options
@render.as_json
@click.pass_obj
def retire(
    workspace: Workspace,
    device_id: str,
    server: str | None,
    token: str | None,
    as_json: bool,
) -> None:
    """Take a device that is dead, stolen or sold out of the fleet, for good.

    Its key is refused from now on, no rollout waits for it, and running ones leave it
    out: neither a success nor a failure, except for a failure it has reported. Its
    record stays. To come back it enrols under another name, with a new token and from
    an empty state folder. Doing it again changes nothing.

    Example: slmops device retire till-7
    """
    from slmops.control.views import DeviceDetail

    client = OperatorClient(workspace, server, token)
    path = path_to("devices", device_id, "retire")
    answer = client.post(path, {}, DeviceDetail)
    if as_json:
        render.json_document(answer)
        return
    render.text(f"{device_id} is retired: its key is refused from now on")


def _detail(
    workspace: Workspace, device_id: str, server: str | None, token: str | None
) -> "DeviceDetail":
    from slmops.control.views import DeviceDetail

    client = OperatorClient(workspace, server, token)
    return client.get(path_to("devices", device_id), DeviceDetail)


def _row(one: "DeviceView", now: float) -> tuple[object, ...]:
    return (
        one.id,
        one.device_class,
        one.release,
        _state(one),
        one.drift.value if one.drift in _TOLD else None,
        _ago(now - one.seen_at),
        _rounded(one.decode_tokens_per_s),
        _rounded(one.peak_rss_mib or None),
        one.failures,
    )


def _lines(answer: "DeviceDetail", now: float) -> list[tuple[str, object]]:
    seen, facts = answer.device, answer.facts
    return [
        ("device", seen.id),
        ("class", seen.device_class),
        ("release", seen.release),
        ("variant", seen.variant),
        ("state", _state(seen)),
        ("reason", seen.reason or None),
        ("should run", seen.desired),
        ("drift", ": ".join(filter(None, (seen.drift.value, seen.drift_reason)))),
        ("seen", _ago(now - seen.seen_at)),
        ("memory", f"{facts.memory_mib} MiB"),
        ("disk", f"{facts.disk_mib} MiB free"),
        ("processors", f"{facts.cpu_count} × {facts.architecture}"),
        ("runtimes", ", ".join(facts.runtimes) or None),
        ("labels", ", ".join(f"{k}={v}" for k, v in seen.labels.items()) or None),
        ("requests", f"{seen.requests}, {seen.failures} failed"),
        ("quarantined", ", ".join(answer.quarantined) or None),
        ("assignments", ", ".join(map(_assignment, answer.assignments)) or None),
    ]


def _state(one: "DeviceView") -> str:
    return one.state if one.retired_at is None else "retired"


def _assignment(one: "Assignment") -> str:
    back = " (back)" if one.revert else ""
    return f"{one.sequence}: {one.release}{back}"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


def _ago(seconds: float) -> str:
    """Say how long ago something was, for people.

    >>> _ago(5), _ago(130), _ago(7300)
    ('5 s ago', '2 min ago', '2 h ago')
    """
    for unit, length in (("d", _DAY_S), ("h", _HOUR_S), ("min", _MINUTE_S)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit} ago"
    return f"{max(int(seconds), 0)} s ago"
