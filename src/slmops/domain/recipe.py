"""Recipe: what is tried on a model so that it fits its device classes.

A recipe spans every lever. Its candidates are all combinations of

- a *structure*: the model as it is, or after steps that change its weights or shape;
- a *precision*: a quantization of the blueprint, or a mix chosen tensor by tensor;
- *runtime settings*: how the runtime serves it.

A number that says "or several" is a search: one structure becomes one for each.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Any

from slmops.domain.errors import InvalidInputError
from slmops.domain.ids import check_name

BASE = "base"
"""Name of the structure that changes nothing; every build has it."""

Choices = int | tuple[int, ...]
"""One number, or several that the search tries."""


def check_choices(value: Choices, *, least: int, where: str) -> None:
    """Refuse an empty choice, one that is given twice, and what is too small.

    Raises:
        InvalidInputError: naming `where`.
    """
    numbers = value if isinstance(value, tuple) else (value,)
    if not numbers or len(set(numbers)) < len(numbers):
        raise InvalidInputError(f"{where} must be distinct numbers, got {numbers}")
    for number in numbers:
        if number < least:
            raise InvalidInputError(f"{where} must be >= {least}, got {number}")


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
class TrimVocabulary:
    """Keep the tokens a text uses most; bytes are always kept, so no text is lost."""

    text: str
    """Path of a UTF-8 text file of what the model will read and write."""
    tokens: Choices
    """Tokens to keep, or several to try."""

    def __post_init__(self) -> None:
        check_choices(self.tokens, least=256, where="trim_vocabulary.tokens")


class DepthMethod(StrEnum):
    """How blocks to remove are found."""

    MEASURED = "measured"
    """Whichever costs least KL divergence, one after the other."""
    INFLUENCE = "influence"
    """Those that change their input least."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PruneDepth:
    """Remove whole transformer blocks."""

    layers: Choices
    """Blocks to keep, or several to try."""
    method: DepthMethod = DepthMethod.MEASURED
    """How blocks to remove are found."""

    def __post_init__(self) -> None:
        check_choices(self.layers, least=1, where="prune_depth.layers")


@dataclass(frozen=True, kw_only=True, slots=True)
class PruneWidth:
    """Remove feed-forward channels and groups of attention heads, in every block."""

    feed_forward: Choices = 0
    """Channels to keep, or several to try; 0 keeps all."""
    kv_heads: Choices = 0
    """Key and value heads to keep, each with its query heads; 0 keeps all."""

    def __post_init__(self) -> None:
        for name in ("feed_forward", "kv_heads"):
            check_choices(getattr(self, name), least=0, where=f"prune_width.{name}")


class SparsityMethod(StrEnum):
    """How weights to zero are found."""

    MAGNITUDE = "magnitude"
    WANDA = "wanda"
    SPARSEGPT = "sparsegpt"


class SparsityPattern(StrEnum):
    """Where zeros may lie."""

    UNSTRUCTURED = "unstructured"
    TWO_OF_FOUR = "2:4"


@dataclass(frozen=True, kw_only=True, slots=True)
class Sparsify:
    """Set weights to zero. The runtimes here gain neither bytes nor speed from it."""

    method: SparsityMethod = SparsityMethod.WANDA
    """How weights to zero are found."""
    pattern: SparsityPattern = SparsityPattern.UNSTRUCTURED
    """Where zeros may lie."""
    sparsity: float = 0.5
    """Share of each matrix that is zero; 2:4 is always a half."""

    def __post_init__(self) -> None:
        if not 0 < self.sparsity < 1:
            raise InvalidInputError(
                f"sparsify.sparsity must be in (0, 1), got {self.sparsity:g}"
            )


class TuningMethod(StrEnum):
    """Which weights training changes."""

    LORA = "lora"
    FULL = "full"


@dataclass(frozen=True, kw_only=True, slots=True)
class Finetune:
    """Train on your own examples, with the model's own chat template."""

    data: str
    """Path of a JSONL file of chats or of prompts with completions."""
    validation: str | None = None
    """Held-out examples that stop training; null takes a tenth of `data`."""
    method: TuningMethod = TuningMethod.LORA
    """Which weights change: low-rank adapters, which are merged then, or all."""
    epochs: int = 3
    """Passes over the data, at most."""
    learning_rate: float | None = None
    """Peak of it; null is 2e-4 for adapters and 5e-5 for all weights."""
    rank: int = 16
    """Rank of adapters."""

    def __post_init__(self) -> None:
        for name in ("epochs", "rank"):
            if not getattr(self, name) > 0:
                raise InvalidInputError(
                    f"finetune.{name} must be > 0, got {getattr(self, name):g}"
                )
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise InvalidInputError(
                f"finetune.learning_rate must be > 0, got {self.learning_rate:g}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Distill:
    """Train towards the distributions of the model as it was before any pruning."""

    text: str | None = None
    """Path of a UTF-8 text file; null is the built-in calibration text. Or `data`."""
    data: str | None = None
    """Path of a JSONL file of chats, as for fine-tuning, instead of a text."""
    steps: int = 200
    """Steps of training."""
    learning_rate: float = 2e-4
    """Peak of it."""
    temperature: float = 1.0
    """Of both distributions."""

    def __post_init__(self) -> None:
        if self.text is not None and self.data is not None:
            raise InvalidInputError("distill takes text or data, not both")
        for name in ("steps", "learning_rate", "temperature"):
            if not getattr(self, name) > 0:
                raise InvalidInputError(
                    f"distill.{name} must be > 0, got {getattr(self, name):g}"
                )


Lever = TrimVocabulary | PruneDepth | PruneWidth | Sparsify | Finetune | Distill


@dataclass(frozen=True, kw_only=True, slots=True)
class RecipeStep:
    """One lever; exactly one key is given."""

    trim_vocabulary: TrimVocabulary | None = None
    """Keep the tokens a text uses most."""
    prune_depth: PruneDepth | None = None
    """Remove whole blocks."""
    prune_width: PruneWidth | None = None
    """Remove channels and heads."""
    sparsify: Sparsify | None = None
    """Set weights to zero."""
    finetune: Finetune | None = None
    """Train on examples."""
    distill: Distill | None = None
    """Train towards the model before pruning."""

    def __post_init__(self) -> None:
        if len(self._given()) != 1:
            raise InvalidInputError(
                f"a step needs exactly one of {', '.join(f.name for f in fields(self))},"
                f" got {len(self._given())}"
            )

    @property
    def name(self) -> str:
        """The key that is given."""
        return self._given()[0]

    @property
    def lever(self) -> Lever:
        """What is given."""
        lever: Lever = getattr(self, self.name)
        return lever

    def variations(self) -> Iterator["RecipeStep"]:
        """Yield this step with one number wherever it has several."""
        lever: Any = self.lever
        searched = [
            (each.name, getattr(lever, each.name))
            for each in fields(lever)
            if isinstance(getattr(lever, each.name), tuple)
        ]
        names = [name for name, _ in searched]
        for chosen in itertools.product(*(values for _, values in searched)):
            changed = replace(lever, **dict(zip(names, chosen, strict=True)))
            yield replace(self, **{self.name: changed})

    def _given(self) -> list[str]:
        return [f.name for f in fields(self) if getattr(self, f.name) is not None]


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
    search: SearchPlan = field(default_factory=SearchPlan)
    """How many structures are tried."""
    seed: int = 0
    """Of any chance in training and search."""

    @property
    def changes_sizes(self) -> bool:
        """Whether it tries what is smaller than the blueprint's plain candidates."""
        return bool(self.structures) or self.mixed is not None

    def __post_init__(self) -> None:
        names = [structure.name for structure in self.structures]
        for name in names:
            if names.count(name) > 1:
                raise InvalidInputError(
                    f"recipe.structures: name {name!r} is used twice"
                )
        for step in self.prepare:
            if len(list(step.variations())) > 1:
                raise InvalidInputError(
                    f"recipe.prepare: {step.name} must have one number where it has"
                    " several: everything is compared with its result"
                )
        if self.mixed is not None and self.calibration is None:
            raise InvalidInputError("recipe.mixed needs recipe.calibration, got none")
