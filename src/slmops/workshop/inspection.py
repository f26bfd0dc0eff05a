"""What a GGUF model consists of, group of tensors by group: the numbers levers act on.

Tensors of one role and shape, such as the queries of all layers, are one group. All of
it is read from the header; no weight is touched.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from slmops.workshop.gguf_file import BLOCKS, TensorEntry, read_header
from slmops.workshop.model_shape import ModelShape, read_shape

_PARTS = {
    "token_embd": "embedding",
    "output": "output",
    "attn_q": "attention",
    "attn_k": "attention",
    "attn_v": "attention",
    "attn_output": "attention",
    "ffn_gate": "feed-forward",
    "ffn_up": "feed-forward",
    "ffn_down": "feed-forward",
}
_HALF_BYTES = 2
_FORMATS = ("Q8_0", "Q4_K")
"""One type for each size of block that quantized types have: 32 and 256 weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorGroup:
    """Tensors of one role, type and shape."""

    name: str
    """``blk.*.attn_q.weight``; the layer's number is left out."""
    part: str
    """``embedding``, ``attention``, ``feed-forward``, ``norms``, ``output`` or
    ``other``."""
    type: str
    """Of the blocks: ``F16``, ``Q4_K``."""
    shape: tuple[int, ...]
    """Row width first."""
    tensors: int
    """How many there are."""
    parameters: int
    """Weights in all of them."""
    bytes: int
    """Of all of them, without padding."""
    share: float
    """Of the bytes of all tensors, 0 to 1."""
    blocks: tuple[int, ...]
    """Sizes of quantized blocks (32, 256 weights) that divide a row; a row that none
    divides stays in 16 bits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PartTotal:
    """All tensors of one part of the model."""

    part: str
    """As in `TensorGroup`."""
    parameters: int
    """Weights."""
    bytes: int
    """Size, without padding."""
    share: float
    """Of the bytes of all tensors, 0 to 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelInspection:
    """A model file, as its header describes it."""

    shape: ModelShape
    """Sizes of the decoder."""
    tokenizer: str
    """Kind and splitting rules: ``gpt2/smollm``."""
    chat_template: bool
    """Whether there is one."""
    tied_embeddings: bool
    """Whether the output uses the embedding's weights."""
    file_bytes: int
    """Of the file: tensors, header and padding."""
    parameters: int
    """Weights of all tensors."""
    groups: tuple[TensorGroup, ...]
    """Largest first."""
    parts: tuple[PartTotal, ...]
    """Largest first."""
    kv_cache_bytes_a_token: int
    """Keys and values in half precision that a token of context adds, before layers
    with a window are full."""
    kv_cache_bytes_a_late_token: int
    """The same once the windows are full."""


def inspect_model(path: Path) -> ModelInspection:
    """Describe a GGUF model, quantized or not.

    Raises:
        InvalidInputError: the file is no model we support, or damaged.
    """
    header = read_header(path)
    shape = read_shape(header)
    total = sum(tensor.bytes for tensor in header.tensors)
    groups = _groups(header.tensors, total)
    kind = header.text("tokenizer.ggml.model") or "unknown"
    rules = header.text("tokenizer.ggml.pre")
    return ModelInspection(
        shape=shape,
        tokenizer=f"{kind}/{rules}" if rules else kind,
        chat_template=bool(header.text("tokenizer.chat_template")),
        tied_embeddings=all(t.name != "output.weight" for t in header.tensors),
        file_bytes=header.file_bytes,
        parameters=sum(group.parameters for group in groups),
        groups=groups,
        parts=_parts(groups, total),
        kv_cache_bytes_a_token=_kv_bytes(shape, shape.layers),
        kv_cache_bytes_a_late_token=_kv_bytes(
            shape, shape.layers - shape.windowed_layers
        ),
    )


def part_of(name: str) -> str:
    """Return the part of the model that a tensor belongs to.

    >>> part_of("blk.3.attn_q.weight"), part_of("output_norm.weight")
    ('attention', 'norms')
    """
    role = name.split(".")[-2] if "." in name else name
    if role.endswith("_norm"):
        return "norms"
    return _PARTS.get(role, "other")


def _groups(tensors: Iterable[TensorEntry], total: int) -> tuple[TensorGroup, ...]:
    members: Counter[tuple[str, str, tuple[int, ...]]] = Counter()
    sizes: dict[tuple[str, str, tuple[int, ...]], TensorEntry] = {}
    for tensor in tensors:
        key = (_group_name(tensor.name), tensor.kind, tensor.shape)
        members[key] += 1
        sizes[key] = tensor
    groups = [
        TensorGroup(
            name=name,
            part=part_of(name),
            type=kind,
            shape=shape,
            tensors=count,
            parameters=count * sizes[name, kind, shape].elements,
            bytes=count * sizes[name, kind, shape].bytes,
            share=count * sizes[name, kind, shape].bytes / total,
            blocks=_dividing(shape),
        )
        for (name, kind, shape), count in members.items()
    ]
    return tuple(sorted(groups, key=lambda group: (-group.bytes, group.name)))


def _group_name(name: str) -> str:
    parts = name.split(".")
    if parts[0] == "blk":
        parts[1] = "*"
    return ".".join(parts)


def _dividing(shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) == 1:
        return ()
    blocks = (BLOCKS[kind][0] for kind in _FORMATS)
    return tuple(block for block in blocks if shape[0] % block == 0)


def _parts(groups: Iterable[TensorGroup], total: int) -> tuple[PartTotal, ...]:
    members: defaultdict[str, list[TensorGroup]] = defaultdict(list)
    for group in groups:
        members[group.part].append(group)
    parts = [
        PartTotal(
            part=part,
            parameters=sum(group.parameters for group in found),
            bytes=sum(group.bytes for group in found),
            share=sum(group.bytes for group in found) / total,
        )
        for part, found in members.items()
    ]
    return tuple(sorted(parts, key=lambda part: (-part.bytes, part.part)))


def _kv_bytes(shape: ModelShape, layers: int) -> int:
    return _HALF_BYTES * layers * shape.kv_heads * (shape.key_width + shape.value_width)
