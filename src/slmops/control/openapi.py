"""The API as an OpenAPI 3.1 document, made from the route table and the documents.

Written to docs with ``python -m slmops.control.openapi docs/openapi.json``.
Rules: https://spec.openapis.org/oas/v3.1.1.html
"""

import re
import sys
from pathlib import Path
from typing import Any

import msgspec

from slmops import __version__
from slmops.control.routes import ROUTES, Access, Route
from slmops.domain.errors import ERROR_CLASSES
from slmops.wire.codec import encode_json, encode_json_pretty, parse_json

_REFERENCE = "#/components/schemas/{name}"
_SECURITY: dict[Access, list[dict[str, list[str]]]] = {
    Access.ANYONE: [],
    Access.DEVICE: [{"session": []}],
    Access.OPERATOR: [{"operator": []}],
    Access.OWNER: [{"operator": []}],
}


def openapi() -> dict[str, Any]:
    """Return the document as plain values."""
    kinds = _kinds()
    _, schemas = msgspec.json.schema_components(kinds, ref_template=_REFERENCE)
    paths: dict[str, Any] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    document = {
        "openapi": "3.1.1",
        "info": {
            "title": "SLMOps control plane",
            "version": __version__,
            "description": "Devices sync, operators steer rollouts.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": {**schemas, "Error": _error_schema()},
            "securitySchemes": {
                "operator": {"type": "http", "scheme": "bearer"},
                "session": {"type": "http", "scheme": "bearer"},
            },
        },
    }
    # Through JSON: schemas hold tuples as defaults, which no validator takes for arrays.
    plain: dict[str, Any] = parse_json(encode_json(document), where="openapi")
    return plain


def _kinds() -> list[type]:
    kinds = {route.body for route in ROUTES if route.body is not None}
    for route in ROUTES:
        kinds |= {kind for kind in route.answers.values() if isinstance(kind, type)}
    return sorted(kinds, key=lambda kind: kind.__name__)


def _operation(route: Route) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.handler.__name__,
        "summary": route.summary,
        "security": _SECURITY[route.access],
        "responses": {
            **{
                str(status): _answer(status, kind)
                for status, kind in route.answers.items()
            },
            "default": {
                "description": "What went wrong, and what to do next.",
                "content": {"application/json": {"schema": _ref("Error")}},
            },
        },
    }
    parameters = re.findall(r"\{(\w+)\}", route.path)
    if parameters:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in parameters
        ]
    if route.body is not None:
        operation["requestBody"] = {
            "required": route.body_required,
            "content": {"application/json": {"schema": _ref(route.body.__name__)}},
        }
    return operation


def _answer(status: int, kind: type | str | None) -> dict[str, Any]:
    meanings = {200: "Done.", 201: "Made.", 206: "The range.", 304: "Nothing new."}
    answer: dict[str, Any] = {"description": meanings[status]}
    if isinstance(kind, str):
        answer["content"] = {kind: {"schema": {}}}
    elif kind is not None:
        answer["content"] = {"application/json": {"schema": _ref(kind.__name__)}}
    return answer


def _ref(name: str) -> dict[str, str]:
    return {"$ref": _REFERENCE.format(name=name)}


def _error_schema() -> dict[str, Any]:
    codes = [kind.code for kind in ERROR_CLASSES]
    return {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["code", "message"],
                "properties": {
                    "code": {
                        "type": "string",
                        "enum": [*codes, "method_not_allowed", "internal"],
                    },
                    "message": {"type": "string"},
                },
            }
        },
    }


def write_document(path: Path) -> None:
    """Write the document, formatted for people and for diffs."""
    path.write_text(encode_json_pretty(openapi()) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_document(Path(sys.argv[1]))
