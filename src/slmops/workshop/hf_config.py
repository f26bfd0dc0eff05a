"""A checkpoint's ``config.json`` as GGUF metadata.

What a family's computation leaves open is written; what llama.cpp computes in one way
only, such as every sixth layer of Gemma 3 seeing all of the context, is compared, and a
configuration that differs is refused: such a model would load and answer worse.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from slmops.domain.errors import InvalidInputError
from slmops.workshop.gguf_file import MetadataEntry
from slmops.workshop.gguf_writer import metadata_entry
from slmops.workshop.hf_rope import llama3_factors
from slmops.workshop.model_shape import GLOBAL_EVERY

_ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Gemma3ForCausalLM": "gemma3",
}
_SIZES = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
}
_MAX_SIZE = 1 << 24
_ROPE_BASES = {"gemma3": 1_000_000.0}
_ACTIVATIONS = {"gemma3": "gelu_pytorch_tanh"}
_WIDE_ATTENTION_LAYERS = 62
_LOCAL_ROPE_BASE = 10000.0

Tree = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ConfigReader:
    """Reads the sizes and numbers of a configuration, and refuses what llama.cpp has not.

    Every method raises `InvalidInputError`, naming the key, what was expected and what
    came.
    """

    path: Path
    config: Tree

    @property
    def architecture(self) -> str:
        """GGUF architecture."""
        names = self.config.get("architectures") or ["(none)"]
        name = str(names[0])
        if name not in _ARCHITECTURES:
            self._refuse(
                f"architecture {name!r} is not supported; supported are"
                f" {', '.join(_ARCHITECTURES)}"
            )
        if self.config.get("quantization_config"):
            self._refuse("the checkpoint is quantized; import the full-precision one")
        if self.config.get("use_sliding_window") or (
            name == "MistralForCausalLM" and self.config.get("sliding_window")
        ):
            self._refuse("sliding-window attention is not supported")
        return _ARCHITECTURES[name]

    @property
    def is_tied(self) -> bool:
        """Whether the output is the embedding; by default in Gemma alone."""
        default = self.architecture == "gemma3"
        return bool(self.config.get("tie_word_embeddings", default))

    @property
    def layers(self) -> int:
        """Transformer blocks."""
        return self._size("num_hidden_layers")

    def metadata(self) -> tuple[MetadataEntry, ...]:
        """Return the model's part of the metadata, without the tokenizer's."""
        prefix = self.architecture
        self._check_activation()
        sizes = {key: self._size(name) for key, name in _SIZES.items()}
        heads = sizes["attention.head_count"]
        sizes["attention.head_count_kv"] = self._size("num_key_value_heads", heads)
        head_width = self._head_width()
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
            *(self._gemma() if prefix == "gemma3" else ()),
        )

    def rope_factors(self) -> npt.NDArray[np.float32] | None:
        """Divisors of the rotation frequencies, as Llama 3 stretches its context."""
        rope = self._rope()
        if self._rope_kind(rope) != "llama3":
            return None
        width = self._head_width()
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

    def _gemma(self) -> Iterator[MetadataEntry]:
        self._check_attention_scale()
        if self.config.get("attn_logit_softcapping"):
            self._refuse("attn_logit_softcapping is not supported")
        if self.config.get("use_bidirectional_attention"):
            self._refuse("use_bidirectional_attention is not supported")
        prefix = "gemma3"
        cap = self.config.get("final_logit_softcapping")
        if cap:
            yield metadata_entry(
                f"{prefix}.final_logit_softcapping", float(cap), "FLOAT32"
            )
        if self._is_windowed():
            window = self._size("sliding_window")
            yield metadata_entry(f"{prefix}.attention.sliding_window", window, "UINT32")

    def _is_windowed(self) -> bool:
        """Tell whether layers have a window, each but every sixth."""
        every = GLOBAL_EVERY["gemma3"]
        default = self._size("sliding_window_pattern", every)
        rule = self._layer_types(default)
        found = self.config.get("layer_types") or rule
        if set(found) == {"full_attention"}:
            return False
        if found != self._layer_types(every):
            self._refuse(
                f"layer_types must be sliding_attention but for every {every}th layer,"
                f" got {found!r}"
            )
        local = self._rope_of("sliding_attention").get(
            "rope_theta", self.config.get("rope_local_base_freq", _LOCAL_ROPE_BASE)
        )
        if local != _LOCAL_ROPE_BASE:
            self._refuse(f"rope_local_base_freq must be 10000, got {local!r}")
        return True

    def _layer_types(self, every: int) -> list[str]:
        return [
            "sliding_attention" if layer % every else "full_attention"
            for layer in range(1, self.layers + 1)
        ]

    def _check_attention_scale(self) -> None:
        wide = self.layers == _WIDE_ATTENTION_LAYERS
        width = self._head_width()
        wanted = self._size("hidden_size") // self._heads() if wide else width
        scale = self.config.get("query_pre_attn_scalar", wanted)
        if scale != wanted:
            self._refuse(f"query_pre_attn_scalar must be {wanted}, got {scale!r}")

    def _check_activation(self) -> None:
        wanted = _ACTIVATIONS.get(self.architecture, "silu")
        name = "hidden_activation" if wanted != "silu" else "hidden_act"
        found = self.config.get(name) or wanted
        if found != wanted:
            self._refuse(f"{name} must be {wanted}, got {found!r}")

    def _head_width(self) -> int:
        if self.architecture == "gemma3":
            return self._size("head_dim", 256)
        return self._size("head_dim", self._size("hidden_size") // self._heads())

    def _rope(self) -> Tree:
        # transformers 5 writes rope_parameters where 4 wrote rope_scaling, and one for
        # each kind of layer when there are two.
        rope = self.config.get("rope_parameters") or self.config.get("rope_scaling")
        if isinstance(rope, dict) and isinstance(rope.get("full_attention"), dict):
            return self._rope_of("full_attention")
        return rope if isinstance(rope, dict) else {}

    def _rope_of(self, layer_type: str) -> Tree:
        rope = self.config.get("rope_parameters") or {}
        found = rope.get(layer_type) if isinstance(rope, dict) else None
        return found if isinstance(found, dict) else {}

    def _rope_kind(self, rope: Tree) -> str:
        kind = str(rope.get("rope_type") or rope.get("type") or "default")
        if kind not in {"default", "linear", "llama3"}:
            self._refuse(f"rope scaling {kind!r} is not supported")
        return kind

    def _rope_base(self) -> float:
        inner = self._rope().get("rope_theta")
        default = self.config.get(
            "rope_theta", _ROPE_BASES.get(self.architecture, 10000.0)
        )
        base = inner if inner is not None else default
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
