"""A model of the workspace with an adapter merged into it: a new model."""

from dataclasses import replace
from pathlib import Path

from slmops.domain.ids import check_name
from slmops.domain.release import ModelRecord
from slmops.registry.workspace import Workspace
from slmops.workshop.adapters import merge_adapter
from slmops.workshop.disk import said_when_full
from slmops.workshop.gguf_source import open_gguf
from slmops.workshop.models import import_opened, reference_path
from slmops.workshop.own_folder import own_folder
from slmops.workshop.progress import Progress, silent
from slmops.workshop.source_grid import load_source_types, main_type


def merge_into_model(
    workspace: Workspace,
    record: ModelRecord,
    adapter: Path,
    *,
    name: str | None = None,
    progress: Progress = silent,
) -> ModelRecord:
    """Merge a peft adapter into an imported model and import the result.

    Args:
        workspace: holds the model.
        record: the model.
        adapter: folder that peft wrote.
        name: to call the result by; the model's and the adapter's by default.
        progress: told what is being done.

    Returns:
        The new model's record. Of a quantized source's grid it keeps the tensors that
        the adapter does not touch.

    Raises:
        InvalidInputError: no adapter of this model; see `read_adapter`.
        ConflictError: another model has that name.
        NotFoundError: the model's file is gone.
    """
    if name is not None:
        check_name(name, where="--name")
    reference = reference_path(workspace, record)
    workspace.root.mkdir(parents=True, exist_ok=True)
    with (
        said_when_full(workspace.root),
        own_folder(workspace.root, prefix=".merge-") as folder,
    ):
        path = folder / "merged.gguf"
        with path.open("wb") as file:
            merged = merge_adapter(reference, adapter, file, progress=progress)
        header = merged.model
        main = record.source_quantization
        before = load_source_types(workspace, record.id, main, header)
        types = {k: v for k, v in before.items() if k not in merged.factors}
        opened = replace(
            open_gguf(path),
            name=f"{record.name}-{adapter.resolve().name}",
            origin=f"{record.source} + {adapter.resolve().name}",
            quantization=main_type(header.tensors, types),
            types=types,
            licence=record.licence,
        )
        return import_opened(opened, workspace, name=name, progress=progress)
