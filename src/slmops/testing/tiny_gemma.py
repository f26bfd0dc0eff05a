"""A complete Gemma 3 model of a few hundred kilobytes: the sibling of `tiny_gguf`.

Windowed layers, norms on queries and keys, and a SentencePiece vocabulary with byte
fallback; its weights are random.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from slmops.workshop.gguf_file import MetadataEntry, TensorEntry
from slmops.workshop.gguf_writer import metadata_entry, write_gguf

WIDTH, LAYERS, FEED_FORWARD, HEADS, HEAD_WIDTH, WINDOW = 64, 7, 96, 4, 32, 16
"""Its sizes; one head of keys and values; the sixth layer sees all of the context."""

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6
_ADDED = ("<pad>", "<eos>", "<bos>", "<unk>", "\n", "\n\n", "  ", "   ", "<table>")
_JOINED = ("te", "ea", "tea", "▁t", "he", "▁the", "▁tea", "se", "at", "seat", "▁s")
_LETTERS = "▁etaonishrdlcumwfgpybvk"


def write_tiny_gemma(path: Path, seed: int = 0) -> Path:
    """Write a tiny F16 GGUF model of Gemma 3's architecture that llama.cpp loads.

    Args:
        path: file to write.
        seed: equal seeds give equal bytes.

    Returns:
        `path`.
    """
    metadata = _metadata()
    vocabulary = next(e.length for e in metadata if e.key.endswith("ggml.tokens"))
    weights = _weights(vocabulary, seed)
    tensors = [
        TensorEntry(
            name=name,
            shape=tuple(reversed(values.shape)),
            kind="F32" if values.ndim == 1 else "F16",
        )
        for name, values in weights.items()
    ]
    data = (
        (values.astype(np.float32 if values.ndim == 1 else np.float16).tobytes(),)
        for values in weights.values()
    )
    with path.open("wb") as file:
        write_gguf(file, metadata, tensors, data)
    return path


def _weights(vocabulary: int, seed: int) -> Mapping[str, npt.NDArray[np.float32]]:
    queries = HEADS * HEAD_WIDTH
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (vocabulary, WIDTH)}
    for layer in range(LAYERS):
        parts = {
            "attn_k": (HEAD_WIDTH, WIDTH),
            "attn_k_norm": (HEAD_WIDTH,),
            "attn_norm": (WIDTH,),
            "attn_output": (WIDTH, queries),
            "attn_q": (queries, WIDTH),
            "attn_q_norm": (HEAD_WIDTH,),
            "attn_v": (HEAD_WIDTH, WIDTH),
            "ffn_down": (WIDTH, FEED_FORWARD),
            "ffn_gate": (FEED_FORWARD, WIDTH),
            "ffn_norm": (WIDTH,),
            "ffn_up": (FEED_FORWARD, WIDTH),
            "post_attention_norm": (WIDTH,),
            "post_ffw_norm": (WIDTH,),
        }
        shapes |= {f"blk.{layer}.{part}.weight": shape for part, shape in parts.items()}
    shapes["output_norm.weight"] = (WIDTH,)
    chance = np.random.default_rng(seed)
    return {name: _random(shape, chance) for name, shape in shapes.items()}


def _random(
    shape: tuple[int, ...], chance: np.random.Generator
) -> npt.NDArray[np.float32]:
    if len(shape) == 1:
        # Norms as a checkpoint in bfloat16 gives them: one plus a multiple of 1/64.
        steps: npt.NDArray[np.float32] = chance.integers(-16, 16, shape).astype(
            np.float32
        )
        return np.float32(1) + steps / np.float32(64)
    values = chance.normal(0, WIDTH**-0.5, shape).astype(np.float16)
    return values.astype(np.float32)


def _metadata() -> tuple[MetadataEntry, ...]:
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    plain = [*_JOINED, *_LETTERS]
    tokens = [*_ADDED, *bytes_, *plain]
    kinds = [
        *[
            _CONTROL if t[1:-1] in {"pad", "eos", "bos", "unk"} else _USER_DEFINED
            for t in _ADDED
        ],
        *[_BYTE] * len(bytes_),
        *[_NORMAL] * len(plain),
    ]
    scores = [
        *[-1000.0] * len(_ADDED),
        *[0.0] * len(bytes_),
        *[-float(place) for place in range(len(plain))],
    ]
    sizes = {
        "block_count": LAYERS,
        "context_length": 256,
        "embedding_length": WIDTH,
        "feed_forward_length": FEED_FORWARD,
        "attention.head_count": HEADS,
        "attention.head_count_kv": 1,
        "attention.key_length": HEAD_WIDTH,
        "attention.value_length": HEAD_WIDTH,
        "attention.sliding_window": WINDOW,
    }
    numbers = {
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.freq_base": 1_000_000.0,
    }
    special = {"bos": 2, "eos": 1, "unknown": 3, "padding": 0}
    return (
        metadata_entry("general.architecture", "gemma3", "STRING"),
        metadata_entry("general.type", "model", "STRING"),
        metadata_entry("general.name", "Tiny Gemma", "STRING"),
        *(metadata_entry(f"gemma3.{k}", v, "UINT32") for k, v in sizes.items()),
        *(metadata_entry(f"gemma3.{k}", v, "FLOAT32") for k, v in numbers.items()),
        metadata_entry("general.file_type", 1, "UINT32"),
        metadata_entry("tokenizer.ggml.model", "llama", "STRING"),
        metadata_entry("tokenizer.ggml.pre", "default", "STRING"),
        metadata_entry("tokenizer.ggml.tokens", tokens, "STRING"),
        metadata_entry("tokenizer.ggml.scores", scores, "FLOAT32"),
        metadata_entry("tokenizer.ggml.token_type", kinds, "INT32"),
        *(
            metadata_entry(f"tokenizer.ggml.{name}_token_id", index, "UINT32")
            for name, index in special.items()
        ),
        metadata_entry("tokenizer.ggml.add_bos_token", value=True, kind="BOOL"),
        metadata_entry("tokenizer.ggml.add_space_prefix", value=False, kind="BOOL"),
    )
