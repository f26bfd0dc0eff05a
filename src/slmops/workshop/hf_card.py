"""The card of an exported checkpoint: what the model is, whose, and under what licence.

Carried from the GGUF file's ``general.*`` entries and from the record of its import, into the
Markdown and YAML that the Hub reads (``README.md``). Only what is known is written.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from slmops.domain.errors import ConflictError
from slmops.domain.release import ModelRecord
from slmops.registry.workspace import Workspace
from slmops.workshop.disk import said_when_full
from slmops.workshop.gguf_file import GgufHeader, read_header
from slmops.workshop.hf_export import export_checkpoint
from slmops.workshop.licences import hub_licence
from slmops.workshop.models import reference_path
from slmops.workshop.progress import Progress, silent

CARD = "README.md"
_OURS = "slmops"
_HUB_URL = re.compile(r"https://huggingface\.co/([\w.-]+/[\w.-]+)/?")
_HUB_SOURCE = re.compile(r"([\w.-]+/[\w.-]+)@[0-9a-f]{7,64}")


def export_model(
    workspace: Workspace, record: ModelRecord, folder: Path, progress: Progress = silent
) -> None:
    """Write an imported model as a checkpoint, with a card; see `export_checkpoint`.

    Raises:
        ConflictError: the folder holds a checkpoint, or a card of somebody else's.
        InvalidInputError: as `export_checkpoint`.
        NotFoundError: the model's file is gone.
        UnavailableError: the disk is full.
    """
    path = reference_path(workspace, record)
    with said_when_full(folder):
        if not (folder / "config.json").exists():
            folder.mkdir(parents=True, exist_ok=True)
            write_card(folder, read_header(path), record)
        export_checkpoint(path, folder, progress=progress)


def write_card(folder: Path, header: GgufHeader, record: ModelRecord | None) -> None:
    """Write a checkpoint's card; one of an export that was stopped is written anew.

    Args:
        folder: of the checkpoint.
        header: of the model it is made from.
        record: of the model's import, when there was one.

    Raises:
        ConflictError: the folder holds a card of somebody else's.
    """
    path = folder / CARD
    if path.exists() and f"- {_OURS}\n" not in path.read_text(errors="replace"):
        raise ConflictError(f"{path}: exists already, and is not from an export")
    path.write_text(_card(header, record), encoding="utf-8")


def _card(header: GgufHeader, record: ModelRecord | None) -> str:
    from huggingface_hub import ModelCardData

    licence = hub_licence(
        (record.licence if record else None) or header.text("general.license"),
        name=header.text("general.license.name"),
        link=header.text("general.license.link"),
    )
    data = ModelCardData(
        base_model=_base_model(header, record),
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=[_OURS],
        **licence,
    )
    name = _line(header.text("general.name") or "Model")
    body = "\n".join(f"- {line}" for line in _origin(header, record))
    return f"---\n{data.to_yaml()}\n---\n\n# {name}\n\n{body}\n"


def _base_model(header: GgufHeader, record: ModelRecord | None) -> str | None:
    """Return the Hub id it came from, where it is known for sure."""
    found = _HUB_SOURCE.fullmatch(record.source) if record else None
    if found is None:
        for key in ("general.base_model.0.repo_url", "general.source.huggingface.url"):
            found = found or _HUB_URL.fullmatch(header.text(key) or "")
    return found[1] if found else None


def _origin(header: GgufHeader, record: ModelRecord | None) -> Iterator[str]:
    yield "16-bit checkpoint, exported by slmops from a GGUF model"
    for key, what in (
        ("general.author", "author"),
        ("general.organization", "organization"),
        ("general.source.url", "source"),
        ("general.base_model.0.name", "base model"),
    ):
        if value := header.text(key):
            yield f"{what}: {_line(value)}"
    if record is None:
        return
    yield f"imported from {_line(record.source)} (`{record.source_digest}`)"
    yield f"reference `{record.id}`, {record.parameters} parameters"
    if record.source_quantization:
        yield (
            "the source was quantized, mainly to"
            f" {record.source_quantization}: weights lie on its grid"
        )
    if not (record.licence or header.text("general.license")):
        yield "licence: not known; ask whoever made the model"


def _line(text: str) -> str:
    """Keep a value of somebody's file on one line, and out of the Markdown around it."""
    return re.sub(r"[\s<>\[\]`#|]+", " ", text).strip()[:200]
