"""What computes a step, as a name that changes with it."""

import ast
import hashlib
import importlib.util
from functools import cache
from importlib import metadata
from pathlib import Path

from slmops.domain.errors import NotFoundError


def tool_version(*modules: str, packages: tuple[str, ...] = ()) -> str:
    """Name the code that computes a step: our own modules' bytes, packages' versions.

    Editing a module makes its steps new; nothing is reused that today's code would
    compute differently.

    >>> tool_version("slmops.workshop.steps")[:5]
    'code-'
    """
    code = hashlib.sha256()
    for name in modules:
        code.update(_file(name).read_bytes())
    versions = [f"{package} {metadata.version(package)}" for package in packages]
    return "; ".join([f"code-{code.hexdigest()[:16]}", *versions])


@cache
def imported_code(*modules: str) -> tuple[str, ...]:
    """Return the modules of the workshop and the runtimes that some lead to, sorted.

    All imports count, at any depth and inside functions too, so a list cannot fall
    behind the code. What only carries a job (`jobs`) is left out.

    >>> "slmops.workshop.jsonl" in imported_code("slmops.workshop.tasks.ask")
    True
    """
    found: set[str] = set()
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name not in found and _decides(name):
            found.add(name)
            waiting += _imports(name)
    return tuple(sorted(found))


def _decides(name: str) -> bool:
    parts = name.split(".")
    return parts[:2] in (["slmops", "workshop"], ["slmops", "runtimes"]) and (
        parts[2:3] != ["jobs"] and len(parts) > 2  # noqa: PLR2004 - a module of it
    )


@cache
def _imports(name: str) -> tuple[str, ...]:
    found: list[str] = []
    for node in ast.walk(ast.parse(_file(name).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append(node.module)
            # `from package import module` names a module too.
            parts = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [part for part in parts if _decides(part) and _is_module(part)]
    return tuple(found)


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # its parent is a module, not a package
        return False


def _file(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise NotFoundError(f"module {name} has no source file")
    return Path(spec.origin)
