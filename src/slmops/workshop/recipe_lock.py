"""Lock files: what a build's blueprint stood for when it was built.

A blueprint names things: a model, texts, examples, fragments of recipes. The lock file
beside it (``blueprint.lock.json``) says what those were, by digest, which structures the
recipe stood for, and which tools would compute them. `build --locked` refuses to build
anything else, and names what differs.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmops.domain.errors import ConflictError, NotFoundError
from slmops.domain.ids import Digest
from slmops.registry.blobs import file_digest, write_atomically
from slmops.registry.workspace import Workspace
from slmops.wire.codec import (
    decode_json,
    document_digest,
    encode_json_pretty,
)
from slmops.workshop.fragments import Resolved
from slmops.workshop.jobs.kinds import KINDS
from slmops.workshop.jobs.tools import tool_version
from slmops.workshop.models import find_model
from slmops.workshop.text_sources import BUILTIN

_PATHS = frozenset({"text", "prompts", "data", "validation", "examples", "schema"})
"""Keys of a blueprint whose values are paths."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RecipeLock:
    """What a blueprint stands for."""

    blueprint: Digest
    """Of the whole blueprint, imports put in."""
    model: Digest
    """Of the imported model."""
    files: Mapping[str, Digest]
    """Path as it is written → digest of what lies there; fragments too."""
    structures: Mapping[str, tuple[str, ...]]
    """Structure → its steps with their numbers."""
    tools: Mapping[str, str]
    """Kind of job → code and packages that compute it."""


def lock_build(
    resolved: Resolved, workspace: Workspace, blueprint: Path, *, locked: bool
) -> None:
    """Lock what a blueprint stands for, or hold it to its lock.

    Args:
        resolved: the blueprint.
        workspace: holds its model.
        blueprint: its file; the lock lies beside it.
        locked: refuse what differs from the lock, instead of writing a new one.

    Raises:
        NotFoundError: no lock, no such model, or a file that does not exist.
        ConflictError: something differs; names it.
    """
    model = find_model(workspace, resolved.blueprint.model).id
    lock = lock_of(resolved, model, blueprint.absolute().parent)
    if locked:
        check_lock(lock, lock_path(blueprint))
    else:
        save_lock(lock, lock_path(blueprint))


def lock_path(blueprint: Path) -> Path:
    """Return where a blueprint's lock lies.

    >>> lock_path(Path("a/blueprint.yaml")).name
    'blueprint.lock.json'
    """
    return blueprint.with_suffix(".lock.json")


def lock_of(resolved: Resolved, model: Digest, folder: Path) -> RecipeLock:
    """Return what a blueprint stands for now.

    Raises:
        NotFoundError: a file that it names does not exist.
    """
    blueprint = resolved.blueprint
    named = dict.fromkeys(_paths(blueprint))
    files = {name: file_digest(folder / name) for name in named}
    for fragment in resolved.fragments:
        files[_relative(fragment, folder)] = file_digest(fragment)
    return RecipeLock(
        blueprint=document_digest(blueprint),
        model=model,
        files=dict(sorted(files.items())),
        structures={
            each.name: tuple(f"{step.name}: {step.lever}" for step in each.steps)
            for plan in blueprint.recipe.structures
            for each in plan.variations()
        },
        tools={
            name: tool_version(*kind.code, packages=kind.packages)
            for name, kind in KINDS.items()
            if kind.is_installed
        },
    )


def save_lock(lock: RecipeLock, path: Path) -> None:
    """Write a lock file: whole, or not at all."""
    write_atomically(path, encode_json_pretty(lock).encode() + b"\n")


def check_lock(lock: RecipeLock, path: Path) -> None:
    """Refuse what differs from a lock file.

    Raises:
        NotFoundError: there is none.
        ConflictError: names everything that differs.
    """
    if not path.is_file():
        raise NotFoundError(
            f"{path} does not exist; a build without --locked writes it"
        )
    locked = decode_json(path.read_bytes(), RecipeLock, where=str(path))
    differences = list(_differences(locked, lock))
    if differences:
        raise ConflictError(
            f"{path} does not hold any more: {'; '.join(differences)}. Build without"
            " --locked to lock what is there now"
        )


def _differences(locked: RecipeLock, found: RecipeLock) -> Iterator[str]:
    if locked.model != found.model:
        yield f"model was {locked.model[:19]}, is {found.model[:19]}"
    if locked.blueprint != found.blueprint:
        yield "the blueprint or one of its imports has changed"
    for what in ("files", "structures", "tools"):
        before, now = getattr(locked, what), getattr(found, what)
        for name in sorted({*before, *now}):
            if before.get(name) != now.get(name):
                how = "is gone" if name not in now else "is new"
                yield f"{what}: {name} {'has changed' if name in before and name in now else how}"


def _paths(document: Any) -> Iterator[str]:  # noqa: ANN401 - any part of a blueprint
    if isinstance(document, Sequence) and not isinstance(document, str):
        for each in document:
            yield from _paths(each)
        return
    if not dataclasses.is_dataclass(document):
        return
    for field in dataclasses.fields(document):
        value = getattr(document, field.name)
        if field.name in _PATHS and isinstance(value, str) and value != BUILTIN:
            yield value
        else:
            yield from _paths(value)


def _relative(path: Path, folder: Path) -> str:
    try:
        return str(path.relative_to(folder.resolve()))
    except ValueError:
        return path.name
