"""`slmops serve`: the control plane and its dashboard."""

import os
import sys
from dataclasses import replace

import click

from slmops.cli import render
from slmops.registry.workspace import Workspace

_DAY_S = 86_400


@click.command()
@click.option(
    "--host",
    envvar="SLMOPS_CONTROL_HOST",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on.",
)
@click.option(
    "--port",
    envvar="SLMOPS_CONTROL_PORT",
    type=click.IntRange(0, 65_535),
    default=8800,
    show_default=True,
    help="TCP port; 0 takes a free one.",
)
@click.option(
    "--poll-s",
    envvar="SLMOPS_CONTROL_POLL_S",
    type=click.FloatRange(min=0, min_open=True, max=_DAY_S),
    default=30.0,
    show_default=True,
    help="Mean seconds between two syncs of a device.",
)
@click.option("--debug", is_flag=True, help="Log one line a request.")
@render.as_json
@click.pass_obj
def serve(
    workspace: Workspace,
    host: str,
    port: int,
    poll_s: float,
    debug: bool,
    as_json: bool,
) -> None:
    """Run the control plane and its dashboard until Ctrl-C or SIGTERM.

    Devices enrol, sync and download here; rollouts move; the database and the
    operator's token lie in the workspace's control folder. On a terminal it prints a
    link to the dashboard that carries the token; into a log it prints none. Commands
    on the same workspace find it by themselves (control/address.json).

    Plain HTTP: for anything beyond this machine put a TLS proxy in front. Settings
    without an option, such as rate limits, are SLMOPS_CONTROL_ variables.

    Example: slmops serve --port 8800
    """
    from slmops.control import app
    from slmops.control.auth import OPERATOR_TOKEN_FILE, load_operator_token
    from slmops.control.settings import load_control_settings

    settings = replace(
        load_control_settings(workspace, os.environ),
        host=host,
        port=port,
        poll_s=poll_s,
    )
    app.configure_logging(debug=debug)

    def announce(url: str) -> None:
        token_file = workspace.control / OPERATOR_TOKEN_FILE
        page, how = f"{url}/", f"; its token is in {token_file}"
        if sys.stdout.isatty():
            # Only there: what goes into a file or a journal others may read.
            page, how = f"{url}/#token={load_operator_token(workspace.control)}", ""
        if as_json:
            render.json_document(
                {"url": url, "dashboard": page, "operator_token_file": str(token_file)}
            )
        else:
            render.text(f"Control plane on {url}; its state is in {workspace.control}")
            render.text(f"Dashboard: {page}{how}")
            render.text("Next: `slmops device token` makes a token to enrol a device.")
        sys.stdout.flush()

    app.serve(settings, announce=announce)
