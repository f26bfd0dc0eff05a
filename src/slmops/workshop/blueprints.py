"""Blueprints as files: written to start from, checked beyond their own syntax."""

import importlib.resources
import os
from pathlib import Path

from slmops.domain.blueprint import Blueprint
from slmops.domain.errors import ConflictError, InvalidInputError
from slmops.runtimes.base import runtime_names
from slmops.wire.codec import encode_json_pretty, json_schema
from slmops.workshop.blueprint_files import check_files
from slmops.workshop.fragments import IMPORT, Resolved, resolve_blueprint
from slmops.workshop.mixes import find_mix

BLUEPRINT_FILE = "blueprint.yaml"
SCHEMA_FILE = "blueprint.schema.json"

_MODEL_PLACE = "model: MODEL\n"


def load_blueprint(path: Path) -> Blueprint:
    """Read a blueprint and check what it names: candidates, runtimes, texts.

    Raises:
        InvalidInputError: naming the path inside, what was expected and what came.
        NotFoundError: a text it names does not exist.
    """
    return load_resolved(path).blueprint


def load_resolved(path: Path) -> Resolved:
    """Read a blueprint as `load_blueprint`, and say which fragments it imported."""
    resolved = resolve_blueprint(path)
    _check_named(resolved.blueprint, path)
    return resolved


def _check_named(blueprint: Blueprint, path: Path) -> None:
    for index, candidate in enumerate(blueprint.candidates):
        try:
            find_mix(candidate)
        except InvalidInputError as error:
            raise InvalidInputError(f"{path}: candidates[{index}]: {error}") from None
    known = runtime_names()
    for index, device_class in enumerate(blueprint.classes):
        if device_class.runtime not in known:
            raise InvalidInputError(
                f"{path}: classes[{index}].runtime must be one of {', '.join(known)},"
                f" got {device_class.runtime!r}"
            )
    check_files(blueprint, path.parent)


def write_blueprint(folder: Path, model: str) -> tuple[Path, Path]:
    """Write a commented blueprint and the schema editors check it with.

    Returns:
        The blueprint's path and the schema's.

    Raises:
        ConflictError: there is a blueprint already; it is never overwritten.
        InvalidInputError: `model` cannot stand in a blueprint.
    """
    if not model.isprintable() or any(sign in model for sign in "'\"#:\\"):
        raise InvalidInputError(f"model must be a name or a digest, got {model!r}")
    folder.mkdir(parents=True, exist_ok=True)
    path, schema = folder / BLUEPRINT_FILE, folder / SCHEMA_FILE
    template = (
        importlib.resources.files("slmops.workshop") / "templates" / "blueprint.yaml"
    )
    text = template.read_text(encoding="utf-8")
    text = text.replace(_MODEL_PLACE, f"model: '{model}'\n")
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        raise ConflictError(f"{path} exists already; it is never overwritten") from None
    schema.write_text(blueprint_schema() + "\n", encoding="utf-8")
    return path, schema


def blueprint_schema() -> str:
    """Return the JSON Schema of a blueprint, as text."""
    schema = json_schema(Blueprint)
    # Resolved while reading: no field of the document.
    schema["$defs"]["Recipe"]["properties"][IMPORT] = {
        "type": "array",
        "items": {"type": "string"},
        "description": "Paths of recipes to start from, relative to this file.",
    }
    return encode_json_pretty(schema)
