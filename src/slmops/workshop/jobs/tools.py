"""What computes a step, as a name that changes with it."""

import hashlib
import importlib.util
from importlib import metadata
from pathlib import Path

from slmops.domain.errors import NotFoundError


def tool_version(*modules: str, packages: tuple[str, ...] = ()) -> str:
    """Name the code that computes a step: our own modules' bytes, packages' versions.

    A package of ours counts with everything in it.

    Editing a module makes its steps new; nothing is reused that today's code would
    compute differently.

    >>> tool_version("slmops.workshop.steps")[:5]
    'code-'
    """
    code = hashlib.sha256()
    for name in modules:
        for path in _sources(name):
            code.update(path.read_bytes())
    versions = [f"{package} {metadata.version(package)}" for package in packages]
    return "; ".join([f"code-{code.hexdigest()[:16]}", *versions])


def _sources(name: str) -> list[Path]:
    """Return a module's source file, or all files of a package."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise NotFoundError(f"module {name} has no source file")
    path = Path(spec.origin)
    is_package = spec.submodule_search_locations is not None
    return sorted(path.parent.rglob("*.py")) if is_package else [path]
