"""Mixes of the recipe: a type for every tensor, within sizes or within classes' budgets."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

from slmops.domain.device import DeviceClass
from slmops.domain.errors import OverBudgetError
from slmops.domain.ids import Digest
from slmops.domain.recipe import MixedPlan
from slmops.wire.codec import encode_json
from slmops.workshop.artefacts import Making
from slmops.workshop.forecast import MIB
from slmops.workshop.gguf_file import read_header
from slmops.workshop.model_shape import ModelShape, read_shape
from slmops.workshop.precision.assignment import (
    Assignment,
    Limits,
    MemoryLimit,
    assign,
    without_types,
)
from slmops.workshop.precision.sensitivity import Sensitivity, load_sensitivity
from slmops.workshop.quantize import predict_quantized
from slmops.workshop.search.structures import Levers, Structure

_MB = 1_000_000
_MEMORY_SHARE = 0.97
"""Of a memory budget: what is predicted may be off by as much."""


def mixed_makings(
    levers: Levers, structure: Structure, plain: Making, plan: MixedPlan
) -> Iterator[Making]:
    """Yield a structure's mixes, from one sensitivity pass; labels differ.

    Args:
        levers: of the build.
        structure: what is quantized.
        plain: everything but quantization and assignment.
        plan: which sizes; those that the structure's smallest types exceed are left out.
    """
    build = levers.build
    measured = load_sensitivity(build.blobs.path(levers.sensitivity(structure.model)))
    # Types that a quantized source made free say nothing of models without that past.
    sensitivity = without_types(measured)
    shape = read_shape(read_header(build.blobs.path(structure.model)))
    known = set()
    for found in _assignments(plan, build.blueprint.classes, sensitivity, shape):
        name = f"MIXED-{found.bytes / _MB:.1f}"
        if name not in known:
            known.add(name)
            digest = build.blobs.put_bytes(encode_json(found))
            yield replace(plain, quantization=name, assignment=digest)


def stock_assignment(levers: Levers, making: Making) -> Digest:
    """Return the types a plain quantization gives every tensor, as an assignment."""
    build = levers.build
    header = read_header(build.blobs.path(making.model))
    has_imatrix = making.statistics is not None
    file = predict_quantized(header, making.quantization, has_imatrix=has_imatrix)
    types = {t.name: t.kind for t in file.tensors if len(t.shape) > 1}
    found = Assignment(types=types, bytes=file.bytes)
    return build.blobs.put_bytes(encode_json(found))


def _assignments(
    plan: MixedPlan,
    classes: Sequence[DeviceClass],
    sensitivity: Sensitivity,
    shape: ModelShape,
) -> Iterator[Assignment]:
    sizes = [Limits(file_bytes=int(size * _MB)) for size in plan.megabytes]
    budgets = [_limits(device_class, shape) for device_class in classes]
    for limits in sizes or budgets:
        if limits is None:
            continue
        # What no mix of this structure fits, another structure's may.
        with contextlib.suppress(OverBudgetError):
            yield assign(sensitivity, limits)


def _limits(device_class: DeviceClass, shape: ModelShape) -> Limits | None:
    budget = device_class.budget
    memory = None
    if budget.memory_mib is not None:
        memory = MemoryLimit(
            mib=budget.memory_mib * _MEMORY_SHARE,
            shape=shape,
            context_tokens=device_class.context_tokens,
        )
    file_bytes = None if budget.disk_mib is None else int(budget.disk_mib * MIB)
    if memory is None and file_bytes is None:
        return None
    return Limits(file_bytes=file_bytes, memory=memory)
