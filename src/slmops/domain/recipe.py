"""Recipe: what is tried on a model so that it fits its device classes.

A recipe spans every lever. Its candidates are all combinations of

- a *structure*: the model as it is, or after steps that change its weights or shape;
- a *precision*: a quantization of the blueprint, or a mix chosen tensor by tensor;
- *runtime settings*: how the runtime serves it.

The levers a structure is made with are in `slmops.domain.levers`.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from slmops.domain.errors import InvalidInputError
from slmops.domain.ids import check_name
from slmops.domain.levers import RecipeStep
from slmops.domain.runtime_settings import (
    DRAFT_TOKENS,
    check_draft_tokens,
    check_kv_cache,
)

MIXED = "MIXED"
"""Quantization of every mix that is chosen tensor by tensor."""
BASE = "base"
"""Name of the structure that changes nothing; every build has it."""


class Rounding(StrEnum):
    """How weights are rounded to a type's grid."""

    NEAREST = "nearest"
    """Each by itself, as llama.cpp does."""
    COMPENSATED = "compensated"
    """Each weight's error is made up for by those not yet rounded (GPTQ)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationPlan:
    """A text that shows which weights matter; never the one fidelity is measured on."""

    text: str = "builtin"
    """Path of a UTF-8 text file, relative to the blueprint; ``builtin`` is our own."""
    tokens: int = 8192
    """Tokens of it that the model reads."""
    rounding: Rounding = Rounding.COMPENSATED
    """How candidates are rounded; the 8-bit control is always rounded to nearest."""

    def __post_init__(self) -> None:
        if self.tokens < 256:  # noqa: PLR2004 - one window
            raise InvalidInputError(
                f"calibration.tokens must be >= 256, got {self.tokens}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class MixedPlan:
    """Mixes with a type for every tensor, as good as a number of bytes allows."""

    megabytes: tuple[float, ...] = ()
    """Sizes of whole files, 10⁶ bytes, one candidate each. Empty: the largest file each
    class's disk budget allows."""
    tokens: int = 512
    """Tokens that each tensor's sensitivity is measured on, from the calibration text."""

    def __post_init__(self) -> None:
        for size in self.megabytes:
            if not size > 0:
                raise InvalidInputError(f"mixed.megabytes must be > 0, got {size:g}")
        if self.tokens < 128:  # noqa: PLR2004 - fewer tell nothing
            raise InvalidInputError(f"mixed.tokens must be >= 128, got {self.tokens}")


@dataclass(frozen=True, kw_only=True, slots=True)
class StructurePlan:
    """A shape of the model: steps in their order, searched where they name several."""

    name: str
    """Name of the structure; candidates are called ``name/Q4_0``."""
    steps: tuple[RecipeStep, ...]
    """One or more."""

    def __post_init__(self) -> None:
        check_name(self.name, where="recipe.structures.name")
        if self.name == BASE:
            raise InvalidInputError(
                f"recipe.structures: {BASE!r} is the model itself, give another name"
            )
        if not self.steps:
            raise InvalidInputError(
                f"recipe.structures: {self.name} needs at least one step"
            )

    def variations(self) -> tuple["StructurePlan", ...]:
        """Return every structure this stands for, each with a name of its own."""
        combined = list(itertools.product(*(s.variations() for s in self.steps)))
        if len(combined) == 1:
            return (replace(self, steps=combined[0]),)
        return tuple(
            replace(self, name=f"{self.name}-{number}", steps=steps)
            for number, steps in enumerate(combined, 1)
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class RecoverPlan:
    """A short distillation of quantized candidates against their 16-bit selves."""

    candidates: tuple[str, ...]
    """Which quantizations, ``MIXED`` for all mixes; each is tried with and without."""
    steps: int = 100
    """Steps of training."""
    learning_rate: float = 1e-5
    """Peak of it."""

    def __post_init__(self) -> None:
        if not self.candidates:
            raise InvalidInputError("recover.candidates must name one quantization")
        for name in ("steps", "learning_rate"):
            if not getattr(self, name) > 0:
                raise InvalidInputError(
                    f"recover.{name} must be > 0, got {getattr(self, name):g}"
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class RuntimePlan:
    """Settings of the runtime to measure every chosen variant at, in all combinations."""

    kv_cache: tuple[str, ...] = ()
    """Types of the attention's cache besides 16 bits: ``k-q8_0``, ``q8_0``, ``k-q4_0``,
    ``q4_0``."""
    drafts: tuple[str, ...] = ()
    """Candidates of this build that may draft for a variant with the same vocabulary, by
    label: ``slim-1/Q4_0``."""
    draft_tokens: tuple[int, ...] = (DRAFT_TOKENS,)
    """How many tokens to draft at once, 1 to 16 each."""

    def __post_init__(self) -> None:
        for kv_cache in self.kv_cache:
            check_kv_cache(kv_cache)
        for tokens in self.draft_tokens:
            check_draft_tokens(tokens)
        if not self.kv_cache and not self.drafts:
            raise InvalidInputError(
                "recipe.runtime must name a kv_cache or a draft, got neither"
            )
        if self.drafts and not self.draft_tokens:
            raise InvalidInputError("recipe.runtime.draft_tokens must not be empty")


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchPlan:
    """How structures are searched when there are many."""

    exhaustive: int = 6
    """Up to this many structures are all built in full; more are searched first."""
    trials: int = 12
    """Structures that the search tries, each after a short recovery."""
    keep: int = 3
    """Structures of the search's Pareto front that are then built in full."""
    probe_tokens: int = 384
    """Tokens of the calibration text that a trial's KL divergence is measured on."""
    recovery_share: float = 0.1
    """Share of the steps of distillation that a trial is given."""

    def __post_init__(self) -> None:
        for name in ("exhaustive", "trials", "keep"):
            if getattr(self, name) < 1:
                raise InvalidInputError(
                    f"search.{name} must be >= 1, got {getattr(self, name)}"
                )
        if self.probe_tokens < 128:  # noqa: PLR2004 - fewer tell nothing
            raise InvalidInputError(
                f"search.probe_tokens must be >= 128, got {self.probe_tokens}"
            )
        if not 0 < self.recovery_share <= 1:
            raise InvalidInputError(
                f"search.recovery_share must be in (0, 1], got {self.recovery_share:g}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Everything that is tried beside the blueprint's plain quantizations."""

    calibration: CalibrationPlan | None = None
    """Text that shows which weights matter; null rounds all weights alike."""
    prepare: tuple[RecipeStep, ...] = ()
    """Steps that make the model which everything is derived from and compared with:
    fine-tuning, mostly."""
    structures: tuple[StructurePlan, ...] = ()
    """Shapes to try beside the model's own."""
    mixed: MixedPlan | None = None
    """Mixes chosen tensor by tensor; null tries none."""
    recover: RecoverPlan | None = None
    """Training that makes up for rounding; null does none."""
    runtime: RuntimePlan | None = None
    """Settings of the runtime to try on what is chosen; null changes none."""
    search: SearchPlan = field(default_factory=SearchPlan)
    """How many structures are tried."""
    seed: int = 0
    """Of any chance in training and search."""

    def check_recovered(self, candidates: Sequence[str]) -> None:
        """Refuse a recovery of what the blueprint does not try.

        Raises:
            InvalidInputError: naming the candidate.
        """
        if self.recover is None:
            return
        for name in self.recover.candidates:
            if name == MIXED and self.mixed is None:
                raise InvalidInputError(
                    "recipe.recover.candidates names MIXED, but recipe.mixed is not given"
                )
            if name != MIXED and name not in candidates:
                raise InvalidInputError(
                    f"recipe.recover.candidates: {name!r} is not among the blueprint's"
                    f" candidates {', '.join(candidates)}"
                )

    @property
    def changes_sizes(self) -> bool:
        """Whether it tries what is smaller than the blueprint's plain candidates."""
        return bool(self.structures) or self.mixed is not None

    def __post_init__(self) -> None:
        names = [
            each.name
            for structure in self.structures
            for each in structure.variations()
        ]
        for name in names:
            if names.count(name) > 1:
                raise InvalidInputError(
                    f"recipe.structures: name {name!r} is used twice"
                )
        if self.seed < 0:
            raise InvalidInputError(f"recipe.seed must be >= 0, got {self.seed}")
        for step in self.prepare:
            if len(list(step.variations())) > 1:
                raise InvalidInputError(
                    f"recipe.prepare: {step.name} must have one number where it has"
                    " several: everything is compared with its result"
                )
        if self.mixed is not None and self.calibration is None:
            raise InvalidInputError("recipe.mixed needs recipe.calibration, got none")
