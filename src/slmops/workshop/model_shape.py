"""What a model's metadata says it is, and whether its tensors agree.

A GGUF file can be well-formed and still describe no model: ten million layers, a
matrix of the wrong width, a vocabulary shorter than its embedding. The runtime aborts
on some of these, so they are refused here.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NoReturn

from slmops.domain.errors import InvalidInputError
from slmops.workshop.gguf_file import GgufHeader, MetadataEntry, TensorEntry

ARCHITECTURES = frozenset(
    {
        "llama",
        "qwen2",
        "qwen3",
        "gemma",
        "gemma2",
        "gemma3",
        "granite",
        "olmo2",
        "smollm3",
    }
)
"""Dense decoders whose tensors these rules know."""

_LIMITS = {
    "block_count": 1024,
    "embedding_length": 1 << 17,
    "context_length": 1 << 24,
    "attention.head_count": 4096,
    "feed_forward_length": 1 << 20,
}
GLOBAL_EVERY = {"gemma2": 2, "gemma3": 6, "olmo2": 4}
"""Every so many layers one attends to the whole context, where there is a window."""
_BLOCK = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
_BLOCK_PARTS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_down")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelShape:
    """Sizes of a decoder."""

    architecture: str
    """GGUF architecture."""
    layers: int
    """Transformer blocks."""
    width: int
    """Embedding width."""
    feed_forward: int
    """Inner width of the feed-forward part."""
    heads: int
    """Query heads."""
    kv_heads: int
    """Key and value heads."""
    key_width: int
    """Width of one key head."""
    value_width: int
    """Width of one value head."""
    context_tokens: int
    """Longest context it was trained for."""
    vocabulary: int
    """Tokens."""
    merges: int = 0
    """Byte-pair merges of the tokenizer; 0 for other kinds."""
    window_tokens: int = 0
    """How far layers with a sliding window look back; 0 when there are none."""
    windowed_layers: int = 0
    """Layers with a sliding window."""
    global_every: int = 0
    """Every so many layers one attends to the whole context; 0 when all do."""


def read_shape(header: GgufHeader) -> ModelShape:
    """Read a model's sizes and check its tensors against them.

    Raises:
        InvalidInputError: unsupported architecture, impossible sizes, or tensors that
            are missing or have another shape.
    """
    return _ShapeReader(header).read()


class _ShapeReader:
    def __init__(self, header: GgufHeader) -> None:
        self._header = header
        self._architecture = header.text("general.architecture") or ""

    def read(self) -> ModelShape:
        if not self._architecture:
            self._refuse("general.architecture is missing: this is no model")
        if self._architecture not in ARCHITECTURES:
            self._refuse(
                f"architecture {self._architecture!r} is not supported; supported are"
                f" {', '.join(sorted(ARCHITECTURES))}"
            )
        sizes = {name: self._size(name, limit) for name, limit in _LIMITS.items()}
        heads, width = sizes["attention.head_count"], sizes["embedding_length"]
        merges = self._header.find("tokenizer.ggml.merges")
        window = self._size("attention.sliding_window", 1 << 24, default=0)
        kv_heads = self._size("attention.head_count_kv", heads, default=heads)
        if heads % kv_heads:
            self._refuse(
                f"head_count {heads} must be a multiple of head_count_kv {kv_heads}"
            )
        head_width = max(width // heads, 1)
        shape = ModelShape(
            architecture=self._architecture,
            layers=sizes["block_count"],
            width=width,
            feed_forward=sizes["feed_forward_length"],
            heads=heads,
            kv_heads=kv_heads,
            key_width=self._size("attention.key_length", 8192, default=head_width),
            value_width=self._size("attention.value_length", 8192, default=head_width),
            context_tokens=sizes["context_length"],
            vocabulary=self._vocabulary(),
            merges=merges.length if merges is not None else 0,
            window_tokens=window,
            windowed_layers=self._windowed(sizes["block_count"]) if window else 0,
            global_every=GLOBAL_EVERY.get(self._architecture, 0) if window else 0,
        )
        self._check_tensors(shape)
        return shape

    def _size(self, name: str, limit: int, *, default: int | None = None) -> int:
        key = f"{self._architecture}.{name}"
        entry = self._header.find(key)
        if entry is None and default is not None:
            return default
        if entry is None:
            self._refuse(f"{key} is missing")
        value = self._number(entry)
        if not 1 <= value <= limit:
            self._refuse(f"{key} must be 1 to {limit}, got {value}")
        return value

    def _windowed(self, layers: int) -> int:
        every = GLOBAL_EVERY.get(self._architecture)
        return layers - layers // every if every else 0

    def _number(self, entry: MetadataEntry) -> int:
        # Some writers give one value per layer; a dense model has them all equal.
        values = set(entry.items()) if entry.is_array else {entry.scalar()}
        value = values.pop() if len(values) == 1 else None
        if isinstance(value, bool) or not isinstance(value, int):
            self._refuse(f"{entry.key} must be one whole number")
        return value

    def _vocabulary(self) -> int:
        tokens = self._header.find("tokenizer.ggml.tokens")
        if tokens is None or not tokens.is_array or tokens.length < 1:
            self._refuse(
                "tokenizer.ggml.tokens is missing: the model has no vocabulary"
            )
        for name in ("scores", "token_type"):
            other = self._header.find(f"tokenizer.ggml.{name}")
            if other is not None and other.length != tokens.length:
                self._refuse(
                    f"tokenizer.ggml.{name} must have {tokens.length} items,"
                    f" got {other.length}"
                )
        for name in ("bos", "eos", "padding"):
            self._check_token(f"tokenizer.ggml.{name}_token_id", tokens.length)
        return tokens.length

    def _check_token(self, key: str, vocabulary: int) -> None:
        entry = self._header.find(key)
        if entry is not None and not 0 <= self._number(entry) < vocabulary:
            self._refuse(f"{key} must be below {vocabulary}, got {entry.scalar()}")

    def _check_tensors(self, shape: ModelShape) -> None:
        expected = _expected_shapes(shape)
        tensors = {tensor.name: tensor for tensor in self._header.tensors}
        for name in _required(shape.layers):
            if name not in tensors:
                self._refuse(f"tensor {name!r} is missing")
        for tensor in self._header.tensors:
            self._check_tensor(tensor, expected, shape.layers)

    def _check_tensor(
        self, tensor: TensorEntry, expected: dict[str, tuple[int, ...]], layers: int
    ) -> None:
        found = _BLOCK.fullmatch(tensor.name)
        if found and int(found[1]) >= layers:
            self._refuse(f"tensor {tensor.name!r} belongs to none of {layers} layers")
        part = found[2] if found and found[3] == "weight" else tensor.name
        wanted = expected.get(part)
        if wanted is not None and tensor.shape != wanted:
            self._refuse(
                f"tensor {tensor.name!r} must have shape {list(wanted)},"
                f" got {list(tensor.shape)}"
            )

    def _refuse(self, reason: str) -> NoReturn:
        raise InvalidInputError(f"{self._header.path}: {reason}")


def _required(layers: int) -> Iterable[str]:
    yield "token_embd.weight"
    for layer in range(layers):
        for part in _BLOCK_PARTS:
            yield f"blk.{layer}.{part}.weight"


def _expected_shapes(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    width, forward = shape.width, shape.feed_forward
    return {
        "token_embd.weight": (width, shape.vocabulary),
        "output.weight": (width, shape.vocabulary),
        "output_norm.weight": (width,),
        "attn_norm": (width,),
        "ffn_norm": (width,),
        "attn_q": (width, shape.heads * shape.key_width),
        "attn_k": (width, shape.kv_heads * shape.key_width),
        "attn_v": (width, shape.kv_heads * shape.value_width),
        "attn_output": (shape.heads * shape.value_width, width),
        "ffn_gate": (width, forward),
        "ffn_up": (width, forward),
        "ffn_down": (forward, width),
    }
