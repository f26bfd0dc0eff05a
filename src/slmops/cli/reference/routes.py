"""The control plane's HTTP API as a page, made from the route table."""

from slmops.cli.reference.tables import WRITTEN, anchor, field_rows, table
from slmops.control.routes import ROUTES, Access, Route
from slmops.wire.field_docs import documents_in

_HEAD = """\
# HTTP API of the control plane

{written} For programs: [openapi.json](openapi.json), also at `GET /v1/openapi.json`.

Bodies are JSON. Errors are `{{"error": {{"code": …, "message": …}}}}` with the status of
their class ([errors](errors.md)). A device's session token and the operator's token go
into the header `Authorization: Bearer …`. Keys that a device sends and this version
does not know are ignored.
"""
_WHO = {
    Access.ANYONE: "anyone",
    Access.DEVICE: "device",
    Access.OPERATOR: "operator",
    Access.OWNER: "owner",
}


def api_page() -> str:
    """Return the page of every route and every document it takes or gives."""
    columns = ("route", "who", "what", "body", "answers")
    parts = [_HEAD.format(written=WRITTEN), "## Routes", ""]
    parts += table(columns, [_row(route) for route in ROUTES])
    for kind in _kinds():
        said = " ".join((kind.__doc__ or "").split())
        parts += ["", f"## {kind.__name__}", "", said, ""]
        parts += table(("key", "value", "default", "what"), field_rows(kind))
    return "\n".join(parts) + "\n"


def _row(route: Route) -> tuple[str, ...]:
    answers = [
        f"{status}{f' {_named(kind)}' if kind else ''}"
        for status, kind in route.answers.items()
    ]
    return (
        f"`{route.method} {route.path}`",
        _WHO[route.access],
        route.summary,
        _named(route.body) if route.body else "none",
        ", ".join(answers),
    )


def _named(kind: type | str) -> str:
    return f"`{kind}`" if isinstance(kind, str) else anchor(kind.__name__)


def _kinds() -> list[type]:
    used: list[type] = []
    for route in ROUTES:
        used += [kind for kind in (route.body,) if kind]
        used += [kind for kind in route.answers.values() if isinstance(kind, type)]
    found = {part for kind in used for part in documents_in(kind)}
    return sorted(found, key=lambda kind: kind.__name__)
