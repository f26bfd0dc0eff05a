"""Levers: what a recipe may do to a model, one dataclass each, as a blueprint names it.

A number that says "or several" is a search: one structure becomes one for each.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Any

from slmops.domain.errors import InvalidInputError

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
        if (self.feed_forward, self.kv_heads) == (0, 0):
            raise InvalidInputError(
                "prune_width needs feed_forward or kv_heads, got neither"
            )


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
        two_of_four = self.pattern is SparsityPattern.TWO_OF_FOUR
        if two_of_four and self.sparsity != 0.5:  # noqa: PLR2004 - two of four
            raise InvalidInputError(
                f"sparsify.sparsity must be 0.5 with pattern 2:4, got {self.sparsity:g}"
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
    accumulation: int = 1
    """Batches whose gradients make one step."""
    patience: int = 2
    """Looks at held-out examples without improvement after which it stops; 0: never."""
    max_tokens: int = 1024
    """Longest example; a longer one is refused."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them: less memory, slower."""

    def __post_init__(self) -> None:
        if self.patience < 0:
            raise InvalidInputError(
                f"finetune.patience must be >= 0, got {self.patience}"
            )
        if self.max_tokens < 2:  # noqa: PLR2004 - one to read, one to learn
            raise InvalidInputError(
                f"finetune.max_tokens must be >= 2, got {self.max_tokens}"
            )
        for name in ("epochs", "rank", "accumulation"):
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
    prompts: str | None = None
    """Path of a JSONL file of prompts, instead of both: the model before pruning writes
    the answers (sequence-level distillation)."""
    steps: int = 200
    """Steps of training."""
    learning_rate: float = 2e-4
    """Peak of it."""
    temperature: float = 1.0
    """Of both distributions."""

    def __post_init__(self) -> None:
        given = [each for each in (self.text, self.data, self.prompts) if each]
        if len(given) > 1:
            raise InvalidInputError(
                f"distill takes one of text, data and prompts, got {', '.join(given)}"
            )
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
