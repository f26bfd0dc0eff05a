"""What a structure will weigh, told from the reference's header alone.

The first filter of a search: no weight is read, so hundreds of structures take no time.
Shapes are exact but for the vocabulary's last tokens, which its trimming rounds.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from slmops.domain.blueprint import Blueprint
from slmops.domain.device import DeviceClass
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
    for step in plan.steps:
        skeleton = changed(skeleton, step)
    misses = [
        _miss(skeleton, device_class, blueprint.candidates, prior)
        for device_class in blueprint.classes
    ]
    possible = blueprint.recipe.mixed is not None or None in misses
    obstacle = (
        None if possible else f"no class could hold it: {'; '.join(map(str, misses))}"
    )
    return ShapeForecast(
        name=plan.name,
        steps=tuple(step.name for step in plan.steps),
        parameters=sum(tensor.elements for tensor in skeleton.tensors),
        bytes=skeleton.bytes,
        obstacle=obstacle,
    )


def changed(skeleton: Skeleton, step: RecipeStep) -> Skeleton:
    """Return what a step will leave; steps that keep the shape change nothing."""
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
    tokens = min(tokens, skeleton.shape.vocabulary)
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
    layers = min(layers, old.layers)
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
    sides = {"ffn_gate": _ROWS, "ffn_up": _ROWS, "ffn_down": _COLUMNS}
    return Skeleton(
        shape=replace(skeleton.shape, feed_forward=inner),
        tensors=tuple(_cut(tensor, sides, inner) for tensor in skeleton.tensors),
    )


def _with_heads(skeleton: Skeleton, kv_heads: int) -> Skeleton:
    if not kv_heads:
        return skeleton
    old = skeleton.shape
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


def _miss(
    skeleton: Skeleton,
    device_class: DeviceClass,
    candidates: Sequence[str],
    prior: MachinePrior,
) -> str | None:
    """Say what keeps the smallest candidate from a class; None when it may fit."""
    found = [_excess(skeleton, device_class, name, prior) for name in candidates]
    if None in found:
        return None
    return f"{device_class.name}: {found[-1]}"


def _excess(
    skeleton: Skeleton, device_class: DeviceClass, name: str, prior: MachinePrior
) -> str | None:
    shape, budget = skeleton.shape, device_class.budget
    choices = choose_types(
        skeleton.tensors,
        name,
        kv_sharing=shape.heads // shape.kv_heads,
        has_imatrix=False,
    )
    tensors = [
        replace(tensor, kind=choice.kind)
        for tensor, choice in zip(skeleton.tensors, choices, strict=True)
    ]
    disk = sum(tensor.bytes for tensor in tensors) / MIB
    if budget.disk_mib is not None and disk > budget.disk_mib:
        return f"{name} needs {disk:.0f} MiB of disk, the budget is {budget.disk_mib:g}"
    memory = forecast_memory(
        shape, tensors, context_tokens=device_class.context_tokens
    ).total_mib
    if budget.memory_mib is not None and memory > budget.memory_mib:
        return f"{name} needs {memory:.0f} MiB, the budget is {budget.memory_mib:g}"
    decode = forecast_decode(tensors, prior, threads=device_class.threads)
    least = budget.decode_tokens_per_s
    if least is not None and decode * _SPEED_DOUBT < least:
        return f"{name} decodes about {decode:.1f} tokens/s, the budget asks {least:g}"
    return None
