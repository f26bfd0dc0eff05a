"""Which tensor gets which type: llama.cpp's quantization mixes, and one of our own.

A name such as ``Q4_K_M`` is a recipe, not a type: some tensors get more bits, and rows
whose width a 256-weight block does not divide fall back to a 32-weight type, mostly a
larger one. The rules follow ``llama_tensor_get_type`` of llama.cpp (src/llama-quant.cpp)
for dense decoders: none of its special cases for experts, Falcon or 70-billion models.

``Q2_K_PURE`` is ours: every matrix, embedding included, carries about two bits a
weight. It is what too much compression looks like, and serves to show a bad release.
"""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from slmops.domain.errors import InvalidInputError
from slmops.workshop.gguf_file import BLOCKS, TensorEntry


class Part(StrEnum):
    """What a tensor does in a transformer block, as far as mixes care."""

    EMBEDDING = "embedding"
    OUTPUT = "output"
    ATTENTION_V = "attention_v"
    ATTENTION_OUTPUT = "attention_output"
    FEED_FORWARD_DOWN = "feed_forward_down"
    OTHER = "other"


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a tensor stands among its likes."""

    index: int
    """Position among the tensors of the same part, in layer order."""
    count: int
    """How many of them there are (for feed-forward: layers)."""
    kv_sharing: int
    """Query heads that share one key and value head."""
    has_imatrix: bool
    """Whether an importance matrix steers the rounding."""

    @property
    def is_sensitive(self) -> bool:
        """First and last eighth of the layers, and every third between."""
        eighth = self.count // 8
        return (
            self.index < eighth
            or self.index >= 7 * self.count // 8
            or (self.index - eighth) % 3 == 2  # noqa: PLR2004 - the third of three
        )


Rule = Callable[[Place], str | None]
"""Type for a tensor at a place; None leaves the mix's base type."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mix:
    """One quantization by its llama.cpp name."""

    base: str
    """Type of every matrix without a rule of its own."""
    file_type: int
    """``general.file_type`` in the file: llama.cpp's LLAMA_FTYPE number."""
    rules: Mapping[Part, Rule] = field(default_factory=dict)
    """What is different, by part."""
    head: str = "Q6_K"
    """Type of the output matrix, which tied embeddings are too."""
    pure: bool = False
    """No rules and no better head: everything is base."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorChoice:
    """The type one tensor gets."""

    kind: str
    """Type of its blocks."""
    coarse: bool = False
    """Rounded to a 2-bit grid first: the block type holds more than the grid needs."""


def _always(kind: str) -> Rule:
    return lambda place: kind


def _first(limit: int, kind: str, rest: str | None = None) -> Rule:
    return lambda place: kind if place.index < limit else rest


def _first_share(divisor: int, kind: str, rest: str | None = None) -> Rule:
    return lambda place: kind if place.index < place.count // divisor else rest


def _sensitive(kind: str) -> Rule:
    return lambda place: kind if place.is_sensitive else None


def _shared_kv(kind: str, rest: str | None = None) -> Rule:
    least = 4
    return lambda place: kind if place.kv_sharing >= least else rest


def _first_eighth_if(has_imatrix: bool, kind: str) -> Rule:
    def rule(place: Place) -> str | None:
        early = place.index < place.count // 8
        return kind if early and place.has_imatrix is has_imatrix else None

    return rule


_V, _OUT, _DOWN = Part.ATTENTION_V, Part.ATTENTION_OUTPUT, Part.FEED_FORWARD_DOWN
_IQ4_RULES = {_V: _shared_kv("Q5_K"), _DOWN: _first_eighth_if(False, "Q5_K")}

MIXES: Mapping[str, Mix] = {
    "F16": Mix(base="F16", file_type=1),
    "BF16": Mix(base="BF16", file_type=32),
    "Q8_0": Mix(base="Q8_0", file_type=7, head="Q8_0"),
    "Q6_K": Mix(base="Q6_K", file_type=18),
    "Q5_K_M": Mix(
        base="Q5_K",
        file_type=17,
        rules={_V: _sensitive("Q6_K"), _DOWN: _sensitive("Q6_K")},
    ),
    "Q5_K_S": Mix(base="Q5_K", file_type=16),
    "Q5_0": Mix(
        base="Q5_0", file_type=8, rules={_DOWN: _first_eighth_if(True, "Q5_1")}
    ),
    "Q5_1": Mix(base="Q5_1", file_type=9),
    "Q4_K_M": Mix(
        base="Q4_K",
        file_type=15,
        rules={_V: _sensitive("Q6_K"), _DOWN: _sensitive("Q6_K")},
    ),
    "Q4_K_S": Mix(
        base="Q4_K",
        file_type=14,
        rules={_V: _first(4, "Q5_K"), _DOWN: _first_share(8, "Q5_K")},
    ),
    "Q4_0": Mix(
        base="Q4_0", file_type=2, rules={_DOWN: _first_eighth_if(True, "Q4_1")}
    ),
    "Q4_1": Mix(base="Q4_1", file_type=3),
    "IQ4_XS": Mix(base="IQ4_XS", file_type=30, rules=_IQ4_RULES),
    "IQ4_NL": Mix(base="IQ4_NL", file_type=25, rules=_IQ4_RULES),
    "Q3_K_L": Mix(
        base="Q3_K",
        file_type=13,
        rules={_V: _always("Q5_K"), _DOWN: _always("Q5_K"), _OUT: _always("Q5_K")},
    ),
    "Q3_K_M": Mix(
        base="Q3_K",
        file_type=12,
        rules={
            _V: _first(2, "Q5_K", "Q4_K"),
            _DOWN: _first_share(16, "Q5_K", "Q4_K"),
            _OUT: _always("Q4_K"),
        },
    ),
    "Q3_K_S": Mix(base="Q3_K", file_type=11),
    "IQ3_M": Mix(
        base="IQ3_S",
        file_type=27,
        rules={
            _V: _always("Q4_K"),
            _DOWN: _first_share(8, "Q4_K"),
            _OUT: _always("Q4_K"),
        },
    ),
    "IQ3_S": Mix(base="IQ3_S", file_type=26, rules={_V: _shared_kv("Q4_K")}),
    "IQ2_M": Mix(
        base="IQ2_S",
        file_type=29,
        rules={
            _V: _shared_kv("Q4_K", "IQ3_S"),
            _DOWN: _first_share(8, "IQ3_S"),
            _OUT: _always("IQ3_S"),
            Part.EMBEDDING: _always("IQ3_S"),
        },
        head="Q5_K",
    ),
    "Q2_K": Mix(
        base="Q2_K",
        file_type=10,
        rules={
            _V: _shared_kv("Q4_K", "Q3_K"),
            _DOWN: _always("Q3_K"),
            _OUT: _always("Q3_K"),
        },
    ),
    "Q2_K_PURE": Mix(base="Q2_K", file_type=10, pure=True),
}
"""Every quantization this workshop makes, largest first."""

NEED_IMATRIX = frozenset({"IQ3_XXS", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_M", "IQ1_S"})
"""Types that come out unusable without an importance matrix; llama.cpp refuses them."""

_FALLBACK = {
    "IQ2_S": "IQ4_NL",
    "IQ3_S": "IQ4_NL",
    "IQ4_XS": "IQ4_NL",
    "Q2_K": "Q4_0",
    "Q3_K": "Q4_0",
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}
_NOT_QUANTIZED = re.compile(
    r"_norm\.weight|ffn_gate_inp\.weight|altup|laurel|per_layer_model_proj"
    r"|^position_embd\.weight|^token_types\.weight|ssm_conv1d|shortconv\.conv\.weight"
    r"|attn_rel_b\.weight"
)
_PARTS = (
    (re.compile(r"attn_(v|qkv|kv_b)\.weight"), Part.ATTENTION_V),
    (re.compile(r"attn_output\.weight"), Part.ATTENTION_OUTPUT),
    (re.compile(r"ffn_down"), Part.FEED_FORWARD_DOWN),
    (re.compile(r"^output\.weight$"), Part.OUTPUT),
    (re.compile(r"^(per_layer_)?token_embd\.weight$"), Part.EMBEDDING),
)
_LAYER = re.compile(r"blk\.(\d+)\.")


def find_mix(name: str) -> Mix:
    """Return the mix called `name`.

    Raises:
        InvalidInputError: there is none; the message names the closest.
    """
    if name in MIXES:
        return MIXES[name]
    close = difflib.get_close_matches(name.upper(), MIXES, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(MIXES)}"
    raise InvalidInputError(f"quantization {name!r} is unknown; {hint}")


def choose_types(
    tensors: Sequence[TensorEntry],
    name: str,
    *,
    kv_sharing: int,
    has_imatrix: bool = False,
) -> tuple[TensorChoice, ...]:
    """Decide every tensor's type.

    Args:
        tensors: of the 16-bit reference.
        name: of the mix.
        kv_sharing: query heads per key and value head.
        has_imatrix: an importance matrix will steer the rounding.

    Returns:
        One choice per tensor, in the same order.

    Raises:
        InvalidInputError: unknown mix, or one that needs an importance matrix.
    """
    mix = find_mix(name)
    tied = all(tensor.name != "output.weight" for tensor in tensors)
    counts = dict.fromkeys(Part, 0)
    total_v = sum(_part(tensor.name) is Part.ATTENTION_V for tensor in tensors)
    layers = 1 + max((_layer(tensor.name) for tensor in tensors), default=0)
    chosen: dict[str, TensorChoice] = {}
    for tensor in sorted(tensors, key=lambda tensor: _layer(tensor.name)):
        part = _part(tensor.name)
        place = Place(
            index=counts[part],
            count=total_v if part is Part.ATTENTION_V else layers,
            kv_sharing=kv_sharing,
            has_imatrix=has_imatrix,
        )
        counts[part] += 1
        is_head = part is Part.OUTPUT or (tied and part is Part.EMBEDDING)
        chosen[tensor.name] = _choose(mix, tensor, part, place, is_head=is_head)
        _check_imatrix(chosen[tensor.name], tensor, part, name, has_imatrix=has_imatrix)
    return tuple(chosen[tensor.name] for tensor in tensors)


def assigned_types(
    tensors: Sequence[TensorEntry],
    types: Mapping[str, str],
    *,
    has_imatrix: bool,
) -> tuple[TensorChoice, ...]:
    """Give every matrix the type an assignment says; all others keep theirs.

    Args:
        tensors: of the 16-bit reference.
        types: tensor → type, of every matrix that mixes would quantize.
        has_imatrix: an importance matrix will steer the rounding.

    Returns:
        One choice per tensor, in the same order.

    Raises:
        InvalidInputError: a matrix is missing; a name that is none; a type that is
            unknown, does not divide the rows, or needs an importance matrix.
    """
    matrices = {tensor.name for tensor in tensors if _is_quantized(tensor)}
    if differing := sorted(matrices ^ set(types)):
        problem = "lacks" if differing[0] in matrices else "names what is no matrix:"
        raise InvalidInputError(f"assignment {problem} {differing[0]}")
    choices = []
    for tensor in tensors:
        kind = types.get(tensor.name, tensor.kind)
        _check_assigned(tensor, kind, has_imatrix=has_imatrix)
        choices.append(TensorChoice(kind=kind))
    return tuple(choices)


def assigned_file_type(types: Mapping[str, str]) -> int:
    """Return the ``general.file_type`` that says most of an assignment.

    >>> assigned_file_type({"a": "Q4_K", "b": "Q4_K", "c": "Q8_0"})
    15
    """
    kinds = list(types.values())
    most = max(sorted(set(kinds)), key=kinds.count, default="F16")
    plain = (mix.file_type for mix in MIXES.values() if mix.base == most)
    return next(plain, MIXES["F16"].file_type)


def _check_assigned(tensor: TensorEntry, kind: str, *, has_imatrix: bool) -> None:
    where = f"assignment of {tensor.name}"
    if kind not in BLOCKS:
        raise InvalidInputError(f"{where}: type {kind!r} is unknown")
    block = BLOCKS[kind][0]
    if tensor.width % block:
        raise InvalidInputError(
            f"{where}: rows of {kind} must be a multiple of {block} wide,"
            f" got {tensor.width}"
        )
    if kind in NEED_IMATRIX and not has_imatrix:
        raise InvalidInputError(f"{where}: {kind} needs an importance matrix")


def _choose(
    mix: Mix, tensor: TensorEntry, part: Part, place: Place, *, is_head: bool
) -> TensorChoice:
    if not _is_quantized(tensor):
        return TensorChoice(kind=tensor.kind)
    if mix.base in {"F16", "BF16"}:
        return TensorChoice(kind=mix.base)
    if mix.pure:
        kind = _fitting(mix.base, tensor.width)
        return TensorChoice(kind=kind, coarse=kind != mix.base)
    if is_head:
        fits = tensor.width % BLOCKS[mix.base][0] == 0
        kind = mix.head if fits else "Q8_0"
    else:
        rule = mix.rules.get(part)
        kind = (rule(place) if rule else None) or mix.base
    return TensorChoice(kind=_fitting(kind, tensor.width))


def _check_imatrix(
    choice: TensorChoice,
    tensor: TensorEntry,
    part: Part,
    name: str,
    *,
    has_imatrix: bool,
) -> None:
    exempt = has_imatrix or part in {Part.EMBEDDING, Part.OUTPUT}
    if choice.kind in NEED_IMATRIX and not exempt:
        raise InvalidInputError(
            f"quantization {name} needs an importance matrix for this model:"
            f" {tensor.name} would be {choice.kind}"
        )


def _is_quantized(tensor: TensorEntry) -> bool:
    return (
        len(tensor.shape) > 1
        and tensor.name.endswith("weight")
        and not _NOT_QUANTIZED.search(tensor.name)
    )


def _fitting(kind: str, width: int) -> str:
    """Return `kind`, or what replaces it in rows its blocks do not divide."""
    if width % BLOCKS[kind][0]:
        kind = _FALLBACK.get(kind, "F16")
    return "F16" if width % BLOCKS[kind][0] else kind


def _part(name: str) -> Part:
    for pattern, part in _PARTS:
        if pattern.search(name):
            return part
    return Part.OTHER


def _layer(name: str) -> int:
    found = _LAYER.match(name)
    return int(found[1]) if found else -1
