"""A model in a Hugging Face checkpoint folder: safetensors, config and tokenizer.

Covers Llama (SmolLM2, Mistral without sliding window), Qwen2, Qwen3 and the text models
of Gemma 3. Names come from gguf's own map. llama.cpp rotates neighbouring channels
where Hugging Face rotates halves, so the query and key rows of the ``llama``
architecture are reordered; others' are not. Gemma stores how far a norm's weight is
from 1, llama.cpp the weight. `hf_export` is the way back.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from slmops.domain.errors import InvalidInputError
from slmops.domain.ids import Digest
from slmops.registry.blobs import file_digest
from slmops.wire.codec import document_digest
from slmops.workshop.gguf_file import GgufHeader, MetadataEntry, TensorEntry
from slmops.workshop.gguf_writer import metadata_entry
from slmops.workshop.hf_config import ConfigReader
from slmops.workshop.hf_files import CheckpointFolder
from slmops.workshop.hf_names import interleaved_rows
from slmops.workshop.hf_tokenizer import tokenizer_files, tokenizer_metadata
from slmops.workshop.model_shape import ModelShape, read_shape
from slmops.workshop.quantize import Matrix
from slmops.workshop.reference import ReferenceSource
from slmops.workshop.safetensors_file import StoredTensor, read_safetensors

_ROPE_FACTORS = "rope_freqs.weight"


def open_checkpoint(path: Path, *, trusted_root: Path | None = None) -> ReferenceSource:
    """Check a checkpoint folder and open it as a source.

    Args:
        path: the folder.
        trusted_root: folder links may lead to; `path` itself when None.

    Raises:
        InvalidInputError: it is no model we support, or damaged; nothing was written.
    """
    folder = CheckpointFolder(path, trusted_root)
    config = folder.json("config.json")
    if config is None:
        raise InvalidInputError(
            f"{path}: config.json is missing: this is no checkpoint"
        )
    settings = ConfigReader(path, config)
    weights = folder.weight_files()
    name = path.resolve().name
    metadata = (
        metadata_entry("general.architecture", settings.architecture, "STRING"),
        metadata_entry("general.type", "model", "STRING"),
        metadata_entry("general.name", name, "STRING"),
        *_licence_entry(folder.licence()),
        *settings.metadata(),
        *tokenizer_metadata(folder, config),
    )
    stored = _named(path, settings, weights)
    shape = _check(path, metadata, stored)
    return ReferenceSource(
        name=name,
        origin=name,
        digest=_digest(path, weights),
        metadata=metadata,
        tensors=tuple(stored),
        read=_reader(stored, settings, shape),
        quantization=None,
        licence=folder.licence(),
    )


def _named(
    path: Path, settings: ConfigReader, weights: tuple[Path, ...]
) -> dict[TensorEntry, StoredTensor | None]:
    """Return tensors by GGUF entry, embedding first; None for a computed one."""
    found = _found(path, settings, weights)
    if settings.is_tied:
        found.pop("output.weight", None)
    elif "output.weight" not in found:
        raise InvalidInputError(f"{path}: lm_head.weight is missing, and is not tied")
    result: dict[TensorEntry, StoredTensor | None] = {}
    factors = settings.rope_factors()
    if factors is not None:
        entry = TensorEntry(name=_ROPE_FACTORS, shape=factors.shape, kind="F32")
        result[entry] = None
    for name in sorted(found, key=_model_order):
        entry = replace(found[name].entry, name=name, offset=0)
        result[entry] = found[name]
    return result


def _found(
    path: Path, settings: ConfigReader, weights: tuple[Path, ...]
) -> dict[str, StoredTensor]:
    kind = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(kind[settings.architecture], settings.layers)
    found: dict[str, StoredTensor] = {}
    for file in weights:
        for stored in read_safetensors(file):
            name = _gguf_name(path, names, stored.entry.name)
            if name in found:
                raise InvalidInputError(f"{path}: {stored.entry.name!r} is given twice")
            if name is not None:
                found[name] = stored
    return found


def _gguf_name(path: Path, names: Any, checkpoint_name: str) -> str | None:  # noqa: ANN401 - gguf is untyped
    if checkpoint_name.endswith(".rotary_emb.inv_freq"):
        return None
    name = names.get_name(checkpoint_name, try_suffixes=(".weight", ".bias"))
    if name is None:
        raise InvalidInputError(f"{path}: tensor {checkpoint_name!r} is unknown")
    return str(name)


def _model_order(name: str) -> tuple[int, int, str]:
    parts = name.split(".")
    if parts[0] == "blk":
        return (1, int(parts[1]), name)
    return (0 if parts[0] == "token_embd" else 2, 0, name)


def _check(
    path: Path,
    metadata: tuple[MetadataEntry, ...],
    stored: Mapping[TensorEntry, object],
) -> ModelShape:
    header = GgufHeader(
        path=path, file_bytes=0, metadata=metadata, tensors=tuple(stored)
    )
    return read_shape(header)


def _reader(
    stored: Mapping[TensorEntry, StoredTensor | None],
    settings: ConfigReader,
    shape: ModelShape,
) -> Callable[[TensorEntry], Iterator[Matrix]]:
    heads = {"attn_q": shape.heads, "attn_k": shape.kv_heads}

    def read(entry: TensorEntry) -> Iterator[Matrix]:
        source = stored[entry]
        part = entry.name.split(".")[-2]
        if source is None:
            factors = settings.rope_factors()
            yield np.asarray(factors, np.float32).reshape(1, -1)
        elif shape.architecture == "llama" and part in heads:
            rows = np.concatenate(list(source.rows()))
            yield interleaved_rows(rows, heads[part])
        elif shape.architecture == "gemma3" and part.endswith("_norm"):
            for rows in source.rows():
                yield rows + np.float32(1)
        else:
            yield from source.rows()

    return read


def _digest(path: Path, weights: tuple[Path, ...]) -> Digest:
    files = [
        *weights,
        *(path / name for name in (*tokenizer_files(path), "config.json")),
    ]
    return document_digest(sorted([file.name, file_digest(file)] for file in files))


def _licence_entry(licence: str | None) -> tuple[MetadataEntry, ...]:
    if licence is None:
        return ()
    return (metadata_entry("general.license", licence, "STRING"),)
