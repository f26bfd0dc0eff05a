"""Typed settings: a frozen dataclass from a JSON or YAML file and ``SLMOPS_…`` variables.

A variable beats the file, the file beats the field's default. Unknown keys are errors
in both, with a did-you-mean: a misspelt setting must not silently keep its default.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

from slmops.domain.errors import InvalidInputError, NotFoundError
from slmops.wire import codec

Settings = TypeVar("Settings")


def load_settings(
    kind: type[Settings],
    *,
    path: Path | None,
    environment: Mapping[str, str],
    prefix: str,
) -> Settings:
    """Read settings once, at start.

    Args:
        kind: frozen dataclass; its defaults stand for what nobody gives.
        path: JSON or YAML file, by its suffix; None for none.
        environment: usually `os.environ`; handed in so that tests and roots decide.
        prefix: of the variables that count: ``SLMOPS_AGENT_`` reads field ``port`` from
            ``SLMOPS_AGENT_PORT``. Other variables are not looked at.

    Returns:
        A valid `kind`. Values of variables are text for text fields, YAML elsewhere:
        ``[a, b]``, ``{site: north}``, ``null``, ``60``.

    Raises:
        NotFoundError: `path` does not exist.
        InvalidInputError: naming file or variable, what was expected and what came.
    """
    hints = typing.get_type_hints(kind)
    tree = {} if path is None else _read(path)
    where = "settings" if path is None else str(path)
    # First on its own, so that a message names the file and not a variable.
    known = {field.name for field in dataclasses.fields(typing.cast("Any", kind))}
    given = _from_environment(environment, prefix, {k: hints[k] for k in known})
    if path is not None and not given:
        return codec.convert(tree, kind, where=where)
    named = ", ".join(prefix + name.upper() for name in sorted(given))
    if named:
        where = f"{where} with {named}"
    return codec.convert({**tree, **given}, kind, where=where)


def override_settings(
    base: Settings,
    *,
    environment: Mapping[str, str],
    prefix: str,
    fixed: Collection[str] = (),
) -> Settings:
    """Return settings with what variables say in place of what `base` says.

    Args:
        base: frozen dataclass, valid.
        environment: usually `os.environ`.
        prefix: of the variables that count, as for `load_settings`.
        fixed: fields that no variable may set.

    Raises:
        InvalidInputError: naming the variable, what was expected and what came.
    """
    chosen = typing.cast("Any", base)
    hints = typing.get_type_hints(type(base))
    names = {field.name for field in dataclasses.fields(chosen)} - set(fixed)
    given = _from_environment(environment, prefix, {k: hints[k] for k in names})
    values = {
        name: codec.convert(value, hints[name], where=prefix + name.upper())
        for name, value in given.items()
    }
    try:
        changed: Settings = dataclasses.replace(chosen, **values)
    except InvalidInputError as error:
        named = ", ".join(prefix + name.upper() for name in sorted(values))
        raise InvalidInputError(f"{named}: {error}") from None
    return changed


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise NotFoundError(f"{path} does not exist") from None
    except OSError as error:
        raise InvalidInputError(f"{path}: cannot be read: {error.strerror}") from None
    parse = codec.parse_json if path.suffix == ".json" else codec.parse_yaml
    tree = parse(raw, where=str(path))
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise InvalidInputError(
            f"{path}: settings must be a mapping of names to values,"
            f" got {type(tree).__name__}"
        )
    return tree


def _from_environment(
    environment: Mapping[str, str], prefix: str, hints: Mapping[str, Any]
) -> dict[str, Any]:
    given = {}
    for variable, text in sorted(environment.items()):
        if not variable.startswith(prefix):
            continue
        name = variable.removeprefix(prefix).lower()
        if name not in hints:
            close = difflib.get_close_matches(name, list(hints), n=1, cutoff=0.5)
            hint = f"; did you mean {prefix}{close[0].upper()}?" if close else ""
            raise InvalidInputError(f"{variable}: unknown setting{hint}")
        given[name] = (
            text if _is_text(hints[name]) else codec.parse_yaml(text, where=variable)
        )
    return given


def _is_text(hint: Any) -> bool:  # noqa: ANN401 - a type expression
    """Tell whether a field holds plain text (or None), where YAML would guess."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        rest = [part for part in typing.get_args(hint) if part is not type(None)]
        return len(rest) == 1 and _is_text(rest[0])
    return isinstance(hint, type) and issubclass(hint, str)
