"""Recipes from several files: ``recipe.import`` in a blueprint names shared fragments.

A fragment is a YAML file with keys of a recipe. Rules:

- Paths of fragments are relative to the file that imports them; all other paths (texts,
  examples) are relative to the blueprint, wherever they are written.
- A key of the importing file wins over its imports', a later import over an earlier one.
  Mappings are merged key by key; lists are replaced, but for ``structures``, which are
  joined: each has its own name.
- A fragment may import others; a circle is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmops.domain.blueprint import Blueprint
from slmops.domain.errors import InvalidInputError
from slmops.wire.codec import MAX_DOCUMENT_BYTES, convert, parse_yaml
from slmops.wire.input_file import read_input

IMPORT = "import"
_JOINED = "structures"

Tree = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Resolved:
    """A blueprint with its imports put in."""

    blueprint: Blueprint
    """Whole."""
    fragments: tuple[Path, ...]
    """Files it imported, in the order they were read."""


def resolve_blueprint(path: Path) -> Resolved:
    """Read a blueprint and the fragments its recipe imports.

    Raises:
        NotFoundError: no such file.
        InvalidInputError: a file that cannot be read, is not YAML or no recipe, a circle
            of imports; names the file, and the path inside.
    """
    tree = _read(path)
    fragments: list[Path] = []
    recipe = tree.get("recipe")
    if isinstance(recipe, dict) and IMPORT in recipe:
        tree = {**tree, "recipe": _with_imports(recipe, path, (path,), fragments)}
    blueprint = convert(tree, Blueprint, where=str(path))
    return Resolved(blueprint=blueprint, fragments=tuple(fragments))


def merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> Tree:
    """Merge two recipes; keys of `over` win.

    >>> merged({"a": {"b": 1, "c": 2}, "d": [1]}, {"a": {"b": 3}, "d": [2]})
    {'a': {'b': 3, 'c': 2}, 'd': [2]}
    >>> merged({"structures": [1]}, {"structures": [2]})
    {'structures': [1, 2]}
    """
    result = dict(under)
    for key, value in over.items():
        old = result.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            result[key] = merged(old, value)
        elif key == _JOINED and isinstance(old, list) and isinstance(value, list):
            result[key] = old + value
        else:
            result[key] = value
    return result


def _with_imports(
    recipe: Tree, path: Path, above: tuple[Path, ...], fragments: list[Path]
) -> Tree:
    names = recipe[IMPORT]
    if not isinstance(names, list) or not all(isinstance(each, str) for each in names):
        raise InvalidInputError(
            f"{path}: recipe.{IMPORT} must be a list of paths, got {names!r}"
        )
    whole: Tree = {}
    for name in names:
        fragment = (path.parent / name).resolve()
        if fragment in {each.resolve() for each in above}:
            raise InvalidInputError(f"{path}: {name} imports itself, by a circle")
        tree = _read(fragment)
        fragments.append(fragment)
        if IMPORT in tree:
            tree = _with_imports(tree, fragment, (*above, fragment), fragments)
        whole = merged(whole, tree)
    own = {key: value for key, value in recipe.items() if key != IMPORT}
    return merged(whole, own)


def _read(path: Path) -> Tree:
    raw = read_input(path, max_bytes=MAX_DOCUMENT_BYTES)
    tree = parse_yaml(raw, where=str(path))
    if not isinstance(tree, dict):
        raise InvalidInputError(f"{path}: must hold keys and values, got {tree!r:.40}")
    return tree
