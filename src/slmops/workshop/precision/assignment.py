"""Types for every tensor within a budget, from one sensitivity pass.

`assign` is a pure function of a `Sensitivity` and limits on the file, on memory and on
the time of a decoded token; `frontier` gives the whole curve of bytes against
divergence. Baselines at the same budget are here too, to be compared with.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from slmops.domain.errors import InvalidInputError, OverBudgetError
from slmops.wire.codec import decode_json
from slmops.workshop.forecast import (
    MIB,
    MachinePrior,
    forecast_decode,
    forecast_memory,
)
from slmops.workshop.gguf_file import BLOCKS
from slmops.workshop.model_shape import ModelShape
from slmops.workshop.precision.knapsack import (
    Item,
    cheapest_choice,
    greedy_choice,
    hull_path,
)
from slmops.workshop.precision.sensitivity import (
    Option,
    Sensitivity,
    TensorSensitivity,
)

_ALWAYS = frozenset({"Q8_0"})
"""Nearly lossless for any weights: kept also where the source had it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Assignment:
    """Which type every quantized tensor gets."""

    types: dict[str, str]
    """Tensor → type."""
    bytes: int = 0
    """Exact size of the file."""
    predicted_kld: float = 0.0
    """Mean KL divergence it should have, nats: rises summed and scaled."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryLimit:
    """Peak resident memory that a variant may take."""

    mib: float
    """The limit."""
    shape: ModelShape
    """The model's sizes."""
    context_tokens: int
    """Context it is loaded with."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeLimit:
    """Speed that a variant must reach."""

    tokens_per_s: float
    """Least decode speed."""
    prior: MachinePrior
    """How fast the machine is."""
    threads: int = 1
    """Threads it decodes with."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What a variant may take; at least one is set."""

    file_bytes: int | None = None
    """Size of the file."""
    memory: MemoryLimit | None = None
    """Peak memory, with tensors counted twice whose blocks are reordered."""
    decode: DecodeLimit | None = None
    """Predicted decode speed."""


def load_assignment(path: Path) -> Assignment:
    """Read a document; other builds' documents may hold the types alone.

    Raises:
        InvalidInputError: damaged, or it names an unknown type.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InvalidInputError(f"{path}: cannot be read: {error.strerror}") from None
    found = decode_json(raw, Assignment, where=str(path))
    for name, kind in found.types.items():
        if kind not in BLOCKS:
            raise InvalidInputError(f"{path}: {name} has the unknown type {kind!r}")
    return found


def assign(sensitivity: Sensitivity, limits: Limits) -> Assignment:
    """Return the types with the least predicted divergence within limits.

    Exact but for the solver's tolerance: `knapsack.cheapest_choice`.

    Raises:
        InvalidInputError: no limit is set.
        OverBudgetError: the smallest types are too large.
    """
    measures = _measures(sensitivity, limits)
    items = [_item(tensor, measures) for tensor in sensitivity.tensors]
    bounds = [measure.limit for measure in measures]
    return _assignment(sensitivity, cheapest_choice(items, bounds))


def frontier(sensitivity: Sensitivity) -> tuple[Assignment, ...]:
    """Return the curve of bytes against divergence, smallest file first.

    Each is the best there is at its size; sizes between two of them are for `assign`.
    """
    items = [_item(tensor, [_BYTES]) for tensor in sensitivity.tensors]
    return tuple(_assignment(sensitivity, chosen) for chosen in hull_path(items))


def without_types(
    sensitivity: Sensitivity, *, kinds: Sequence[str] = (), on_grid: bool = False
) -> Sensitivity:
    """Leave types out, but never a tensor's last one.

    Args:
        sensitivity: of the model.
        kinds: to leave out.
        on_grid: whether types stay whose grid the weights lie on because the source
            had it; 8-bit ones always do. Without them, a comparison with models that
            have no such past is fair.
    """

    def stays(option: Option) -> bool:
        free = option.on_grid and option.kind not in _ALWAYS and not on_grid
        return option.kind not in kinds and not free

    tensors = []
    for tensor in sensitivity.tensors:
        left = tuple(option for option in tensor.options if stays(option))
        tensors.append(replace(tensor, options=left or tensor.options))
    return replace(sensitivity, tensors=tuple(tensors))


def assign_greedily(sensitivity: Sensitivity, file_bytes: int) -> Assignment:
    """Return what upgrading the best bargain first gives: a baseline.

    Raises:
        OverBudgetError: the smallest types are too large.
    """
    items = [_item(tensor, [_BYTES]) for tensor in sensitivity.tensors]
    chosen = greedy_choice(items, file_bytes - sensitivity.header_bytes)
    return _assignment(sensitivity, chosen)


def assign_randomly(
    sensitivity: Sensitivity, file_bytes: int, *, seed: int
) -> Assignment:
    """Return random upgrades from the smallest types until none fits: a baseline.

    Raises:
        OverBudgetError: the smallest types are too large.
    """
    chance = random.Random(seed)  # noqa: S311 - a baseline, not a secret
    tensors = sensitivity.tensors
    chosen = [_smallest(tensor) for tensor in tensors]
    spare = file_bytes - _size(sensitivity, chosen)
    if spare < 0:
        raise OverBudgetError(f"the smallest types need {-spare} bytes more")
    waiting = list(range(len(tensors)))
    while waiting:
        at = chance.choice(waiting)
        now = tensors[at].options[chosen[at]].bytes
        fitting = [
            index
            for index, option in enumerate(tensors[at].options)
            if now < option.bytes <= now + spare
        ]
        if not fitting:
            waiting.remove(at)
            continue
        chosen[at] = chance.choice(fitting)
        spare -= tensors[at].options[chosen[at]].bytes - now
    return _assignment(sensitivity, chosen)


def assign_uniformly(sensitivity: Sensitivity, kind: str) -> Assignment:
    """Return one type everywhere, the next larger one where it does not fit."""
    least = BLOCKS[kind][1] / BLOCKS[kind][0]

    def choice(tensor: TensorSensitivity) -> int:
        sizes = [BLOCKS[o.kind][1] / BLOCKS[o.kind][0] for o in tensor.options]
        fitting = [at for at, size in enumerate(sizes) if size >= least]
        named = [at for at in fitting if tensor.options[at].kind == kind]
        return (named or sorted(fitting, key=sizes.__getitem__) or [len(sizes) - 1])[0]

    return _assignment(sensitivity, [choice(each) for each in sensitivity.tensors])


@dataclass(frozen=True, kw_only=True, slots=True)
class _Measure:
    """One thing that is limited, additive over tensors."""

    use: Callable[[TensorSensitivity, Option], float]
    limit: float = 0.0


_BYTES = _Measure(use=lambda tensor, option: option.bytes)


def _measures(sensitivity: Sensitivity, limits: Limits) -> list[_Measure]:
    found = []
    if limits.file_bytes is not None:
        spare = limits.file_bytes - sensitivity.header_bytes
        found.append(replace(_BYTES, limit=spare))
    if limits.memory is not None:
        found.append(_memory_measure(limits.memory))
    if limits.decode is not None:
        found.append(_decode_measure(limits.decode))
    if not found:
        raise InvalidInputError("types are assigned within limits, but none is set")
    return found


def _memory_measure(limit: MemoryLimit) -> _Measure:
    def forecast(*tensors: tuple[TensorSensitivity, str]) -> float:
        entries = [tensor.entry(kind) for tensor, kind in tensors]
        found = forecast_memory(
            limit.shape, entries, context_tokens=limit.context_tokens
        )
        return (
            (found.weights_mib + found.reordered_mib) * MIB
            if tensors
            else (found.total_mib * MIB)
        )

    return _Measure(
        use=lambda tensor, option: forecast((tensor, option.kind)),
        limit=limit.mib * MIB - forecast(),
    )


def _decode_measure(limit: DecodeLimit) -> _Measure:
    def seconds(tensor: TensorSensitivity, option: Option) -> float:
        entries = [tensor.entry(option.kind)]
        return 1 / forecast_decode(entries, limit.prior, threads=limit.threads)

    return _Measure(use=seconds, limit=1 / limit.tokens_per_s)


def _item(tensor: TensorSensitivity, measures: Sequence[_Measure]) -> Item:
    return Item(
        costs=tuple(option.kld for option in tensor.options),
        uses=tuple(
            tuple(measure.use(tensor, option) for measure in measures)
            for option in tensor.options
        ),
    )


def _assignment(sensitivity: Sensitivity, chosen: Sequence[int]) -> Assignment:
    pairs = list(zip(sensitivity.tensors, chosen, strict=True))
    return Assignment(
        types={
            tensor.name: tensor.options[at].kind
            for tensor, at in pairs
            if len(tensor.shape) > 1
        },
        bytes=_size(sensitivity, chosen),
        predicted_kld=sensitivity.scale
        * sum(tensor.options[at].kld for tensor, at in pairs),
    )


def _size(sensitivity: Sensitivity, chosen: Sequence[int]) -> int:
    pairs = zip(sensitivity.tensors, chosen, strict=True)
    return sensitivity.header_bytes + sum(
        tensor.options[at].bytes for tensor, at in pairs
    )


def _smallest(tensor: TensorSensitivity) -> int:
    sizes = [option.bytes for option in tensor.options]
    return sizes.index(min(sizes))
