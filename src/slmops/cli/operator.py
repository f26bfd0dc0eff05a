"""`slmops operator`: people with a token of their own, who can approve and be named."""

import click

from slmops.cli import render
from slmops.cli.operator_client import OperatorClient, path_to, server_options
from slmops.registry.workspace import Workspace


@click.group()
def operator() -> None:
    """Give people tokens of their own: the audit log names them, and they can approve.

    Example: slmops operator add ada
    """


@operator.command()
@click.argument("name")
@server_options
@render.as_json
@click.pass_obj
def add(
    workspace: Workspace,
    name: str,
    server: str | None,
    token: str | None,
    as_json: bool,
) -> None:
    """Add NAME and print the token: it is shown once. Needs the workspace's own token.

    Example: slmops operator add ada
    """
    from slmops.control.orders import OperatorAnswer, OperatorOrder

    client = OperatorClient(workspace, server, token)
    made = client.post("/v1/operators", OperatorOrder(name=name), OperatorAnswer)
    if as_json:
        render.json_document(made)
        return
    render.text(made.token)
    render.note(
        f"{name} sends it as SLMOPS_OPERATOR_TOKEN or --token; it is shown only now"
    )


@operator.command("list")
@server_options
@render.as_json
@click.pass_obj
def list_(
    workspace: Workspace, server: str | None, token: str | None, as_json: bool
) -> None:
    """List operators, also those who were removed.

    Example: slmops operator list
    """
    from slmops.control.orders import OperatorList

    client = OperatorClient(workspace, server, token)
    answer = client.get("/v1/operators", OperatorList)
    if as_json:
        render.json_document(answer)
        return
    rows = [
        (one.name, "removed" if one.removed_at is not None else "active")
        for one in answer.operators
    ]
    render.table(("operator", "token"), [("operator", "the workspace's own"), *rows])


@operator.command()
@click.argument("name")
@server_options
@render.as_json
@click.pass_obj
def remove(
    workspace: Workspace,
    name: str,
    server: str | None,
    token: str | None,
    as_json: bool,
) -> None:
    """Make NAME's token worthless at once. Needs the workspace's own token.

    Example: slmops operator remove ada
    """
    from slmops.control.orders import OperatorList

    client = OperatorClient(workspace, server, token)
    left = client.post(path_to("operators", name, "remove"), {}, OperatorList)
    if as_json:
        render.json_document(left)
        return
    render.text(f"{name}'s token is worthless now")
