"""`slmops device`: enrolment tokens and the fleet's devices."""

import time
from typing import Any

import click

from slmops.cli import render
from slmops.cli.operator_client import OperatorClient, server_options
from slmops.registry.workspace import Workspace

_MINUTE_S = 60
_HOUR_S = 3600
_DAY_S = 86_400


@click.group()
def device() -> None:
    """Enrolment tokens and the fleet's devices.

    Example: slmops device token, then on the device: slmops agent enrol --token …
    """


@device.command()
@click.option(
    "--expires-in-s",
    type=click.FloatRange(min=0, min_open=True),
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
    server: str,
    token: str | None,
    as_json: bool,
) -> None:
    """Make a token that enrols one device, once.

    Example: slmops device token --expires-in-s 600
    """
    client = OperatorClient(workspace, server, token)
    made = client.post("/v1/tokens", {"expires_in_s": expires_in_s})
    if as_json:
        render.json_document(made)
        return
    render.text(made["token"])
    render.note(
        f"valid once, for {expires_in_s:g} s; on the device:"
        f" slmops agent enrol --server {server} --token …"
    )


@device.command("list")
@server_options
@render.as_json
@click.pass_obj
def list_(workspace: Workspace, server: str, token: str | None, as_json: bool) -> None:
    """List the fleet as last seen.

    Example: slmops device list --json
    """
    answer = OperatorClient(workspace, server, token).get("/v1/devices")
    if as_json:
        render.json_document(answer)
        return
    if not answer["devices"]:
        render.note("no device is enrolled; `slmops device token` is the first step")
        return
    now = time.time()
    render.table(
        ("device", "class", "release", "state", "seen", "tok/s", "RSS MiB", "failures"),
        [
            (
                one["id"],
                one["device_class"],
                one["release"],
                one["state"],
                _ago(now - one["seen_at"]),
                _rounded(one["decode_tokens_per_s"]),
                _rounded(one["peak_rss_mib"] or None),
                one["failures"],
            )
            for one in answer["devices"]
        ],
    )


@device.command()
@click.argument("device_id", metavar="DEVICE")
@server_options
@render.as_json
@click.pass_obj
def show(
    workspace: Workspace, device_id: str, server: str, token: str | None, as_json: bool
) -> None:
    """Show everything known of a device.

    Example: slmops device show till-7
    """
    answer = _detail(workspace, device_id, server, token)
    if as_json:
        render.json_document(answer)
        return
    seen, facts = answer["device"], answer["facts"]
    lines = {
        "device": seen["id"],
        "class": seen["device_class"],
        "release": seen["release"],
        "variant": seen["variant"],
        "state": seen["state"],
        "reason": seen["reason"] or None,
        "seen": _ago(time.time() - seen["seen_at"]),
        "memory": f"{facts['memory_mib']} MiB",
        "disk": f"{facts['disk_mib']} MiB free",
        "processors": f"{facts['cpu_count']} × {facts['architecture']}",
        "labels": ", ".join(f"{k}={v}" for k, v in seen["labels"].items()) or None,
        "requests": f"{seen['requests']}, {seen['failures']} failed",
        "quarantined": ", ".join(answer["quarantined"]) or None,
        "assignments": ", ".join(_assignment(one) for one in answer["assignments"])
        or None,
    }
    render.table(("what", "value"), list(lines.items()))


@device.command()
@click.argument("device_id", metavar="DEVICE")
@server_options
@render.as_json
@click.pass_obj
def explain(
    workspace: Workspace, device_id: str, server: str, token: str | None, as_json: bool
) -> None:
    """Say why a device has its class: the first whose conditions all hold.

    Example: slmops device explain till-7
    """
    answer = _detail(workspace, device_id, server, token)
    if as_json:
        render.json_document(
            {name: answer[name] for name in ("device", "release", "fits")}
        )
        return
    chosen = answer["device"]["device_class"]
    if answer["release"] is None:
        render.note("no release is published yet, so there are no classes")
        return
    render.text(f"{device_id} is of class {chosen or '(none)'} in {answer['release']}:")
    for fit in answer["fits"]:
        name = fit["device_class"]
        if fit["mismatches"]:
            render.text(f"  {name}: no, {'; '.join(fit['mismatches'])}")
        elif name == chosen:
            render.text(f"  {name}: yes, all its conditions hold")
        else:
            render.text(f"  {name}: would fit too, but {chosen} comes first")


def _detail(
    workspace: Workspace, device_id: str, server: str, token: str | None
) -> Any:  # noqa: ANN401 - a tree
    from urllib.parse import quote

    path = f"/v1/devices/{quote(device_id, safe='')}"
    return OperatorClient(workspace, server, token).get(path)


def _assignment(one: dict[str, object]) -> str:
    back = " (back)" if one["revert"] else ""
    return f"{one['sequence']}: {one['release']}{back}"


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
