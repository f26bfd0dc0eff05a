"""The benchmarks' real model: SmolLM2-135M-Instruct, imported and quantized."""

from pathlib import Path

from slmops.demo.source_model import fetch_smollm2
from slmops.domain.release import ModelRecord
from slmops.registry.blobs import BlobStore
from slmops.registry.workspace import Workspace
from slmops.workshop.models import import_model, reference_path
from slmops.workshop.quantize import quantize_gguf

Imported = tuple[Workspace, ModelRecord]


def import_source(folder: Path, source: Path) -> Imported:
    """Import a model into a workspace of its own."""
    workspace = Workspace(root=folder)
    return workspace, import_model(str(source), workspace)


def import_smollm2(folder: Path) -> Imported:
    """Import SmolLM2-135M-Instruct into a workspace of its own."""
    return import_source(folder, fetch_smollm2())


def quantized(workspace: Workspace, record: ModelRecord, kind: str) -> Path:
    """Return a quantized variant of an imported model."""
    blobs = BlobStore(workspace.blobs)
    with blobs.writer() as writer:
        quantize_gguf(reference_path(workspace, record), kind, writer)
    return blobs.path(writer.digest)
