"""What a tensor of a GGUF file is called in a Hugging Face checkpoint.

`gguf` maps many checkpoints' names onto one of its own; the way back must be written
down, because it differs by family: ``ffn_norm`` comes behind the attention in Llama and
before the feed-forward part in Gemma 3, which has two norms more.
"""

import re

import numpy as np

from slmops.domain.errors import InvalidInputError
from slmops.workshop.quantize import Matrix

CAUSAL_MODELS = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
}
"""GGUF architecture → class of transformers that runs it."""

_BLOCK = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
_OUTSIDE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_INSIDE = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_BY_ARCHITECTURE = {
    "llama": _INSIDE,
    "qwen2": _INSIDE,
    "qwen3": _INSIDE | _HEAD_NORMS,
    "gemma3": _INSIDE
    | _HEAD_NORMS
    | {
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    },
}


def checkpoint_name(name: str, architecture: str) -> str:
    """Return a GGUF tensor's name in a checkpoint.

    Raises:
        InvalidInputError: the family has no such tensor.

    >>> checkpoint_name("blk.3.ffn_norm.weight", "gemma3")
    'model.layers.3.pre_feedforward_layernorm.weight'
    """
    found = _BLOCK.fullmatch(name)
    parts = _BY_ARCHITECTURE.get(architecture, {})
    if found and found[2] in parts:
        return f"model.layers.{found[1]}.{parts[found[2]]}.{found[3]}"
    if name not in _OUTSIDE:
        raise InvalidInputError(f"tensor {name!r} is unknown to {architecture}")
    return _OUTSIDE[name]


def interleaved_rows(values: Matrix, heads: int) -> Matrix:
    """Reorder rotated rows from two halves per head to neighbouring pairs.

    Args:
        values: (heads * head width, width), or one row that is a bias.
        heads: heads in it.

    >>> interleaved_rows(np.arange(4, dtype=np.float32).reshape(4, 1), 1).ravel().tolist()
    [0.0, 2.0, 1.0, 3.0]
    """
    return _regrouped(values, (heads, 2, -1))


def halved_rows(values: Matrix, heads: int) -> Matrix:
    """Undo `interleaved_rows`: neighbouring pairs back to two halves per head.

    >>> halved_rows(np.array([[0.0], [2], [1], [3]], np.float32), 1).ravel().tolist()
    [0.0, 1.0, 2.0, 3.0]
    """
    return _regrouped(values, (heads, -1, 2))


def _regrouped(values: Matrix, groups: tuple[int, int, int]) -> Matrix:
    rows = values if values.shape[0] > 1 else values.T
    grouped = rows.reshape(*groups, rows.shape[1])
    ordered = grouped.swapaxes(1, 2).reshape(rows.shape)
    return np.ascontiguousarray(ordered if values.shape[0] > 1 else ordered.T)
