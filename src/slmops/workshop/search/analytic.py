"""What a structure will weigh, told from the reference's header alone.

The first filter of a search: no weight is read, so hundreds of structures take no time.
Shapes are exact but for the vocabulary's last tokens, which its trimming rounds.
"""

import re
from dataclasses import dataclass, replace

from slmops.domain.blueprint import Blueprint
from slmops.domain.device import DeviceClass
from slmops.domain.errors import InvalidInputError
from slmops.domain.levers import PruneDepth, PruneWidth, RecipeStep, TrimVocabulary
from slmops.domain.recipe import StructurePlan
from slmops.workshop.forecast import (
    MIB,
    MachinePrior,
    forecast_decode,
    forecast_memory,
)
from slmops.workshop.gguf_file import GgufHeader, TensorEntry
from slmops.workshop.mixes import choose_types
from slmops.workshop.model_shape import ModelShape, read_shape
from slmops.workshop.precision.damage import TYPES, fitting_types

_BLOCK = re.compile(r"blk\.(\d+)\.(\w+)\.(?:weight|bias)")
_ROWS, _COLUMNS = 1, 0
_SPEED_DOUBT = 2.0
"""A prediction from a probe of the memory may be off by this much."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Skeleton:
    """A model without its weights."""

    shape: ModelShape
    """Sizes."""
    tensors: tuple[TensorEntry, ...]
    """With the reference's types."""

    @property
    def bytes(self) -> int:
        """Of all tensors."""
        return sum(tensor.bytes for tensor in self.tensors)


@dataclass(frozen=True, kw_only=True, slots=True)
class ShapeForecast:
    """What is known of a structure before it is made."""

    name: str
    """Of the structure."""
    steps: tuple[str, ...]
    """Levers, in order."""
    parameters: int
    """Weights."""
    bytes: int
    """Of its tensors in 16 bits."""
    obstacle: str | None
    """Why no class could hold any candidate of it; None when one may."""


def forecast_structure(
    blueprint: Blueprint,
    reference: GgufHeader,
    prior: MachinePrior,
    plan: StructurePlan,
) -> ShapeForecast:
    """Tell what a structure will be, and whether any class could hold it.

    Args:
        blueprint: its classes and candidates.
        reference: header of the 16-bit model that the structure is made from.
        prior: this machine's speed.
        plan: with one number wherever there could be several.
    """
    skeleton = Skeleton(shape=read_shape(reference), tensors=reference.tensors)
    try:
        for step in plan.steps:
            skeleton = changed(skeleton, step)
        obstacle = _obstacle(blueprint, skeleton, prior)
    except InvalidInputError as error:
        obstacle = str(error)
    return ShapeForecast(
        name=plan.name,
        steps=tuple(step.name for step in plan.steps),
        parameters=sum(tensor.elements for tensor in skeleton.tensors),
        bytes=skeleton.bytes,
        obstacle=obstacle,
    )


def forecast_structures(
    blueprint: Blueprint, reference: GgufHeader, prior: MachinePrior
) -> tuple[ShapeForecast, ...]:
    """Forecast every structure a recipe stands for; arguments as `forecast_structure`."""
    return tuple(
        forecast_structure(blueprint, reference, prior, each)
        for plan in blueprint.recipe.structures
        for each in plan.variations()
    )


def _obstacle(
    blueprint: Blueprint, skeleton: Skeleton, prior: MachinePrior
) -> str | None:
    variants = [_quantized(skeleton, name) for name in blueprint.candidates]
    if blueprint.recipe.mixed is not None:
        variants.append(_smallest_mix(skeleton))
    smallest = min(variants, key=lambda variant: variant.bytes)
    for device_class in blueprint.classes:
        found = [_excess(variant, device_class, prior) for variant in variants]
        if None in found:
            return None
    misses = [
        f"{device_class.name}: {_excess(smallest, device_class, prior)}"
        for device_class in blueprint.classes
    ]
    return f"no class could hold it: {'; '.join(misses)}"


def changed(skeleton: Skeleton, step: RecipeStep) -> Skeleton:
    """Return what a step will leave; steps that keep the shape change nothing.

    Raises:
        InvalidInputError: more is to be kept than there is; names the lever.
    """
    match step.lever:
        case TrimVocabulary(tokens=int(tokens)):
            return _with_vocabulary(skeleton, tokens)
        case PruneDepth(layers=int(layers)):
            return _with_layers(skeleton, layers)
        case PruneWidth(feed_forward=int(inner), kv_heads=int(kv_heads)):
            return _with_heads(_with_feed_forward(skeleton, inner), kv_heads)
        case _:
            return skeleton


def _with_vocabulary(skeleton: Skeleton, tokens: int) -> Skeleton:
    _check_kept("trim_vocabulary.tokens", tokens, skeleton.shape.vocabulary)
    kept = tokens / skeleton.shape.vocabulary
    return Skeleton(
        shape=replace(
            skeleton.shape,
            vocabulary=tokens,
            merges=round(skeleton.shape.merges * kept),
        ),
        tensors=tuple(
            _resized(tensor, _ROWS, tokens)
            if tensor.name in {"token_embd.weight", "output.weight"}
            else tensor
            for tensor in skeleton.tensors
        ),
    )


def _with_layers(skeleton: Skeleton, layers: int) -> Skeleton:
    old = skeleton.shape
    _check_kept("prune_depth.layers", layers, old.layers - 1)
    kept = [
        tensor
        for tensor in skeleton.tensors
        if not (found := _BLOCK.fullmatch(tensor.name)) or int(found[1]) < layers
    ]
    windowed = round(old.windowed_layers * layers / old.layers)
    return Skeleton(
        shape=replace(old, layers=layers, windowed_layers=windowed),
        tensors=tuple(kept),
    )


def _with_feed_forward(skeleton: Skeleton, inner: int) -> Skeleton:
    if not inner:
        return skeleton
    _check_kept("prune_width.feed_forward", inner, skeleton.shape.feed_forward)
    sides = {"ffn_gate": _ROWS, "ffn_up": _ROWS, "ffn_down": _COLUMNS}
    return Skeleton(
        shape=replace(skeleton.shape, feed_forward=inner),
        tensors=tuple(_cut(tensor, sides, inner) for tensor in skeleton.tensors),
    )


def _with_heads(skeleton: Skeleton, kv_heads: int) -> Skeleton:
    if not kv_heads:
        return skeleton
    old = skeleton.shape
    _check_kept("prune_width.kv_heads", kv_heads, old.kv_heads)
    heads = kv_heads * (old.heads // old.kv_heads)
    widths = {
        "attn_q": (_ROWS, heads * old.key_width),
        "attn_k": (_ROWS, kv_heads * old.key_width),
        "attn_v": (_ROWS, kv_heads * old.value_width),
        "attn_output": (_COLUMNS, heads * old.value_width),
    }
    tensors = skeleton.tensors
    for part, (side, size) in widths.items():
        tensors = tuple(_cut(tensor, {part: side}, size) for tensor in tensors)
    return Skeleton(shape=replace(old, heads=heads, kv_heads=kv_heads), tensors=tensors)


def _cut(tensor: TensorEntry, sides: dict[str, int], size: int) -> TensorEntry:
    found = _BLOCK.fullmatch(tensor.name)
    if not found or found[2] not in sides or len(tensor.shape) == 1:
        return tensor
    return _resized(tensor, sides[found[2]], size)


def _resized(tensor: TensorEntry, side: int, size: int) -> TensorEntry:
    shape = list(tensor.shape)
    shape[side] = size
    return replace(tensor, shape=tuple(shape))


def _check_kept(what: str, wanted: int, most: int) -> None:
    if wanted > most:
        raise InvalidInputError(f"{what} must be at most {most} here, got {wanted}")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Variant:
    name: str
    shape: ModelShape
    tensors: tuple[TensorEntry, ...]

    @property
    def bytes(self) -> int:
        return sum(tensor.bytes for tensor in self.tensors)


def _quantized(skeleton: Skeleton, name: str) -> _Variant:
    shape = skeleton.shape
    choices = choose_types(
        skeleton.tensors,
        name,
        kv_sharing=shape.heads // shape.kv_heads,
        has_imatrix=False,
    )
    pairs = zip(skeleton.tensors, choices, strict=True)
    tensors = tuple(replace(tensor, kind=choice.kind) for tensor, choice in pairs)
    return _Variant(name=name, shape=shape, tensors=tensors)


def _smallest_mix(skeleton: Skeleton) -> _Variant:
    """Return what no mix is smaller than: every matrix in its smallest type."""
    tensors = []
    for tensor in skeleton.tensors:
        kinds = fitting_types(tensor, TYPES, has_importance=True)
        if len(tensor.shape) > 1 and kinds:
            sized = [replace(tensor, kind=kind) for kind in kinds]
            tensors.append(min(sized, key=lambda each: each.bytes))
        else:
            tensors.append(tensor)
    return _Variant(
        name="the smallest mix", shape=skeleton.shape, tensors=tuple(tensors)
    )


def _excess(
    variant: _Variant, device_class: DeviceClass, prior: MachinePrior
) -> str | None:
    """Say what keeps a variant from a class; None when it may fit."""
    name, budget = variant.name, device_class.budget
    disk = variant.bytes / MIB
    if budget.disk_mib is not None and disk > budget.disk_mib:
        return f"{name} needs {disk:.3g} MiB of disk, the budget is {budget.disk_mib:g}"
    memory = forecast_memory(
        variant.shape, variant.tensors, context_tokens=device_class.context_tokens
    ).total_mib
    if budget.memory_mib is not None and memory > budget.memory_mib:
        return f"{name} needs {memory:.3g} MiB, the budget is {budget.memory_mib:g}"
    decode = forecast_decode(variant.tensors, prior, threads=device_class.threads)
    least = budget.decode_tokens_per_s
    if least is not None and decode * _SPEED_DOUBT < least:
        return f"{name} decodes about {decode:.1f} tokens/s, the budget asks {least:g}"
    return None
