"""What the fields of a document are, as their docstrings say it.

Documents explain each field once, in the string below it. Schemas for editors and the
reference pages are made from these, so that there is no second text to keep true.
"""

import ast
import dataclasses
import inspect
import textwrap
import typing


def field_docs(kind: type) -> dict[str, str]:
    """Return what each field is, by name, on one line; inherited fields too.

    Empty when the class's source is not at hand.

    >>> from slmops.domain.device import Range
    >>> field_docs(Range)["min"]
    'Smallest value that matches.'
    """
    found: dict[str, str] = {}
    for part in reversed(kind.__mro__):
        if dataclasses.is_dataclass(part):
            found |= _own_docs(part)
    return found


def documents_in(kind: type) -> tuple[type, ...]:
    """Return a document and all documents inside it, outer ones first, each once.

    >>> from slmops.domain.device import Predicate
    >>> [part.__name__ for part in documents_in(Predicate)]
    ['Predicate', 'Range']
    """
    found: dict[type, None] = {}
    waiting = [kind]
    while waiting:
        part = waiting.pop(0)
        if dataclasses.is_dataclass(part) and part not in found:
            found[part] = None
            waiting += _parts(typing.get_type_hints(part).values())
    return tuple(found)


def _parts(hints: typing.Iterable[typing.Any]) -> list[type]:
    parts: list[type] = []
    for hint in hints:
        inner = typing.get_args(hint)
        parts += _parts(inner) if inner else []
        if isinstance(hint, type):
            parts.append(hint)
    return parts


def _own_docs(kind: type) -> dict[str, str]:
    try:
        source = textwrap.dedent(inspect.getsource(kind))
    except (OSError, TypeError):
        return {}
    [body] = ast.parse(source).body
    assert isinstance(body, ast.ClassDef)  # noqa: S101 - source of a class
    docs = {}
    for field, below in zip(body.body, body.body[1:], strict=False):
        match field, below:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                docs[name] = " ".join(text.split())
            case _:
                pass
    return docs
