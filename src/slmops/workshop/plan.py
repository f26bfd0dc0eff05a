"""What a build would make, before it makes it: bytes, memory, speed, and who could run it.

Bytes and tensor types are exact; memory and speed are predictions, and say so. A
blueprint that no candidate can meet fails here, with the nearest change that helps.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from slmops.domain.blueprint import CONTROL_QUANTIZATION, Blueprint
from slmops.domain.device import DeviceClass
from slmops.domain.errors import InvalidInputError, OverBudgetError
from slmops.domain.ids import Digest
from slmops.domain.release import ModelRecord
from slmops.workshop.forecast import (
    MIB,
    MachinePrior,
    MemoryForecast,
    forecast_decode,
    forecast_memory,
)
from slmops.workshop.gguf_file import GgufHeader, read_header
from slmops.workshop.model_shape import ModelShape, read_shape
from slmops.workshop.quantize import QuantizedFile, predict_quantized
from slmops.workshop.search.analytic import ShapeForecast, forecast_structures
from slmops.workshop.source_grid import Types, grid_share

_LEAST_CONTEXT = 64
_CONTEXT_STEP = 64
_MEMORY_DOUBT = 0.15
MEMORY_ERROR = (
    "at most 1.1 % off on the models it was fitted to, 22 % on one it was not; a blueprint"
    f" is refused only beyond {_MEMORY_DOUBT:.0%}"
)
"""Measured by ``bench/plan_error.py``; docs/lab-log.md has the tables."""
_SPEED_DOUBT = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassForecast:
    """One candidate on one device class."""

    class_name: str
    """The class."""
    memory_mib: float
    """Predicted peak memory of the model's process."""
    memory_parts: dict[str, float]
    """What it is made of."""
    decode_tokens_per_s: float
    """Predicted on the machine the prior comes from, not on the device."""
    obstacles: tuple[str, ...]
    """Budgets it is predicted to miss; empty when it could serve."""

    @property
    def fits(self) -> bool:
        """Whether every predicted figure meets its budget."""
        return not self.obstacles


@dataclass(frozen=True, kw_only=True, slots=True)
class CandidatePlan:
    """One quantization."""

    quantization: str
    """llama.cpp name."""
    bytes: int
    """Exact size of the file."""
    bits_per_weight: float
    """Of the file as a whole."""
    tensor_types: dict[str, int]
    """Type → tensors, block-size fallbacks included."""
    is_control: bool
    """The 8-bit control row: always built."""
    is_flattered: bool
    """The reference's source had its types, by enough of its usual rounding error: its
    fidelity will look better than it is."""
    is_built: bool
    """Already in the workspace; a build will not compute it again."""
    classes: tuple[ClassForecast, ...]
    """One per device class, in the blueprint's order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildPlan:
    """What `build` would do for a blueprint."""

    blueprint: str
    """Its name."""
    model: Digest
    """The reference."""
    model_name: str
    """Its name."""
    reference_bytes: int
    """Size of the 16-bit reference."""
    reference_grid: str | None
    """Type the reference was dequantized from; None for a genuine 16-bit model."""
    prior: MachinePrior
    """What speed was predicted from."""
    candidates: tuple[CandidatePlan, ...]
    """Largest first."""
    structures: tuple[ShapeForecast, ...] = ()
    """Other shapes the recipe stands for, as their 16-bit models will be."""
    memory_error: str = MEMORY_ERROR
    """How wrong predicted memory was where it was measured."""


def plan_build(
    blueprint: Blueprint,
    record: ModelRecord,
    reference: Path,
    prior: MachinePrior,
    *,
    built: Collection[str] = (),
    source_types: Types | None = None,
) -> BuildPlan:
    """Predict every candidate on every class.

    Args:
        blueprint: what to build.
        record: its model, already found.
        reference: the model's 16-bit GGUF; only its header is read.
        prior: this machine's speed.
        built: quantizations the workspace holds already.
        source_types: of the model's tensors, as `find_grid` gives them; None takes none
            for granted.

    Raises:
        InvalidInputError: an unknown candidate, one that needs an importance matrix, or
            a context longer than the model's.
        OverBudgetError: no candidate can meet a class's budget; the message names the
            class, the closest candidate and the nearest change that helps. A recipe
            with other structures or mixes may do what no candidate can.
    """
    _check_contexts(blueprint, record)
    header = read_header(reference)
    shape = read_shape(header)
    calibrated = blueprint.recipe.calibration is not None
    files = _candidate_files(blueprint.candidates, header, has_imatrix=calibrated)
    plan = BuildPlan(
        blueprint=blueprint.name,
        model=record.id,
        model_name=record.name,
        reference_bytes=header.file_bytes,
        reference_grid=record.source_quantization,
        prior=prior,
        candidates=tuple(
            CandidatePlan(
                quantization=name,
                bytes=file.bytes,
                bits_per_weight=file.bits_per_weight,
                tensor_types=file.tensor_types,
                is_control=name == CONTROL_QUANTIZATION,
                is_flattered=grid_share(file, source_types or {}).is_flattered,
                is_built=name in built,
                classes=tuple(
                    _forecast(device_class, shape, file, prior)
                    for device_class in blueprint.classes
                ),
            )
            for name, file in files.items()
        ),
        structures=forecast_structures(blueprint, header, prior),
    )
    if not blueprint.recipe.changes_sizes:
        for index, device_class in enumerate(blueprint.classes):
            _refuse_impossible(plan, index, device_class)
    return plan


def candidate_names(candidates: Sequence[str]) -> tuple[str, ...]:
    """Return the candidates a build measures: the control first, nothing twice.

    >>> candidate_names(["Q4_0", "Q8_0"])
    ('Q8_0', 'Q4_0')
    """
    return tuple(dict.fromkeys((CONTROL_QUANTIZATION, *candidates)))


def _candidate_files(
    candidates: Sequence[str], header: GgufHeader, *, has_imatrix: bool
) -> Mapping[str, QuantizedFile]:
    files = {}
    for name in candidate_names(candidates):
        try:
            files[name] = predict_quantized(header, name, has_imatrix=has_imatrix)
        except InvalidInputError as error:
            raise InvalidInputError(f"candidates: {error}") from None
    return dict(sorted(files.items(), key=lambda item: -item[1].bytes))


def _check_contexts(blueprint: Blueprint, record: ModelRecord) -> None:
    for index, device_class in enumerate(blueprint.classes):
        if device_class.context_tokens > record.context_tokens:
            raise InvalidInputError(
                f"classes[{index}].context_tokens must be at most {record.context_tokens},"
                f" what {record.name} was trained for, got {device_class.context_tokens}"
            )


def _memory(
    shape: ModelShape, file: QuantizedFile, context_tokens: int
) -> MemoryForecast:
    return forecast_memory(shape, file.tensors, context_tokens=context_tokens)


def _forecast(
    device_class: DeviceClass,
    shape: ModelShape,
    file: QuantizedFile,
    prior: MachinePrior,
) -> ClassForecast:
    memory = _memory(shape, file, device_class.context_tokens)
    decode = forecast_decode(file.tensors, prior, threads=device_class.threads)
    budget = device_class.budget
    obstacles = []
    if budget.memory_mib is not None and memory.total_mib > budget.memory_mib:
        obstacles.append(
            f"memory: needs {memory.total_mib:.0f} MiB of {budget.memory_mib:g}"
        )
    if budget.disk_mib is not None and file.bytes / MIB > budget.disk_mib:
        obstacles.append(
            f"disk: needs {file.bytes / MIB:.1f} MiB of {budget.disk_mib:g}"
        )
    least = budget.decode_tokens_per_s
    if least is not None and decode < least:
        obstacles.append(f"decode: {decode:.1f} tokens/s of {least:g}")
    return ClassForecast(
        class_name=device_class.name,
        memory_mib=memory.total_mib,
        memory_parts={
            "runtime": memory.runtime_mib,
            "weights": memory.weights_mib,
            "reordered": memory.reordered_mib,
            "kv_cache": memory.kv_cache_mib,
            "scratch": memory.scratch_mib,
            "attention": memory.attention_mib,
        },
        decode_tokens_per_s=decode,
        obstacles=tuple(obstacles),
    )


def _refuse_impossible(plan: BuildPlan, index: int, device_class: DeviceClass) -> None:
    """Fail when even with doubt in its favour no candidate meets the class's budget."""
    closest = min(
        plan.candidates,
        key=lambda candidate: _excess(candidate, index, device_class, in_favour=True),
    )
    if _excess(closest, index, device_class, in_favour=True) <= 1:
        return
    forecast = closest.classes[index]
    raise OverBudgetError(
        f"class {device_class.name!r} cannot be served: the closest candidate"
        f" {closest.quantization} misses {'; '.join(forecast.obstacles)}."
        f" Nearest change: {_nearest_change(closest, index, device_class)}"
    )


def _excess(
    candidate: CandidatePlan, index: int, device_class: DeviceClass, *, in_favour: bool
) -> float:
    """Return the worst need as a multiple of its budget."""
    forecast, budget = candidate.classes[index], device_class.budget
    memory_share = 1 - _MEMORY_DOUBT if in_favour else 1.0
    speed_share = _SPEED_DOUBT if in_favour else 1.0
    excess = [0.0]
    if budget.memory_mib is not None:
        excess.append(forecast.memory_mib * memory_share / budget.memory_mib)
    if budget.disk_mib is not None:
        excess.append(candidate.bytes / MIB / budget.disk_mib)
    if budget.decode_tokens_per_s is not None:
        speed = forecast.decode_tokens_per_s * speed_share
        excess.append(budget.decode_tokens_per_s / speed)
    return max(excess)


def _nearest_change(
    candidate: CandidatePlan, index: int, device_class: DeviceClass
) -> str:
    forecast, budget = candidate.classes[index], device_class.budget
    where = f"classes[{index}]"
    changes = []
    if budget.memory_mib is not None and forecast.memory_mib > budget.memory_mib:
        raised = math.ceil(forecast.memory_mib)
        change = (
            f"raise {where}.budget.memory_mib from {budget.memory_mib:g} to {raised}"
        )
        context = _shorter_context(forecast, device_class, budget.memory_mib)
        if context is not None:
            change += f" or lower {where}.context_tokens to {context}"
        changes.append(change)
    if budget.disk_mib is not None and candidate.bytes / MIB > budget.disk_mib:
        raised = math.ceil(candidate.bytes / MIB)
        changes.append(
            f"raise {where}.budget.disk_mib from {budget.disk_mib:g} to {raised}"
        )
    least = budget.decode_tokens_per_s
    if least is not None and forecast.decode_tokens_per_s < least:
        lowered = math.floor(forecast.decode_tokens_per_s * 10) / 10
        changes.append(
            f"lower {where}.budget.decode_tokens_per_s from {least:g} to {lowered:g}"
        )
    return ", and ".join(changes)


def _shorter_context(
    forecast: ClassForecast, device_class: DeviceClass, memory_mib: float
) -> int | None:
    """Return a shorter context, in steps of 64, that would fit, if any does."""
    # Both parts shrink at least in proportion to the context.
    of_context = forecast.memory_parts["kv_cache"] + forecast.memory_parts["attention"]
    left = memory_mib - (forecast.memory_mib - of_context)
    tokens = int(left / of_context * device_class.context_tokens)
    tokens = tokens // _CONTEXT_STEP * _CONTEXT_STEP
    return tokens if tokens >= _LEAST_CONTEXT else None
