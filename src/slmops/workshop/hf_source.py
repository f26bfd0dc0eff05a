"""A model in a Hugging Face checkpoint folder: safetensors, config and tokenizer.

Covers Llama (SmolLM2, Mistral without sliding window), Qwen2 and Qwen3 with byte-level
BPE vocabularies. Names come from gguf's own map. llama.cpp rotates neighbouring
channels where Hugging Face rotates halves, so the query and key rows of the ``llama``
architecture are reordered; Qwen's are not.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import gguf
import numpy as np
import numpy.typing as npt

from slmops.domain.errors import InvalidInputError
from slmops.domain.ids import Digest
from slmops.registry.blobs import file_digest
from slmops.wire.codec import document_digest
from slmops.workshop.gguf_file import GgufHeader, MetadataEntry, TensorEntry
from slmops.workshop.gguf_writer import metadata_entry
from slmops.workshop.hf_files import CheckpointFolder
from slmops.workshop.hf_names import interleaved_rows
from slmops.workshop.hf_rope import llama3_factors
from slmops.workshop.hf_tokenizer import tokenizer_files, tokenizer_metadata
from slmops.workshop.model_shape import ModelShape, read_shape
from slmops.workshop.quantize import Matrix
from slmops.workshop.reference import ReferenceSource
from slmops.workshop.safetensors_file import StoredTensor, read_safetensors

_ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
_SIZES = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
}
_MAX_SIZE = 1 << 24
_ROPE_FACTORS = "rope_freqs.weight"

Tree = Mapping[str, Any]


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
    settings = _ConfigReader(path, config)
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


@dataclass(frozen=True, slots=True)
class _ConfigReader:
    path: Path
    config: Tree

    @property
    def architecture(self) -> str:
        names = self.config.get("architectures") or ["(none)"]
        name = str(names[0])
        if name not in _ARCHITECTURES:
            self._refuse(
                f"architecture {name!r} is not supported; supported are"
                f" {', '.join(_ARCHITECTURES)}"
            )
        if self.config.get("quantization_config"):
            self._refuse("the checkpoint is quantized; import the full-precision one")
        if name == "MistralForCausalLM" and self.config.get("sliding_window"):
            self._refuse("sliding-window attention is not supported")
        return _ARCHITECTURES[name]

    @property
    def is_tied(self) -> bool:
        return bool(self.config.get("tie_word_embeddings", False))

    @property
    def layers(self) -> int:
        return self._size("num_hidden_layers")

    def metadata(self) -> tuple[MetadataEntry, ...]:
        prefix = self.architecture
        sizes = {key: self._size(name) for key, name in _SIZES.items()}
        heads = sizes["attention.head_count"]
        sizes["attention.head_count_kv"] = self._size("num_key_value_heads", heads)
        head_width = self._size("head_dim", sizes["embedding_length"] // heads)
        sizes |= {"vocab_size": self._size("vocab_size")}
        sizes |= {"rope.dimension_count": head_width}
        if head_width * heads != sizes["embedding_length"]:
            sizes |= {"attention.key_length": head_width}
            sizes |= {"attention.value_length": head_width}
        numbers = {
            "attention.layer_norm_rms_epsilon": self._number("rms_norm_eps", 1e-6),
            "rope.freq_base": self._rope_base(),
        }
        return (
            *(metadata_entry(f"{prefix}.{k}", v, "UINT32") for k, v in sizes.items()),
            *(
                metadata_entry(f"{prefix}.{k}", v, "FLOAT32")
                for k, v in numbers.items()
            ),
            *self._linear_scaling(prefix),
        )

    def rope_factors(self) -> npt.NDArray[np.float32] | None:
        """Divisors of the rotation frequencies, as Llama 3 stretches its context."""
        rope = self._rope()
        if self._rope_kind(rope) != "llama3":
            return None
        width = self._size("head_dim", self._size("hidden_size") // self._heads())
        return llama3_factors(rope, self._rope_base(), width)

    def _linear_scaling(self, prefix: str) -> tuple[MetadataEntry, ...]:
        rope = self._rope()
        if self._rope_kind(rope) != "linear":
            return ()
        return (
            metadata_entry(f"{prefix}.rope.scaling.type", "linear", "STRING"),
            metadata_entry(
                f"{prefix}.rope.scaling.factor", float(rope["factor"]), "FLOAT32"
            ),
        )

    def _rope(self) -> Tree:
        # transformers 5 writes rope_parameters where 4 wrote rope_scaling.
        rope = self.config.get("rope_parameters") or self.config.get("rope_scaling")
        return rope if isinstance(rope, dict) else {}

    def _rope_kind(self, rope: Tree) -> str:
        kind = str(rope.get("rope_type") or rope.get("type") or "default")
        if kind not in {"default", "linear", "llama3"}:
            self._refuse(f"rope scaling {kind!r} is not supported")
        return kind

    def _rope_base(self) -> float:
        inner = self._rope().get("rope_theta")
        base = inner if inner is not None else self.config.get("rope_theta", 10000.0)
        if not isinstance(base, int | float) or not 1 < base < math.inf:
            self._refuse(f"rope_theta must be a number > 1, got {base!r}")
        return float(base)

    def _heads(self) -> int:
        return self._size("num_attention_heads")

    def _size(self, key: str, default: int | None = None) -> int:
        value = self.config.get(key)
        value = default if value is None else value
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or not 1 <= value <= _MAX_SIZE:  # type: ignore[operator]
            self._refuse(f"{key} must be 1 to {_MAX_SIZE}, got {value!r}")
        return int(value)  # type: ignore[arg-type]

    def _number(self, key: str, default: float) -> float:
        value = self.config.get(key, default)
        if not isinstance(value, int | float) or not 0 < value < 1:
            self._refuse(f"{key} must be in (0, 1), got {value!r}")
        return float(value)

    def _refuse(self, reason: str) -> NoReturn:
        raise InvalidInputError(f"{self.path / 'config.json'}: {reason}")


def _named(
    path: Path, settings: _ConfigReader, weights: tuple[Path, ...]
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
    path: Path, settings: _ConfigReader, weights: tuple[Path, ...]
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
    settings: _ConfigReader,
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
