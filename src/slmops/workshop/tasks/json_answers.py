"""Answers that are JSON: parsed strictly, checked against a schema, compared by field.

Strictly, because the program that takes the answer parses it strictly: prose around the
object or a code fence makes it invalid.
"""

import unicodedata
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmops.domain.errors import InvalidInputError
from slmops.domain.tasks import FieldCounts
from slmops.wire.codec import MAX_DOCUMENT_BYTES, encode_json, parse_json
from slmops.wire.input_file import read_input

MAX_ANSWER_BYTES = 1 << 20
_SHOWN_CHARACTERS = 200
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class AnswerSchema:
    """A JSON Schema that answers must satisfy."""

    tree: Any
    """The schema itself, plain values."""
    _validator: Any

    def problem(self, text: str) -> str | None:
        """Return what is wrong with an answer, None when nothing is."""
        from jsonschema.exceptions import best_match
        from referencing.exceptions import Unresolvable

        value = _parsed(text)
        if value is None:
            return "it is not JSON"
        try:
            error = best_match(self._validator.iter_errors(value.value))
        except Unresolvable as missing:
            raise InvalidInputError(
                f"JSON Schema: $ref must stay inside the schema, got {missing.ref!r}"
            ) from None
        return None if error is None else str(error.message)[:_SHOWN_CHARACTERS]


@dataclass(frozen=True, slots=True)
class _Parsed:
    """A JSON value; ``null`` is one, too."""

    value: Any


def read_schema(path: Path) -> AnswerSchema:
    """Read and check a JSON Schema of the draft that its ``$schema`` names, or 2020-12.

    Raises:
        NotFoundError: no such file.
        InvalidInputError: unreadable, not JSON, or not a schema.
    """
    from jsonschema import validators
    from jsonschema.exceptions import SchemaError
    from referencing import Registry

    raw = read_input(path, max_bytes=MAX_DOCUMENT_BYTES)
    tree = parse_json(raw.removeprefix(_BYTE_ORDER_MARK), where=str(path))
    if not isinstance(tree, dict):
        raise InvalidInputError(f"{path}: a JSON Schema must be an object")
    kind = validators.validator_for(tree, default=validators.Draft202012Validator)
    try:
        kind.check_schema(tree)
    except SchemaError as error:
        raise InvalidInputError(
            f"{path}: not a JSON Schema: {error.message[:_SHOWN_CHARACTERS]}"
        ) from None
    # An empty registry: a $ref to the network is an error and never a request.
    return AnswerSchema(tree, kind(tree, registry=Registry()))


def canonical_json(answer: object, *, where: str) -> str:
    """Return a right answer as canonical JSON text; text is taken for JSON itself.

    Raises:
        InvalidInputError: text that is not JSON.

    >>> canonical_json('{"b": 1, "a": 2}', where="line 1")
    '{"a":2,"b":1}'
    """
    if isinstance(answer, str):
        answer = parse_json(answer, where=where)
    return encode_json(answer).decode()


def is_json(text: str) -> bool:
    """Tell whether an answer is JSON and nothing else.

    >>> is_json(' {"a": 1} '), is_json('Sure! {"a": 1}')
    (True, False)
    """
    return _parsed(text) is not None


def same_json(expected: str, answer: str) -> bool:
    """Tell whether two JSON texts have the same fields with the same values."""
    one, other = _parsed(expected), _parsed(answer)
    return None not in (one, other) and _fields(one) == _fields(other)


def count_fields(expected: str, answer: str) -> FieldCounts:
    """Compare two JSON texts field by field.

    A field is a leaf with its path; positions in lists do not count, so a list is
    compared as a bag. Text is the same up to Unicode form and outer white space,
    numbers by value. An answer that is not JSON has no fields.

    >>> count_fields('{"who":"Ann","tags":["a","b"]}', '{"tags":["b","c"],"who":" Ann"}')
    FieldCounts(matched=2, answered=3, expected=3)
    """
    wanted, given = _fields(_parsed(expected)), _fields(_parsed(answer))
    return FieldCounts(
        matched=(wanted & given).total(),
        answered=given.total(),
        expected=wanted.total(),
    )


def field_f1(counts: FieldCounts) -> float:
    """Return the F1 of one answer's fields, 0 to 1; 1 when there are none at all.

    >>> field_f1(FieldCounts(matched=1, answered=1, expected=3))
    0.5
    """
    both = counts.answered + counts.expected
    return 2 * counts.matched / both if both else 1.0


def _parsed(text: str) -> _Parsed | None:
    try:
        return _Parsed(
            parse_json(text.strip(), where="answer", max_bytes=MAX_ANSWER_BYTES)
        )
    except InvalidInputError:
        return None


def _fields(parsed: _Parsed | None) -> Counter[tuple[str, Any]]:
    found: Counter[tuple[str, Any]] = Counter()
    waiting = [] if parsed is None else [("", parsed.value)]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, dict) and value:
            waiting += [(f"{path}.{key}", inner) for key, inner in value.items()]
        elif isinstance(value, list) and value:
            waiting += [(f"{path}[]", inner) for inner in value]
        else:
            found[path, _leaf(value)] += 1
    return found


def _leaf(value: object) -> tuple[str, Any]:
    """Return a hashable value; a boolean is no number, an empty list no object."""
    if isinstance(value, str):
        return "text", unicodedata.normalize("NFC", value).strip()
    if isinstance(value, bool) or value is None:
        return "constant", value
    if isinstance(value, int | float):
        return "number", value
    return "empty", type(value).__name__
