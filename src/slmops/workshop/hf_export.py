"""A 16-bit GGUF model as a Hugging Face checkpoint folder, for tools that train.

The way back of `hf_source`: importing what was exported gives the same tensors, byte by
byte (norms of Gemma within one unit in the last place, see `_exported`). Tensors are
written one by one, so memory stays at the largest one. The configuration uses the keys
that transformers 4 and 5 both read. ``config.json`` is written last: a folder without
it is an export that was stopped, and may be written again.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from slmops.domain.errors import ConflictError, InvalidInputError
from slmops.wire.codec import encode_json_pretty
from slmops.workshop.gguf_file import GgufHeader, TensorEntry, read_header
from slmops.workshop.hf_export_tokenizer import export_tokenizer
from slmops.workshop.hf_names import CAUSAL_MODELS, checkpoint_name, halved_rows
from slmops.workshop.hf_rope import LLAMA3_SCALINGS, llama3_factors
from slmops.workshop.model_shape import ModelShape, read_shape
from slmops.workshop.progress import Progress, silent
from slmops.workshop.quantize import Matrix, encode_rows, read_rows
from slmops.workshop.safetensors_file import write_safetensors

_DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}
_ROPE_FACTORS = "rope_freqs.weight"
_TOKENS = {"bos": "bos", "eos": "eos", "padding": "pad"}
_DIVIDED = frozenset({"llama", "gemma3"})
"""Families of which transformers wants a width that the heads divide."""
_WIDE_ATTENTION_LAYERS = 62
"""Layers of Gemma 3 27B, whose attention alone is scaled by width / heads."""


def export_checkpoint(
    source: Path, folder: Path, *, progress: Progress = silent
) -> None:
    """Write a model as a checkpoint: configuration, safetensors, tokenizer, template.

    Args:
        source: GGUF file whose weights have 16 bits or more; of the families
            ``llama``, ``qwen2``, ``qwen3`` and ``gemma3``.
        folder: made if missing; must hold no checkpoint.
        progress: told after every tensor.

    Raises:
        InvalidInputError: the file is no such model, is damaged, or has a shape that
            transformers refuses (a width that its heads do not divide).
        ConflictError: the folder holds a checkpoint.
    """
    header = read_header(source)
    config = _ConfigWriter(header, read_shape(header)).config()
    if (folder / "config.json").exists():
        raise ConflictError(f"{folder}: holds a checkpoint already")
    folder.mkdir(parents=True, exist_ok=True)
    export_tokenizer(header, folder)
    _write_weights(header, folder / "model.safetensors", progress)
    generation = {"_from_model_config": True} | {
        key: config[key] for key in config if key.endswith("_token_id")
    }
    _write_json(folder / "generation_config.json", generation)
    _write_json(folder / "config.json", config)


@dataclass(frozen=True, slots=True)
class _ConfigWriter:
    header: GgufHeader
    shape: ModelShape

    def config(self) -> dict[str, Any]:
        shape = self.shape
        if shape.architecture not in CAUSAL_MODELS:
            self._refuse(
                f"{shape.architecture} cannot be exported; only"
                f" {', '.join(CAUSAL_MODELS)} can"
            )
        if shape.architecture in _DIVIDED and shape.width % shape.heads:
            self._refuse(
                f"width {shape.width} must be a multiple of its {shape.heads} heads,"
                " or transformers refuses it"
            )
        if shape.key_width != shape.value_width:
            self._refuse("keys and values of different widths cannot be exported")
        names = {tensor.name for tensor in self.header.tensors}
        return {
            "architectures": [CAUSAL_MODELS[shape.architecture]],
            "model_type": shape.architecture,
            "hidden_size": shape.width,
            "intermediate_size": shape.feed_forward,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.kv_heads,
            "head_dim": shape.key_width,
            "max_position_embeddings": shape.context_tokens,
            "vocab_size": shape.vocabulary,
            "rms_norm_eps": self._number("attention.layer_norm_rms_epsilon", 1e-5),
            "rope_theta": self._rope_base(),
            "rope_scaling": self._rope_scaling(),
            "hidden_act": "silu",
            "attention_bias": self._attention_bias(names),
            "mlp_bias": "blk.0.ffn_up.bias" in names,
            "tie_word_embeddings": "output.weight" not in names,
            "torch_dtype": _DTYPES[self._half()],
            "use_cache": True,
            **self._tokens(),
            **(self._gemma() if shape.architecture == "gemma3" else {}),
        }

    def _gemma(self) -> dict[str, Any]:
        shape = self.shape
        wide = shape.layers == _WIDE_ATTENTION_LAYERS
        scale = shape.width // shape.heads if wide else shape.key_width
        return {
            "model_type": "gemma3_text",
            "hidden_activation": "gelu_pytorch_tanh",
            "query_pre_attn_scalar": scale,
            "sliding_window": shape.window_tokens or shape.context_tokens,
            "layer_types": list(self._layer_types()),
            "rope_local_base_freq": 10000.0,
            "final_logit_softcapping": self._number("final_logit_softcapping", 0.0)
            or None,
            "attn_logit_softcapping": None,
        }

    def _layer_types(self) -> Iterator[str]:
        every = self.shape.global_every
        for layer in range(1, self.shape.layers + 1):
            windowed = self.shape.window_tokens and every and layer % every
            yield "sliding_attention" if windowed else "full_attention"

    def _attention_bias(self, names: set[str]) -> bool:
        has = [f"blk.0.attn_{part}.bias" in names for part in ("q", "k", "v", "output")]
        if self.shape.architecture == "qwen2":
            return True
        if any(has) and not all(has):
            self._refuse("attention with biases in some projections only")
        return all(has)

    def _rope_scaling(self) -> dict[str, Any] | None:
        tensors = {tensor.name: tensor for tensor in self.header.tensors}
        if _ROPE_FACTORS in tensors:
            return self._llama3_scaling(tensors[_ROPE_FACTORS])
        kind = self.header.text(f"{self.shape.architecture}.rope.scaling.type")
        if kind in {None, "none"}:
            return None
        if kind != "linear":
            self._refuse(f"rope scaling {kind!r} cannot be exported")
        factor = self._number("rope.scaling.factor", 1.0)
        return {"rope_type": "linear", "factor": factor}

    def _llama3_scaling(self, tensor: TensorEntry) -> dict[str, Any]:
        # A file holds the factors, not what they were computed from.
        with self.header.path.open("rb") as file:
            stored = np.concatenate(list(read_rows(file, tensor))).ravel()
        base = self._rope_base()
        for scaling in LLAMA3_SCALINGS:
            factors = llama3_factors(scaling, base, 2 * stored.size)
            if np.allclose(stored, factors, rtol=1e-5):
                return {"rope_type": "llama3", **scaling}
        return self._refuse("rope frequency factors of no known Llama 3 model")

    def _rope_base(self) -> float:
        return self._number("rope.freq_base", 10000.0)

    def _tokens(self) -> dict[str, int | None]:
        entries = {
            short: self.header.find(f"tokenizer.ggml.{name}_token_id")
            for name, short in _TOKENS.items()
        }
        return {
            f"{short}_token_id": int(entry.scalar()) if entry else None
            for short, entry in entries.items()
        }

    def _half(self) -> str:
        kinds = {tensor.kind for tensor in self.header.tensors}
        if not kinds <= _DTYPES.keys():
            self._refuse(
                f"is quantized ({', '.join(sorted(kinds - _DTYPES.keys()))});"
                " a checkpoint is exported from a 16-bit model"
            )
        embedding = next(
            t for t in self.header.tensors if t.name == "token_embd.weight"
        )
        return embedding.kind

    def _number(self, key: str, default: float) -> float:
        entry = self.header.find(f"{self.shape.architecture}.{key}")
        if entry is None:
            return default
        value = entry.scalar()
        if isinstance(value, str | bool) or not math.isfinite(value):
            self._refuse(f"{entry.key} must be a number, got {value!r}")
        # The shortest decimal that is this float32: 1e-05, not 9.99999974e-06.
        return float(str(np.float32(value)))

    def _refuse(self, reason: str) -> NoReturn:
        raise InvalidInputError(f"{self.header.path}: {reason}")


def _write_weights(header: GgufHeader, path: Path, progress: Progress) -> None:
    shape = read_shape(header)
    tensors: Mapping[str, TensorEntry] = {
        checkpoint_name(tensor.name, shape.architecture): tensor
        for tensor in header.tensors
        if tensor.name != _ROPE_FACTORS
    }
    total = sum(tensor.elements for tensor in tensors.values())
    done = 0

    def pieces(tensor: TensorEntry) -> Iterator[bytes]:
        nonlocal done
        yield from _exported(header, shape, tensor)
        done += tensor.elements
        progress("write safetensors", done, total)

    write_safetensors(path, tensors, pieces)


def _exported(
    header: GgufHeader, shape: ModelShape, tensor: TensorEntry
) -> Iterator[bytes]:
    change = _change(shape, tensor)
    with header.path.open("rb") as file:
        rows = read_rows(file, tensor)
        if change is None:
            for values in rows:
                yield encode_rows(values, tensor.kind)
        else:
            yield encode_rows(change(np.concatenate(list(rows))), tensor.kind)


def _change(
    shape: ModelShape, tensor: TensorEntry
) -> Callable[[Matrix], Matrix] | None:
    heads = {"attn_q": shape.heads, "attn_k": shape.kv_heads}
    part = tensor.name.split(".")[-2]
    if shape.architecture == "llama" and part in heads:
        return lambda values: halved_rows(values, heads[part])
    if shape.architecture == "gemma3" and part.endswith("_norm"):
        # Gemma stores how far a norm's weight is from 1. The difference is exact for
        # weights of at least one half, and off by 2**-25 at most below.
        return lambda values: values - np.float32(1)
    return None


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(encode_json_pretty(document))
