"""Typed documents from and to JSON and YAML.

Documents are frozen dataclasses of `slmops.domain`. Decoding is strict: unknown keys
are errors with a did-you-mean, wrong types name the path. Encoding to JSON is
canonical (sorted keys, no spaces, UTF-8), so that equal documents have equal digests.
"""

import dataclasses
import difflib
import hashlib
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml

from slmops.domain.errors import InvalidInputError
from slmops.domain.ids import Digest
from slmops.wire.field_docs import documents_in, field_docs

Document = TypeVar("Document")

MAX_DOCUMENT_BYTES = 16 * 1024 * 1024
"""Larger documents are refused before they are parsed."""


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses duplicate keys and aliases (no billion laughs)."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(
                problem="aliases are not supported", problem_mark=event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(
        self, node: yaml.MappingNode, deep: bool = False
    ) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.MarkedYAMLError(
                    problem=f"keys must be text, got {key!r}",
                    problem_mark=key_node.start_mark,
                )
            if key in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"key {key!r} is given twice",
                    problem_mark=key_node.start_mark,
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def decode_json(
    raw: bytes | str, kind: type[Document], *, where: str, lenient: bool = False
) -> Document:
    """Decode and check a JSON document.

    Args:
        raw: UTF-8 JSON.
        kind: dataclass to build.
        where: name of the document for messages: a path or an endpoint.
        lenient: ignore unknown keys (documents of a newer version on the network).

    Raises:
        InvalidInputError: naming `where`, the path inside, what was expected and came.

    >>> from slmops.domain.device import Range
    >>> decode_json('{"min": 1, "max": 2}', Range, where="example")
    Range(min=1.0, max=2.0)
    """
    tree = parse_json(raw, where=where)
    return convert(tree, kind, where=where, lenient=lenient)


def parse_json(
    raw: bytes | str, *, where: str, max_bytes: int = MAX_DOCUMENT_BYTES
) -> Any:  # noqa: ANN401 - a tree
    """Parse JSON to plain Python values.

    Raises:
        InvalidInputError: not valid JSON, or too large.
    """
    _check_size(len(raw), where, max_bytes)
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInputError(f"{where}: not valid JSON: {error}") from None


def decode_yaml(raw: bytes | str, kind: type[Document], *, where: str) -> Document:
    """Decode and check a YAML document (1.1 as PyYAML reads it, without aliases).

    Raises:
        InvalidInputError: naming `where`, line or path, what was expected and came.
    """
    return convert(parse_yaml(raw, where=where), kind, where=where)


def parse_yaml(raw: bytes | str, *, where: str) -> Any:  # noqa: ANN401 - a tree
    """Parse YAML to plain Python values, safely.

    Raises:
        InvalidInputError: with line and column.
    """
    _check_size(len(raw), where)
    try:
        return yaml.load(raw, Loader=_StrictLoader)  # noqa: S506 - subclass of SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        at = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise InvalidInputError(
            f"{where}:{at} not valid YAML: {error.problem}"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InvalidInputError(f"{where}: not valid YAML: {text}") from None


def load_yaml(path: Path, kind: type[Document]) -> Document:
    """Read and decode a YAML file.

    Raises:
        InvalidInputError: unreadable, or as `decode_yaml`.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InvalidInputError(f"{path}: cannot be read: {error.strerror}") from None
    return decode_yaml(raw, kind, where=str(path))


def convert(
    tree: Any,  # noqa: ANN401 - a tree of plain values
    kind: type[Document],
    *,
    where: str,
    lenient: bool = False,
) -> Document:
    """Turn plain values into a document.

    Raises:
        InvalidInputError: naming `where`, the path inside, what was expected and came.
    """
    if not lenient:
        _refuse_unknown_keys(tree, kind, where=where, path="")
    _refuse_non_finite(tree, where=where, path="")
    try:
        return msgspec.convert(tree, kind)
    except msgspec.ValidationError as error:
        raise InvalidInputError(f"{where}: {_readable(str(error))}") from None
    except RecursionError:
        raise InvalidInputError(f"{where}: nested too deeply") from None


def encode_json(document: object) -> bytes:
    """Encode canonically: equal documents give equal bytes.

    >>> from slmops.domain.device import Range
    >>> encode_json(Range(max=2.0, min=1.0))
    b'{"max":2.0,"min":1.0}'
    """
    return msgspec.json.encode(document, order="sorted")


def encode_json_pretty(document: object) -> str:
    """Encode for people: sorted keys, two spaces."""
    return msgspec.json.format(encode_json(document), indent=2).decode()


def to_plain(document: object) -> Any:  # noqa: ANN401 - a tree
    """Turn a document into dicts, lists, strings and numbers."""
    return msgspec.to_builtins(document)


def document_digest(document: object) -> Digest:
    """Return the SHA-256 of the canonical JSON."""
    return Digest("sha256:" + hashlib.sha256(encode_json(document)).hexdigest())


def json_schema(kind: type) -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of a document.

    Unknown keys are refused; every key says what it is, for editors that show it.
    """
    schema = msgspec.json.schema(kind)
    parts = schema.get("$defs", {})
    for part in documents_in(kind):
        described = parts[part.__name__]
        described["additionalProperties"] = False
        for name, text in field_docs(part).items():
            described["properties"][name]["description"] = text
    return schema


def _check_size(size: int, where: str, limit: int = MAX_DOCUMENT_BYTES) -> None:
    if size > limit:
        raise InvalidInputError(
            f"{where}: document must be at most {limit} bytes, got {size}"
        )


def _readable(message: str) -> str:
    """Put msgspec's path first: ``classes[0].budget: budget.memory_mib must be > 0``."""
    text, found, path = message.rpartition(" - at `$")
    if not found:
        return message
    path = path.rstrip("`").lstrip(".")
    return f"{path}: {text}" if path else text


def _refuse_non_finite(tree: Any, *, where: str, path: str) -> None:  # noqa: ANN401
    """Refuse NaN and infinities, which YAML can spell and no field allows."""
    if isinstance(tree, float) and not math.isfinite(tree):
        raise InvalidInputError(
            f"{where}: {path or 'value'} must be finite, got {tree}"
        )
    if isinstance(tree, dict):
        for key, value in tree.items():
            _refuse_non_finite(value, where=where, path=f"{path}.{key}".lstrip("."))
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            _refuse_non_finite(value, where=where, path=f"{path}[{index}]")


def _refuse_unknown_keys(tree: Any, kind: Any, *, where: str, path: str) -> None:  # noqa: ANN401
    kind = _without_none(kind)
    if dataclasses.is_dataclass(kind) and isinstance(tree, Mapping):
        hints = _hints(typing.cast("type", kind))
        for key, value in tree.items():
            inner = f"{path}.{key}".lstrip(".")
            if key not in hints:
                raise InvalidInputError(
                    f"{where}: {inner}: unknown key{_did_you_mean(str(key), hints)}"
                )
            _refuse_unknown_keys(value, hints[key], where=where, path=inner)
        return
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (tuple, list) and arguments and isinstance(tree, list):
        for index, value in enumerate(tree):
            _refuse_unknown_keys(
                value, arguments[0], where=where, path=f"{path}[{index}]"
            )


def _hints(kind: type) -> dict[str, Any]:
    return {
        field.name: typing.get_type_hints(kind)[field.name]
        for field in dataclasses.fields(kind)
    }


def _did_you_mean(key: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(key, list(known), n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known are {', '.join(sorted(known))}"


def _without_none(kind: Any) -> Any:  # noqa: ANN401 - a type expression
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        rest = [part for part in typing.get_args(kind) if part is not type(None)]
        return rest[0] if len(rest) == 1 else kind
    return kind
