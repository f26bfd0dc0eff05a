"""Models in, from a GGUF file, a Hugging Face folder or a Hub id; and finding them again.

An imported model is its 16-bit reference: a GGUF blob under its digest, and a record for
each name it was given: ``<hex>.json``, and ``<hex>@<name>.json`` for names given later.
The blob is stored whole before a record is written, so an import that is stopped
leaves nothing behind that anyone would find.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from slmops.domain.errors import ConflictError, InvalidInputError, NotFoundError
from slmops.domain.ids import Digest, check_name, digest_hex
from slmops.domain.release import ModelRecord
from slmops.registry.blobs import BlobStore, write_atomically
from slmops.registry.workspace import Workspace
from slmops.wire.codec import decode_json, encode_json
from slmops.workshop.disk import said_when_full
from slmops.workshop.gguf_file import GgufHeader, read_header
from slmops.workshop.gguf_source import open_gguf
from slmops.workshop.model_shape import read_shape
from slmops.workshop.progress import Progress, silent
from slmops.workshop.reference import (
    HalfOverflowError,
    ReferenceSource,
    write_reference,
)
from slmops.workshop.source_grid import (
    SourceGrid,
    has_source_types,
    load_source_types,
    save_source_types,
)

_LEAST_PREFIX = 4
_NAME_LENGTH = 60


def import_model(
    source: str,
    workspace: Workspace,
    *,
    name: str | None = None,
    revision: str | None = None,
    progress: Progress = silent,
) -> ModelRecord:
    """Import a model as a 16-bit reference; importing it again changes nothing.

    Equal bytes under another name are the same model: both names stay.

    Args:
        source: path of a GGUF file or of a Hugging Face checkpoint folder, or a Hub id
            such as ``HuggingFaceTB/SmolLM2-135M-Instruct``.
        workspace: where it is stored.
        name: to call it by; derived from the model's own when missing.
        revision: branch, tag or commit of a Hub id.
        progress: told what is being done.

    Returns:
        The record; its `id` is the digest of the reference.

    Raises:
        InvalidInputError: no model, a damaged one, or one that is not supported.
        NotFoundError: nothing at that path, or no such Hub id.
        ConflictError: another model has that name already, with other bytes.
        UnavailableError: the Hub cannot be reached, or the disk is full.
    """
    if name is not None:
        check_name(name, where="--name")
    with said_when_full(workspace.blobs):
        return import_opened(
            _open_source(source, revision, progress),
            workspace,
            name=name,
            progress=progress,
        )


def import_opened(
    opened: ReferenceSource,
    workspace: Workspace,
    *,
    name: str | None = None,
    progress: Progress = silent,
) -> ModelRecord:
    """Import a source that is open already; see `import_model`.

    Args:
        opened: the model.
        workspace: where it is stored.
        name: valid name to call it by; derived from the model's own when missing.
        progress: told what is being done.

    Raises:
        InvalidInputError: the source is damaged.
        ConflictError: another model has that name already.
    """
    known = _known_source(workspace, opened.digest)
    digest = known.id if known else _store_reference(opened, workspace, progress)
    record = known or _known_model(workspace, digest)
    if record is None:
        header = read_header(BlobStore(workspace.blobs).path(digest))
        record = _describe(opened, digest, header)
        record = replace(record, name=_free_name(workspace, name or record.name, name))
        _keep_types(workspace, record, opened)
        write_atomically(_record_path(workspace, digest), encode_json(record))
        return record
    if record.source_digest == opened.digest:
        _keep_types(workspace, record, opened)
    return _named(workspace, record, name or record.name)


def list_models(workspace: Workspace) -> tuple[ModelRecord, ...]:
    """Return all imported models, by name.

    Raises:
        InvalidInputError: a record is damaged.
    """
    if not workspace.models.is_dir():
        return ()
    records = [
        decode_json(path.read_bytes(), ModelRecord, where=str(path))
        for path in sorted(workspace.models.glob("*.json"))
    ]
    return tuple(sorted(records, key=lambda record: (record.name, record.id)))


def find_model(workspace: Workspace, name_or_prefix: str) -> ModelRecord:
    """Return a model by its name, its digest, or the beginning of its hex digits.

    Raises:
        NotFoundError: there is none.
        InvalidInputError: the beginning fits more than one.
    """
    records = list_models(workspace)
    for record in records:
        if name_or_prefix == record.name:
            return record
    prefix = name_or_prefix.removeprefix("sha256:")
    # Of a model with several names, the record of its first.
    found = [
        record
        for record in records
        if len(prefix) >= _LEAST_PREFIX
        and digest_hex(record.id).startswith(prefix)
        and record == _known_model(workspace, record.id)
    ]
    if len(found) > 1:
        raise InvalidInputError(
            f"model {name_or_prefix!r} is ambiguous: {_names(found)} begin with it"
        )
    if not found:
        raise NotFoundError(
            f"model {name_or_prefix!r} is not imported; imported are"
            f" {_names(records) or 'none: slmops model import SOURCE'}"
        )
    return found[0]


def remove_model(workspace: Workspace, name: str) -> ModelRecord:
    """Forget a model's name; its bytes stay until nothing refers to them.

    A model with several names keeps the others. Builds and releases of it stay readable.

    Args:
        workspace: holds it.
        name: exactly as it is called; no digest, which would mean all its names.

    Returns:
        What was known of it under that name.

    Raises:
        NotFoundError: no model is called so.
    """
    records = list_models(workspace)
    gone = next((record for record in records if record.name == name), None)
    if gone is None:
        raise NotFoundError(
            f"no model is called {name!r}; imported are {_names(records) or 'none'}"
        )
    digits = digest_hex(gone.id)
    later = workspace.models / f"{digits}@{name}.json"
    if later.is_file():
        later.unlink()
        return gone
    others = sorted(workspace.models.glob(f"{digits}@*.json"))
    if others:
        # The first name goes: the next takes its place, at no moment is there none.
        others[0].replace(_record_path(workspace, gone.id))
    else:
        _record_path(workspace, gone.id).unlink()
        (workspace.models / f"{digits}.types").unlink(missing_ok=True)
    return gone


def reference_path(workspace: Workspace, record: ModelRecord) -> Path:
    """Return the file of a model's 16-bit reference.

    Raises:
        NotFoundError: the blob is gone.
    """
    return BlobStore(workspace.blobs).path(record.id)


def find_grid(workspace: Workspace, record: ModelRecord) -> SourceGrid:
    """Return what lies on the grid of a model's source.

    Raises:
        NotFoundError: the blob is gone.
        InvalidInputError: what was kept at import is damaged.
    """
    path = reference_path(workspace, record)
    main = record.source_quantization
    types = load_source_types(workspace, record.id, main, read_header(path))
    return SourceGrid(reference=path, types=types)


def _open_source(
    source: str, revision: str | None, progress: Progress
) -> ReferenceSource:
    path = Path(source)
    if path.is_dir():
        from slmops.workshop.hf_source import open_checkpoint

        return open_checkpoint(path)
    if path.is_file():
        return open_gguf(path)
    from slmops.workshop.hub import fetch_checkpoint, is_hub_id

    if path.exists() or not is_hub_id(source):
        raise NotFoundError(f"{source!r} is no file, no folder and no Hub id")
    return fetch_checkpoint(source, revision, progress)


def _store_reference(
    source: ReferenceSource, workspace: Workspace, progress: Progress
) -> Digest:
    blobs = BlobStore(workspace.blobs)
    blobs.remove_partials()
    try:
        return _store_as(source, blobs, "F16", progress)
    except HalfOverflowError:
        return _store_as(source, blobs, "BF16", progress)


def _store_as(
    source: ReferenceSource, blobs: BlobStore, half: str, progress: Progress
) -> Digest:
    with blobs.writer() as writer:
        write_reference(source, writer, half, progress)
    return writer.digest


def _describe(
    source: ReferenceSource, digest: Digest, header: GgufHeader
) -> ModelRecord:
    shape = read_shape(header)
    tokenizer = header.text("tokenizer.ggml.model") or "unknown"
    pre = header.text("tokenizer.ggml.pre")
    return ModelRecord(
        id=digest,
        name=_valid_name(source.name),
        architecture=shape.architecture,
        parameters=sum(tensor.elements for tensor in header.tensors),
        context_tokens=shape.context_tokens,
        vocabulary=shape.vocabulary,
        tokenizer=f"{tokenizer}/{pre}" if pre else tokenizer,
        chat_template=header.text("tokenizer.chat_template"),
        licence=source.licence,
        source=source.origin,
        source_digest=source.digest,
        source_quantization=source.quantization,
        bytes=header.file_bytes,
    )


def _known_source(workspace: Workspace, digest: Digest) -> ModelRecord | None:
    blobs = BlobStore(workspace.blobs)
    for record in list_models(workspace):
        if record.source_digest == digest and blobs.has(record.id):
            return _known_model(workspace, record.id) or record
    return None


def _keep_types(
    workspace: Workspace, record: ModelRecord, opened: ReferenceSource
) -> None:
    """Keep the source's types; an import of before they were kept gets them now."""
    if opened.types and not has_source_types(workspace, record.id):
        save_source_types(workspace, record.id, opened.types)


def _named(workspace: Workspace, record: ModelRecord, name: str) -> ModelRecord:
    """Return a model's record under a name, given to it now if it is new."""
    for known in list_models(workspace):
        if (known.id, known.name) == (record.id, name):
            return known
    record = replace(record, name=_free_name(workspace, name, name))
    path = workspace.models / f"{digest_hex(record.id)}@{name}.json"
    write_atomically(path, encode_json(record))
    return record


def _known_model(workspace: Workspace, digest: Digest) -> ModelRecord | None:
    path = _record_path(workspace, digest)
    if not path.is_file():
        return None
    return decode_json(path.read_bytes(), ModelRecord, where=str(path))


def _free_name(workspace: Workspace, name: str, given: str | None) -> str:
    taken = {record.name for record in list_models(workspace)}
    if name not in taken:
        return name
    if given is not None:
        raise ConflictError(f"another model is called {name!r}; give another --name")
    count = 2
    while f"{name}-{count}" in taken:
        count += 1
    return f"{name}-{count}"


def _valid_name(text: str) -> str:
    """Make a valid name of a model's own.

    >>> _valid_name("Smollm2 135M 8k Lc100K")
    'smollm2-135m-8k-lc100k'
    """
    plain = re.sub(r"[^a-z0-9._-]+", "-", text.lower())[:_NAME_LENGTH].strip("._-")
    return plain or "model"


def _record_path(workspace: Workspace, digest: Digest) -> Path:
    return workspace.models / f"{digest_hex(digest)}.json"


def _names(records: Sequence[ModelRecord]) -> str:
    return ", ".join(record.name for record in records)
