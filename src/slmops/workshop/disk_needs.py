"""How much a build will write, so that it is refused before it fills the disk.

Sizes of candidates and 16-bit models are exact, those of structures to a few tokens;
statistics follow from the matrices' widths. What is only there for a while (a private
copy to measure on, a training run's checkpoint) counts once, for its largest. What an
earlier build has made is not counted: a build asks its own cache, `plan` knows the plain
candidates only, and says "at most".
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from slmops.domain.blueprint import Blueprint
from slmops.domain.errors import UnavailableError
from slmops.domain.levers import Distill, Finetune, RecipeStep, TrimVocabulary
from slmops.domain.recipe import BASE, MIXED
from slmops.workshop.disk import MIB, free_bytes
from slmops.workshop.gguf_file import GgufHeader
from slmops.workshop.plan import BuildPlan

_MARGIN = 1.05
_SMALL = 32 * MIB
"""For scores, answers, timings, records and the page, which are megabytes."""
_CHECKPOINT = 6
"""Bytes of a checkpoint of full training for each byte of the 16-bit model: weights and
Adam's two moments, in 32 bits each."""
_SHARED = {"attn_k": "attn_q", "attn_v": "attn_q", "ffn_gate": "ffn_up"}
"""Matrices with the same input, whose second moments are stored once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Done:
    """What is there already."""

    prepared: bool = False
    """The recipe's `prepare`."""
    structures: frozenset[str] = frozenset()
    """Structures by name; the base needs none."""
    statistics: frozenset[str] = frozenset()
    """Structures whose activation statistics are there, the base too."""
    candidates: frozenset[str] = frozenset()
    """Candidates by label."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DiskNeeds:
    """What a build will write."""

    parts: Mapping[str, int] = field(default_factory=dict)
    """What → bytes."""

    @property
    def bytes(self) -> int:
        """In all, with a margin; 0 when everything is there."""
        total = sum(self.parts.values())
        return round(total * _MARGIN) + _SMALL if total else 0


@dataclass(frozen=True, kw_only=True, slots=True)
class _Shape:
    name: str
    bytes: int
    steps: tuple[RecipeStep, ...]


def disk_needs(
    blueprint: Blueprint, plan: BuildPlan, header: GgufHeader, done: Done
) -> DiskNeeds:
    """Tell what a build will write at most.

    Args:
        blueprint: what to build.
        plan: of it.
        header: of the model's 16-bit reference.
        done: what earlier builds left.
    """
    recipe = blueprint.recipe
    shapes = _shapes(blueprint, plan)
    built = shapes[: 1 + _kept(blueprint, len(shapes) - 1)]
    parts: dict[str, int] = {}
    if not done.prepared:
        parts["prepared model"] = len(recipe.prepare) * plan.reference_bytes
    parts["structures"] = sum(
        _made(shape, plan.reference_bytes)
        for shape in shapes[1 : 1 + _tried(blueprint, len(shapes) - 1)]
        if shape.name not in done.structures
    )
    if _wants_statistics(blueprint):
        parts["statistics"] = sum(
            round(_statistics(header) * shape.bytes / plan.reference_bytes)
            for shape in built
            if shape.name not in done.statistics
        )
    parts["candidates"] = sum(
        size
        for shape in built
        for label, size in _candidates(blueprint, plan, shape)
        if label not in done.candidates
    )
    if any(parts.values()):
        parts["for a while"] = max(_passing(blueprint, plan.reference_bytes), default=0)
    return DiskNeeds(parts={what: size for what, size in parts.items() if size})


def require_space(needs: DiskNeeds, folder: Path, freeable: Callable[[], int]) -> None:
    """Refuse a build that the disk cannot hold.

    Args:
        needs: of the build.
        folder: workspace; everything a build writes lies below it.
        freeable: tells how many bytes could be freed there; asked only when needed.

    Raises:
        UnavailableError: less is free; says what is needed, what for, and what frees more.
    """
    free = free_bytes(folder)
    if needs.bytes <= free:
        return
    named = ", ".join(f"{what} {size / MIB:.0f}" for what, size in needs.parts.items())
    raise UnavailableError(
        f"the build needs {needs.bytes / MIB:.0f} MiB ({named}), {free / MIB:.0f} MiB free"
        f" at {folder}: slmops workspace gc --apply frees {freeable() / MIB:.0f} MiB,"
        " --keep-builds 1 more; or set --workspace to a larger disk"
    )


def _shapes(blueprint: Blueprint, plan: BuildPlan) -> list[_Shape]:
    """Return the base and every structure that some class could hold."""
    possible = {each.name: each for each in plan.structures if each.obstacle is None}
    shapes = [_Shape(name=BASE, bytes=plan.reference_bytes, steps=())]
    for structure in blueprint.recipe.structures:
        for each in structure.variations():
            if each.name in possible:
                size = possible[each.name].bytes
                shapes.append(_Shape(name=each.name, bytes=size, steps=each.steps))
    return shapes


def _kept(blueprint: Blueprint, structures: int) -> int:
    search = blueprint.recipe.search
    return structures if structures <= search.exhaustive else search.keep


def _tried(blueprint: Blueprint, structures: int) -> int:
    """Return how many structures are made: those kept of a search are made twice."""
    search = blueprint.recipe.search
    if structures <= search.exhaustive:
        return structures
    return min(structures, search.trials + search.keep)


def _made(shape: _Shape, reference: int) -> int:
    """Return the bytes of what a structure's steps leave, its teacher included."""
    trims = sum(isinstance(step.lever, TrimVocabulary) for step in shape.steps)
    return (len(shape.steps) - 1 + trims) * reference + shape.bytes


def _wants_statistics(blueprint: Blueprint) -> bool:
    steps = [s for each in blueprint.recipe.structures for s in each.steps]
    training = (TrimVocabulary, Finetune, Distill)
    pruned = any(not isinstance(step.lever, training) for step in steps)
    return pruned or blueprint.recipe.calibration is not None


def _statistics(header: GgufHeader) -> int:
    """Return the bytes of activation statistics: two for every pair of columns."""
    widths: dict[str, int] = {}
    for tensor in header.tensors:
        block, _, role = tensor.name.removesuffix(".weight").rpartition(".")
        if len(tensor.shape) > 1 and block:
            widths[f"{block}.{_SHARED.get(role, role)}"] = tensor.width
    return sum(2 * width * width for width in widths.values())


def _candidates(
    blueprint: Blueprint, plan: BuildPlan, shape: _Shape
) -> Iterator[tuple[str, int]]:
    """Yield labels and sizes of a structure's candidates, recovered ones' weights too."""
    recover = blueprint.recipe.recover
    scale = shape.bytes / plan.reference_bytes
    prefix = "" if shape.name == BASE else f"{shape.name}/"
    sizes = {
        each.quantization: round(each.bytes * scale)
        for each in plan.candidates
        if each.quantization in blueprint.candidates
        or (each.is_control and shape.name == BASE)
    }
    sizes |= _mixes(blueprint, max(sizes.values(), default=0))
    for name, size in sizes.items():
        yield prefix + name, size
        wanted = () if recover is None else recover.candidates
        if name in wanted or (MIXED in wanted and name.startswith(MIXED)):
            yield f"{prefix}{name}+recovered", size + shape.bytes


def _mixes(blueprint: Blueprint, largest: int) -> dict[str, int]:
    mixed = blueprint.recipe.mixed
    if mixed is None:
        return {}
    if mixed.megabytes:
        return {f"{MIXED}-{size:.1f}": round(size * 1e6) for size in mixed.megabytes}
    return {f"{MIXED}-{c.name}": largest for c in blueprint.classes}


def _passing(blueprint: Blueprint, reference: int) -> Iterator[int]:
    """Yield sizes of what single jobs have on disk while they run."""
    recipe = blueprint.recipe
    if recipe.mixed is not None:
        yield reference
    steps = [*recipe.prepare, *(s for each in recipe.structures for s in each.steps)]
    for step in steps:
        match step.lever:
            case Finetune(method="lora"):
                yield reference
            case Finetune() | Distill():
                yield _CHECKPOINT * reference
            case _:
                pass
    if recipe.recover is not None:
        yield _CHECKPOINT * reference


def with_built(built: Collection[str]) -> Done:
    """Return what a plan knows to be there: plain candidates."""
    return Done(candidates=frozenset(built))
