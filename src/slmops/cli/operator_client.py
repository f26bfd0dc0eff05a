"""How operator commands reach the control plane: address, token, errors."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from slmops.domain.errors import (
    ERROR_CLASSES,
    InvalidInputError,
    NotFoundError,
    SlmopsError,
    UnavailableError,
)
from slmops.registry.workspace import Workspace

DEFAULT_SERVER = "http://127.0.0.1:8800"
_TIMEOUT_S = 30.0

Command = TypeVar("Command", bound=Callable[..., object])


def server_options(command: Command) -> Command:
    """Give a command the options `--server` and `--token`."""
    token = click.option(
        "--token",
        envvar="SLMOPS_OPERATOR_TOKEN",
        help="Operator token; default is the workspace's control/operator-token.",
    )
    server = click.option(
        "--server",
        envvar="SLMOPS_SERVER",
        default=DEFAULT_SERVER,
        show_default=True,
        help="Address of the control plane.",
    )
    return server(token(command))


class OperatorClient:
    """Calls the control plane as the operator."""

    def __init__(self, workspace: Workspace, server: str, token: str | None) -> None:
        import httpx

        if not server.startswith(("http://", "https://")):
            raise InvalidInputError(
                f"--server must start with http:// or https://, got {server!r}"
            )
        self._server = server
        found = token or _read_token(workspace.control / "operator-token")
        self._http = httpx.Client(
            base_url=server,
            headers={"Authorization": f"Bearer {found}"},
            timeout=_TIMEOUT_S,
        )

    def get(self, path: str) -> Any:  # noqa: ANN401 - a tree
        """Read a document.

        Raises:
            SlmopsError: as the control plane says, or UnavailableError without one.
        """
        return self._call("GET", path, None)

    def post(self, path: str, body: object = None) -> Any:  # noqa: ANN401 - a tree
        """Ask for something to be done.

        Raises:
            SlmopsError: as the control plane says, or UnavailableError without one.
        """
        return self._call("POST", path, body or {})

    def _call(self, method: str, path: str, body: object) -> Any:  # noqa: ANN401
        import httpx

        try:
            answer = self._http.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise UnavailableError(
                f"no control plane answers at {self._server}: {error};"
                " start one with `slmops serve`, or name it with --server"
            ) from None
        if not answer.is_success:
            raise _problem(answer.status_code, answer.content)
        return answer.json()


def _problem(status: int, content: bytes) -> SlmopsError:
    from slmops.wire.codec import parse_json

    message, code = f"control plane answered {status}", ""
    try:
        error = parse_json(content, where="answer")["error"]
        message, code = str(error["message"]), str(error["code"])
    except (InvalidInputError, KeyError, TypeError):
        pass
    for kind in ERROR_CLASSES:
        if kind.code == code:
            return kind(message)
    return UnavailableError(message)


def _read_token(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        raise NotFoundError(
            f"no operator token at {path}: `slmops serve` makes it;"
            " elsewhere give --token or SLMOPS_OPERATOR_TOKEN"
        ) from None
