"""How operator commands reach the control plane: address, token, documents, errors."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

from slmops.domain.errors import (
    ERROR_CLASSES,
    InvalidInputError,
    NotFoundError,
    SlmopsError,
    UnavailableError,
    UntrustedError,
)
from slmops.domain.ids import check_name
from slmops.registry.workspace import Workspace

_TIMEOUT_S = 30.0
_ORDER_TIMEOUT_S = 900.0
"""Starting a rollout hashes all its artefacts before it answers."""
_MAX_ANSWER_BYTES = 1 << 30
"""A fleet of 100,000 devices lists in about 60 MB."""

Command = TypeVar("Command", bound=Callable[..., object])
Document = TypeVar("Document")


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
        help="Address of the control plane; default is the one that serves this"
        " workspace.",
    )
    return server(token(command))


class OperatorClient:
    """Calls the control plane as the operator."""

    def __init__(
        self, workspace: Workspace, server: str | None, token: str | None
    ) -> None:
        import httpx

        server = server or _find_server(workspace)
        if not server.startswith(("http://", "https://")):
            raise InvalidInputError(
                f"--server must start with http:// or https://, got {server[:80]!r}"
            )
        self.server = server
        found = token or _read_token(workspace.control / "operator-token")
        if not (found.isascii() and found.isprintable()):
            # Never quoted: messages end in logs.
            raise InvalidInputError(
                "the operator token must be printable ASCII; --token,"
                " SLMOPS_OPERATOR_TOKEN or the workspace's file holds something else"
            )
        self._http = httpx.Client(
            base_url=server,
            headers={"Authorization": f"Bearer {found}"},
        )
        command = click.get_current_context(silent=True)
        if command is not None:
            command.call_on_close(self._http.close)

    def get(self, path: str, kind: type[Document]) -> Document:
        """Read a document.

        Raises:
            SlmopsError: as the control plane says, or UnavailableError without one.
        """
        return self._call("GET", path, None, kind)

    def post(self, path: str, body: object, kind: type[Document]) -> Document:
        """Ask for something to be done.

        Raises:
            SlmopsError: as the control plane says, or UnavailableError without one.
        """
        return self._call("POST", path, body, kind)

    def _call(
        self, method: str, path: str, body: object, kind: type[Document]
    ) -> Document:
        import httpx

        from slmops.wire import codec

        content = None if body is None else codec.encode_json(body)
        read_s = _TIMEOUT_S if body is None else _ORDER_TIMEOUT_S
        timeout = httpx.Timeout(_TIMEOUT_S, read=read_s)
        try:
            answer = self._http.request(method, path, content=content, timeout=timeout)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise UnavailableError(
                f"no control plane answers at {self.server}: {error};"
                " start one with `slmops serve`, or name it with --server"
            ) from None
        if not answer.is_success:
            raise _problem(answer.status_code, answer.content)
        try:
            tree = codec.parse_json(
                answer.content, where=path, max_bytes=_MAX_ANSWER_BYTES
            )
            return codec.convert(tree, kind, where=path, lenient=True)
        except InvalidInputError as error:
            raise UnavailableError(
                f"what answers at {self.server} is no control plane of this"
                f" version: {error}"
            ) from None


def path_to(*parts: str) -> str:
    """Return the path of a resource.

    Raises:
        InvalidInputError: a part cannot be a name, so it could lead elsewhere.

    >>> path_to("devices", "till-7")
    '/v1/devices/till-7'
    """
    where = parts[0].removesuffix("s")
    return "/v1/" + "/".join(check_name(part, where=where) for part in parts)


def _find_server(workspace: Workspace) -> str:
    """Return the workspace's own control plane: no other is sent its token unasked.

    Raises:
        UnavailableError: none runs on this machine.
    """
    from slmops.control.occupancy import running_at

    found = running_at(workspace.control)
    if found is None:
        raise UnavailableError(
            f"no control plane of {workspace.root} runs here; start one with"
            " `slmops serve`, or name it with --server"
        )
    return found


def _problem(status: int, content: bytes) -> SlmopsError:
    from slmops.wire.codec import parse_json

    message, code = f"control plane answered {status}", ""
    try:
        error = parse_json(content, where="answer")["error"]
        message, code = str(error["message"]), str(error["code"])
    except (InvalidInputError, LookupError, TypeError):
        pass
    for kind in ERROR_CLASSES:
        if kind.code == code:
            return kind(message)
    return UnavailableError(message)


def _read_token(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        raise NotFoundError(
            f"no operator token at {path}: `slmops serve` makes it;"
            " elsewhere give --token or SLMOPS_OPERATOR_TOKEN"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UntrustedError(f"{path} cannot be read: {error}") from None
