"""LoRA adapters of peft: merged into a reference, or made a GGUF file beside it.

An adapter is two small matrices for each weight it changes, ``W + s · B · A`` with A
(rank, columns), B (rows, rank) and s = alpha / rank, or alpha / √rank with
rank-stabilized LoRA (Hu et al., 2021; Kalajdzievski, 2023). llama.cpp keeps the rotated
rows of Llama's queries and keys in another order, so B's rows are reordered like theirs.

Refused is what would be lost silently: adapters with weight decomposition (DoRA), with
biases, of embeddings, or with whole modules saved beside.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from slmops.domain.errors import InvalidInputError
from slmops.workshop.gguf_file import GgufHeader, TensorEntry, read_header
from slmops.workshop.gguf_writer import ByteSink, metadata_entry, write_gguf
from slmops.workshop.hf_files import CheckpointFolder
from slmops.workshop.hf_names import checkpoint_name, interleaved_rows
from slmops.workshop.model_shape import ModelShape, read_shape
from slmops.workshop.progress import Progress, silent
from slmops.workshop.quantize import Matrix, encode_rows, read_rows
from slmops.workshop.reference import F16_MAX
from slmops.workshop.safetensors_file import StoredTensor, read_safetensors

_FACTOR = re.compile(r"base_model\.model\.(.+)\.lora_([AB])(?:\.default)?\.weight")
_ROPE_FACTORS = "rope_freqs.weight"
_MAX_RANK = 4096
_FULL = frozenset({"F32", "F16", "BF16"})
_REFUSED = {
    "use_dora": "weight decomposition (DoRA)",
    "modules_to_save": "whole modules saved beside",
    "fan_in_fan_out": "transposed weights",
    "lora_bias": "biases in B",
}

_HARMLESS_STARTS = (True, False, None, "gaussian", "orthogonal")
"""Ways to begin training that leave the model's own weights as they were."""
_PLAIN_PATTERN = re.compile(r"[A-Za-z0-9_.]{1,255}")
"""Of peft's patterns, the only kind taken: a file's own expression could run for ever."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Factors:
    """What an adapter adds to one weight: ``scale * b @ a``."""

    a: Matrix
    """(rank, columns) float32."""
    b: Matrix
    """(rows, rank) float32, rows in the order of the GGUF tensor."""
    scale: float
    """Times the product."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Adapter:
    """A LoRA adapter, checked against the model it changes."""

    model: GgufHeader
    """The model."""
    factors: Mapping[str, Factors]
    """By GGUF tensor name, in the model's order."""
    alpha: float
    """As configured."""

    @property
    def parameters(self) -> int:
        """Numbers in all factors."""
        return sum(f.a.size + f.b.size for f in self.factors.values())


def read_adapter(folder: Path, model: Path) -> Adapter:
    """Read a peft folder and check it against the GGUF model it was trained for.

    Args:
        folder: ``adapter_config.json`` and ``adapter_model.safetensors``.
        model: GGUF file; quantized is fine.

    Raises:
        InvalidInputError: no LoRA adapter, of a kind that is not supported, damaged, or
            of another model's shape.
    """
    header = read_header(model)
    files = CheckpointFolder(folder)
    config = files.json("adapter_config.json")
    if config is None:
        raise InvalidInputError(f"{folder}: adapter_config.json is missing")
    return _AdapterReader(folder, config, header, read_shape(header)).read(
        _weight_file(files)
    )


def merge_adapter(
    reference: Path, folder: Path, sink: ByteSink, *, progress: Progress = silent
) -> Adapter:
    """Write a reference with an adapter's changes in its weights.

    Rows are changed a few at a time, in float32, and rounded to the type they had; what
    the adapter does not touch keeps its bytes.

    Args:
        reference: GGUF file whose weights have 16 bits or more.
        folder: peft adapter.
        sink: takes the merged file's bytes.
        progress: told after every tensor.

    Returns:
        The adapter that was merged.

    Raises:
        InvalidInputError: as `read_adapter`; the reference is quantized; or a merged
            weight does not fit its type.
    """
    adapter = read_adapter(folder, reference)
    header = adapter.model
    quantized = {t.kind for t in header.tensors} - _FULL
    if quantized:
        raise InvalidInputError(
            f"{reference}: is quantized ({', '.join(sorted(quantized))}); an adapter is"
            " merged into the 16-bit model, which is then quantized"
        )
    metadata = [e for e in header.metadata if e.key != "general.alignment"]
    write_gguf(sink, metadata, header.tensors, _merged(adapter, progress))
    return adapter


def adapter_to_gguf(
    folder: Path, model: Path, sink: ByteSink, *, kind: str = "F32"
) -> Adapter:
    """Write an adapter as a GGUF file that llama.cpp loads beside its model.

    Args:
        folder: peft adapter.
        model: GGUF file of the model it was trained for; any quantization of it fits.
        sink: takes the file's bytes.
        kind: ``F32``, ``F16`` or ``BF16``.

    Returns:
        The adapter that was written.

    Raises:
        InvalidInputError: as `read_adapter`.
    """
    adapter = read_adapter(folder, model)
    stored: dict[str, Matrix] = {}
    for name, factors in adapter.factors.items():
        # llama.cpp scales by alpha / rank; whatever else there is goes into B.
        rest = factors.scale * factors.a.shape[0] / adapter.alpha
        stored[f"{name}.lora_a"] = factors.a
        stored[f"{name}.lora_b"] = factors.b * np.float32(rest)
    tensors = [
        TensorEntry(name=name, shape=tuple(reversed(values.shape)), kind=kind)
        for name, values in stored.items()
    ]
    architecture = adapter.model.text("general.architecture") or ""
    metadata = (
        metadata_entry("general.architecture", architecture, "STRING"),
        metadata_entry("general.type", "adapter", "STRING"),
        metadata_entry("general.name", folder.resolve().name, "STRING"),
        metadata_entry("adapter.type", "lora", "STRING"),
        metadata_entry("adapter.lora.alpha", adapter.alpha, "FLOAT32"),
    )
    data = ((encode_rows(values, kind),) for values in stored.values())
    write_gguf(sink, metadata, tensors, data)
    return adapter


@dataclass(frozen=True, slots=True)
class _AdapterReader:
    folder: Path
    config: Mapping[str, Any]
    header: GgufHeader
    shape: ModelShape

    def read(self, path: Path) -> Adapter:
        self._check_config()
        pairs = self._pairs(path)
        tensors = {
            checkpoint_name(tensor.name, self.shape.architecture): tensor
            for tensor in self.header.tensors
            if tensor.name != _ROPE_FACTORS
        }
        factors: dict[str, Factors] = {}
        for module, pair in pairs.items():
            tensor = tensors.get(f"{module}.weight")
            if tensor is None:
                self._refuse(f"{module!r} has no weight in {self.header.path.name}")
            if not {"A", "B"} <= pair.keys():
                self._refuse(f"{module!r} must have lora_A and lora_B")
            factors[tensor.name] = self._factors(module, tensor, pair)
        order = [t.name for t in self.header.tensors if t.name in factors]
        return Adapter(
            model=self.header,
            factors={name: factors[name] for name in order},
            alpha=self._alpha(self.config.get("lora_alpha")),
        )

    def _check_config(self) -> None:
        kind = self.config.get("peft_type")
        if kind != "LORA":
            self._refuse(f"peft_type must be LORA, got {kind!r}")
        for key, what in _REFUSED.items():
            if self.config.get(key):
                self._refuse(f"{key}: {what} are not supported")
        start = self.config.get("init_lora_weights", True)
        if start not in _HARMLESS_STARTS:
            # PiSSA, OLoRA and their like change the base, and peft does so on loading.
            self._refuse(
                f"init_lora_weights {start!r} changes the model the adapter is added to;"
                " convert the adapter with peft's path_initial_model_for_weight_conversion"
            )
        if self.config.get("bias", "none") != "none":
            self._refuse(f"bias must be 'none', got {self.config['bias']!r}")

    def _pairs(self, path: Path) -> dict[str, dict[str, StoredTensor]]:
        pairs: dict[str, dict[str, StoredTensor]] = {}
        for stored in read_safetensors(path):
            found = _FACTOR.fullmatch(stored.entry.name)
            if found is None:
                self._refuse(
                    f"tensor {stored.entry.name!r} is no LoRA factor of a linear layer"
                )
            pairs.setdefault(found[1], {})[found[2]] = stored
        if not pairs:
            self._refuse("holds no factors")
        return pairs

    def _factors(
        self, module: str, tensor: TensorEntry, pair: Mapping[str, StoredTensor]
    ) -> Factors:
        a, b = (np.concatenate(list(pair[part].rows())) for part in "AB")
        rank = a.shape[0]
        wanted = ((rank, tensor.width), (tensor.rows, rank))
        if (a.shape, b.shape) != wanted or rank > _MAX_RANK:
            self._refuse(
                f"the factors of {module!r} must have shapes {wanted[0]} and {wanted[1]},"
                f" got {a.shape} and {b.shape}"
            )
        heads = {"attn_q": self.shape.heads, "attn_k": self.shape.kv_heads}
        part = tensor.name.split(".")[-2]
        if self.shape.architecture == "llama" and part in heads:
            b = interleaved_rows(b, heads[part])
        return Factors(a=a, b=b, scale=self._scale(module, rank))

    def _scale(self, module: str, rank: int) -> float:
        alpha = self.config.get("lora_alpha")
        patterns = self.config.get("alpha_pattern") or {}
        if not isinstance(patterns, dict):
            self._refuse(f"alpha_pattern must be a mapping, got {patterns!r:.80}")
        for pattern, value in patterns.items():
            if not _PLAIN_PATTERN.fullmatch(pattern):
                self._refuse(f"alpha_pattern {pattern!r:.80} must be a module's name")
            # As peft matches: the whole name, or its end after a dot.
            if re.fullmatch(rf"(?:.*\.)?(?:{re.escape(pattern)})", module):
                alpha = value
                break
        root = self.config.get("use_rslora")
        return self._alpha(alpha) / (math.sqrt(rank) if root else rank)

    def _alpha(self, value: object) -> float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 < value < math.inf:  # type: ignore[operator]
            self._refuse(f"lora_alpha must be a number > 0, got {value!r}")
        return float(value)  # type: ignore[arg-type]

    def _refuse(self, reason: str) -> NoReturn:
        raise InvalidInputError(f"{self.folder}: {reason}")


def _weight_file(files: CheckpointFolder) -> Path:
    path = files.file("adapter_model.safetensors")
    if path is None:
        pickled = files.file("adapter_model.bin")
        raise InvalidInputError(
            f"{files.path}: adapter_model.safetensors is missing"
            + ("; pickled weights can run code when loaded" if pickled else "")
        )
    return path


def _merged(adapter: Adapter, progress: Progress) -> Iterator[Iterator[bytes]]:
    tensors = adapter.model.tensors
    total = sum(tensor.elements for tensor in tensors)
    done = 0
    for tensor in tensors:
        yield _merged_rows(adapter, tensor)
        done += tensor.elements
        progress("merge adapter", done, total)


def _merged_rows(adapter: Adapter, tensor: TensorEntry) -> Iterator[bytes]:
    factors = adapter.factors.get(tensor.name)
    first = 0
    with adapter.model.path.open("rb") as file:
        for values in read_rows(file, tensor):
            if factors is None:
                yield encode_rows(values, tensor.kind)
                continue
            part = factors.b[first : first + len(values)]
            merged = values + np.float32(factors.scale) * (part @ factors.a)
            first += len(values)
            if tensor.kind == "F16" and float(np.abs(merged).max()) > F16_MAX:
                raise InvalidInputError(
                    f"merged weights of {tensor.name} do not fit half precision"
                )
            yield encode_rows(merged, tensor.kind)
