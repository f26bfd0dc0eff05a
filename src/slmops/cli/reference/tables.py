"""Markdown tables, of rows and of a document's fields."""

import dataclasses
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any

from slmops.wire import codec
from slmops.wire.field_docs import field_docs

WRITTEN = "Written by `make docs` from the code itself; a test holds it current."
"""Second line of every page made here."""

_UNITS = {
    "_tokens_per_s": "tokens/s",
    "_per_s": "1/s",
    "_tokens": "tokens",
    "_bytes": "bytes",
    "_mib": "MiB",
    "_ms": "ms",
    "_s": "s",
}
"""Ending of a field's name → its unit."""
_NAMES: Mapping[Any, str] = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "yes or no",
}


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return a table's lines; cells may hold any text."""
    return [
        f"| {' | '.join(columns)} |",
        "|" + "---|" * len(columns),
        *(f"| {' | '.join(map(_cell, row))} |" for row in rows),
    ]


def field_rows(kind: type) -> list[tuple[str, str, str, str]]:
    """Return name, type with unit, default and meaning of each field."""
    hints, docs = typing.get_type_hints(kind), field_docs(kind)
    return [
        (
            f"`{field.name}`",
            _type(hints[field.name]) + _unit(field.name),
            _default(field),
            docs.get(field.name, ""),
        )
        for field in dataclasses.fields(kind)
    ]


def anchor(name: str) -> str:
    """Return a link to a document's heading on the same page."""
    return f"[{name}](#{name.lower()})"


def _unit(name: str) -> str:
    for ending, unit in _UNITS.items():
        if name.endswith(ending):
            return f", {unit}"
    return ""


def _type(hint: Any) -> str:  # noqa: ANN401 - a type expression
    if hint in _NAMES:
        return _NAMES[hint]
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        known = [part for part in inner if part is not types.NoneType]
        return " or ".join([*map(_type, known), "null"])
    if origin in (tuple, list):
        return f"list of {_type(inner[0])}"
    if inner:
        return f"{_type(inner[0])} → {_type(inner[1])}"
    return _named(hint)


def _named(hint: Any) -> str:  # noqa: ANN401 - a type expression
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return " or ".join(f"`{one.value}`" for one in hint)
    if dataclasses.is_dataclass(hint):
        return anchor(getattr(hint, "__name__", ""))
    return "digest" if getattr(hint, "__name__", "") == "Digest" else "any"


def _default(field: "dataclasses.Field[Any]") -> str:
    if field.default_factory is not dataclasses.MISSING:
        made = field.default_factory()
        return "its own defaults" if dataclasses.is_dataclass(made) else f"`{made}`"
    if field.default is dataclasses.MISSING:
        return "required"
    plain = _without_nulls(codec.to_plain(field.default))
    return f"`{codec.encode_json(plain).decode()}`".replace('"', "").replace(",", ", ")


def _without_nulls(tree: Any) -> Any:  # noqa: ANN401 - a tree
    if isinstance(tree, dict):
        return {key: value for key, value in tree.items() if value is not None}
    if isinstance(tree, list | tuple):
        return [_without_nulls(value) for value in tree]
    return tree


def _cell(text: str) -> str:
    """Keep a cell's text from ending the cell or being taken for HTML."""
    parts = re.split(r"(`[^`]*`)", text.replace("``", "`").replace("|", "\\|"))
    return "".join(
        part if part.startswith("`") else part.replace("<", "\\<") for part in parts
    )
