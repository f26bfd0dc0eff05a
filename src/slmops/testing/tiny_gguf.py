"""A complete language model of a few hundred kilobytes, made in milliseconds.

Its weights are random, its answers are noise, but every part is real: a llama
architecture, a byte-level BPE vocabulary, a chat template. llama.cpp loads it, so fast
tests can go through the same code as a real model.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from slmops.workshop.gguf_file import (
    GgufHeader,
    MetadataEntry,
    Scalar,
    TensorEntry,
)
from slmops.workshop.gguf_writer import metadata_entry, write_gguf

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""ChatML, as SmolLM2 and Qwen use it."""

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
"""Token ids 0 to 2: unknown and padding, beginning of sequence, end of sequence."""

_NORMAL, _CONTROL = 1, 3


@dataclass(frozen=True, kw_only=True, slots=True)
class TinyLlama:
    """Sizes of a tiny model."""

    width: int = 64
    """Embedding width, a multiple of 32."""
    layers: int = 2
    """Transformer blocks."""
    feed_forward: int = 128
    """Width of the feed-forward part."""
    heads: int = 4
    """Attention heads."""
    kv_heads: int = 2
    """Key and value heads."""
    vocabulary: int = 300
    """Tokens: 3 special, 256 bytes, the rest merged from pairs of letters."""
    context_tokens: int = 512
    """Longest context."""
    name: str = "Tiny Llama"
    """Name in the metadata."""
    scale: float = 1.0
    """Spread of the weights in multiples of 1 / sqrt(width)."""


def stored_bytes(header: GgufHeader, tensor: TensorEntry) -> bytes:
    """Return a tensor's data as a file holds it, to compare files by."""
    with header.path.open("rb") as file:
        file.seek(tensor.offset)
        return file.read(tensor.bytes)


def write_tiny_llama(
    path: Path, seed: int = 0, *, sizes: TinyLlama | None = None, **changes: Scalar
) -> Path:
    """Write a tiny F16 GGUF model that llama.cpp loads.

    Args:
        path: file to write.
        seed: equal seeds give equal bytes.
        sizes: of the model.
        changes: fields of `TinyLlama` to change: ``width=32``.

    Returns:
        `path`.
    """
    sizes = sizes or TinyLlama(**changes)  # type: ignore[arg-type]
    entries = tiny_metadata(sizes)
    weights = tiny_weights(sizes, seed)
    tensors = [
        TensorEntry(
            name=name,
            shape=tuple(reversed(values.shape)),
            kind="F32" if values.ndim == 1 else "F16",
        )
        for name, values in weights.items()
    ]
    with path.open("wb") as file:
        write_gguf(file, entries, tensors, _encoded(weights))
    return path


def tiny_weights(sizes: TinyLlama, seed: int) -> Mapping[str, npt.NDArray[np.float32]]:
    """Return the weights by GGUF name, (rows, width) or (width,); all exact in F16."""
    width, forward = sizes.width, sizes.feed_forward
    head = max(width // sizes.heads, 1)
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (sizes.vocabulary, width),
        "output_norm.weight": (width,),
    }
    for layer in range(sizes.layers):
        shapes |= {
            f"blk.{layer}.attn_norm.weight": (width,),
            f"blk.{layer}.attn_q.weight": (sizes.heads * head, width),
            f"blk.{layer}.attn_k.weight": (sizes.kv_heads * head, width),
            f"blk.{layer}.attn_v.weight": (sizes.kv_heads * head, width),
            f"blk.{layer}.attn_output.weight": (width, sizes.heads * head),
            f"blk.{layer}.ffn_norm.weight": (width,),
            f"blk.{layer}.ffn_gate.weight": (forward, width),
            f"blk.{layer}.ffn_up.weight": (forward, width),
            f"blk.{layer}.ffn_down.weight": (width, forward),
        }
    chance = np.random.default_rng(seed)
    spread = sizes.scale / np.sqrt(width)
    return {
        name: (
            np.ones(shape, np.float32)
            if len(shape) == 1
            else chance.normal(0, spread, shape).astype(np.float16).astype(np.float32)
        )
        for name, shape in shapes.items()
    }


def tiny_metadata(sizes: TinyLlama) -> tuple[MetadataEntry, ...]:
    """Return the metadata of a tiny model: architecture, tokenizer, chat template."""
    tokens, merges = tiny_vocabulary(sizes.vocabulary)
    kinds = [_CONTROL if token in SPECIAL_TOKENS else _NORMAL for token in tokens]
    return (
        metadata_entry("general.architecture", "llama", "STRING"),
        metadata_entry("general.type", "model", "STRING"),
        metadata_entry("general.name", sizes.name, "STRING"),
        metadata_entry("general.license", "apache-2.0", "STRING"),
        metadata_entry("llama.block_count", sizes.layers, "UINT32"),
        metadata_entry("llama.context_length", sizes.context_tokens, "UINT32"),
        metadata_entry("llama.embedding_length", sizes.width, "UINT32"),
        metadata_entry("llama.feed_forward_length", sizes.feed_forward, "UINT32"),
        metadata_entry("llama.attention.head_count", sizes.heads, "UINT32"),
        metadata_entry("llama.attention.head_count_kv", sizes.kv_heads, "UINT32"),
        metadata_entry("llama.rope.freq_base", 10000.0, "FLOAT32"),
        metadata_entry("llama.attention.layer_norm_rms_epsilon", 1e-5, "FLOAT32"),
        metadata_entry("llama.vocab_size", len(tokens), "UINT32"),
        metadata_entry(
            "llama.rope.dimension_count", sizes.width // sizes.heads, "UINT32"
        ),
        metadata_entry("general.file_type", 1, "UINT32"),
        metadata_entry("tokenizer.ggml.model", "gpt2", "STRING"),
        metadata_entry("tokenizer.ggml.pre", "smollm", "STRING"),
        metadata_entry("tokenizer.ggml.tokens", tokens, "STRING"),
        metadata_entry("tokenizer.ggml.token_type", kinds, "INT32"),
        metadata_entry("tokenizer.ggml.merges", merges, "STRING"),
        metadata_entry("tokenizer.ggml.bos_token_id", 1, "UINT32"),
        metadata_entry("tokenizer.ggml.eos_token_id", 2, "UINT32"),
        metadata_entry("tokenizer.ggml.unknown_token_id", 0, "UINT32"),
        metadata_entry("tokenizer.ggml.padding_token_id", 2, "UINT32"),
        metadata_entry("tokenizer.ggml.add_bos_token", value=False, kind="BOOL"),
        metadata_entry("tokenizer.chat_template", CHAT_TEMPLATE, "STRING"),
    )


def tiny_vocabulary(size: int) -> tuple[list[str], list[str]]:
    """Return `size` tokens and their merges: every byte can be encoded.

    >>> tokens, merges = tiny_vocabulary(300)
    >>> len(tokens), merges[0], tokens[259]
    (300, 'e e', 'ee')
    """
    tokens = [*SPECIAL_TOKENS, *byte_letters()]
    letters = "etaoinshrdlucmfw"
    pairs = ((a, b) for a in letters for b in letters)
    merges = [
        f"{a} {b}" for _, (a, b) in zip(range(size - len(tokens)), pairs, strict=False)
    ]
    return [*tokens, *(merge.replace(" ", "") for merge in merges)], merges


def byte_letters() -> list[str]:
    """Return one printable letter for each byte: GPT-2's byte-level alphabet."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in printable}
    rest = (byte for byte in range(256) if byte not in letters)
    letters |= {byte: chr(256 + index) for index, byte in enumerate(rest)}
    return [letters[byte] for byte in range(256)]


def _encoded(weights: Mapping[str, npt.NDArray[np.float32]]) -> Iterator[tuple[bytes]]:
    for values in weights.values():
        yield (values.astype(np.float32 if values.ndim == 1 else np.float16).tobytes(),)
