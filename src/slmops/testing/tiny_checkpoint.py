"""The tiny model of `tiny_gguf` as a Hugging Face checkpoint folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from slmops.testing.tiny_gguf import (
    CHAT_TEMPLATE,
    SPECIAL_TOKENS,
    TinyLlama,
    tiny_vocabulary,
    tiny_weights,
)
from slmops.wire.codec import encode_json

_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
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
_DTYPES: Mapping[str, Any] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}


def write_tiny_checkpoint(
    folder: Path,
    seed: int = 0,
    *,
    sizes: TinyLlama | None = None,
    dtype: str = "float16",
    shards: int = 1,
) -> Path:
    """Write a checkpoint whose import equals `write_tiny_llama` of the same seed.

    Args:
        folder: made if missing.
        seed: of the weights.
        sizes: of the model.
        dtype: ``float32``, ``float16`` or ``bfloat16`` (which rounds).
        shards: number of weight files; with more than one there is an index.

    Returns:
        `folder`.
    """
    sizes = sizes or TinyLlama()
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        _checkpoint_name(name): _halved(name, values, sizes).astype(_DTYPES[dtype])
        for name, values in tiny_weights(sizes, seed).items()
    }
    _save(folder, weights, shards)
    for name, document in tiny_checkpoint_texts(sizes).items():
        (folder / name).write_bytes(encode_json(document))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Tiny Llama\n")
    return folder


def tiny_checkpoint_texts(sizes: TinyLlama) -> dict[str, dict[str, Any]]:
    """Return the JSON files of a tiny checkpoint by name."""
    tokens, merges = tiny_vocabulary(sizes.vocabulary)
    special = len(SPECIAL_TOKENS)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": sizes.width,
        "intermediate_size": sizes.feed_forward,
        "max_position_embeddings": sizes.context_tokens,
        "num_attention_heads": sizes.heads,
        "num_hidden_layers": sizes.layers,
        "num_key_value_heads": sizes.kv_heads,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "vocab_size": sizes.vocabulary,
    }
    digits = {"type": "Digits", "individual_digits": True}
    letters = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    tokenizer = {
        "added_tokens": [
            {"id": index, "content": token, "special": True}
            for index, token in enumerate(SPECIAL_TOKENS)
        ],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, letters]},
        "model": {
            "type": "BPE",
            "vocab": {token: special + i for i, token in enumerate(tokens[special:])},
            "merges": [merge.split(" ") for merge in merges],
        },
    }
    settings = {
        "bos_token": SPECIAL_TOKENS[1],
        "eos_token": {"content": SPECIAL_TOKENS[2]},
        "unk_token": SPECIAL_TOKENS[0],
        "pad_token": SPECIAL_TOKENS[2],
        "add_bos_token": False,
        "chat_template": CHAT_TEMPLATE,
    }
    return {
        "config.json": config,
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": settings,
    }


def _save(folder: Path, weights: Mapping[str, npt.NDArray[Any]], shards: int) -> None:
    if shards == 1:
        save_file(dict(weights), folder / "model.safetensors")
        return
    index: dict[str, str] = {}
    for shard in range(shards):
        name = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {key: weights[key] for key in sorted(weights)[shard::shards]}
        save_file(part, folder / name)
        index |= dict.fromkeys(part, name)
    document = {"metadata": {}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_bytes(encode_json(document))


def _checkpoint_name(name: str) -> str:
    parts = name.split(".")
    if parts[0] == "blk":
        return f"model.layers.{parts[1]}.{_NAMES[parts[2]]}.weight"
    return f"{_NAMES[parts[0]]}.weight"


def _halved(
    name: str, values: npt.NDArray[np.float32], sizes: TinyLlama
) -> npt.NDArray[np.float32]:
    """Undo llama.cpp's order of rotated rows: even channels first, odd ones after."""
    part = name.split(".")[-2]
    heads = {"attn_q": sizes.heads, "attn_k": sizes.kv_heads}.get(part)
    if heads is None:
        return values
    pairs = values.reshape(heads, -1, 2, values.shape[1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(values.shape))
