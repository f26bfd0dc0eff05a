"""Parameters of the training jobs: typed, with defaults that work for small models."""

import dataclasses
import difflib
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from slmops.domain.errors import InvalidInputError
from slmops.workshop.jobs.job import Job
from slmops.workshop.training.batches import SCHEDULES

PRECISIONS = ("auto", "bf16", "fp32")
METHODS = ("lora", "full")

Settings = TypeVar("Settings")


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopSettings:
    """How a loop trains."""

    learning_rate: float = 0.0
    """Peak of the schedule; 0 takes the kind's own default."""
    schedule: str = "cosine"
    """How it falls: ``cosine`` (to a tenth), ``linear`` (to zero), ``constant``."""
    warmup: float = 0.05
    """Share of the steps in which the learning rate rises."""
    epochs: int = 3
    """Passes over the examples."""
    max_steps: int = 0
    """Exact number of optimizer steps, whatever `epochs` says; 0 for none."""
    batch_tokens: int = 1024
    """Most tokens computed together, padding included."""
    accumulation: int = 1
    """Batches whose gradients make one step."""
    weight_decay: float = 0.0
    """AdamW's, decoupled."""
    clip_norm: float = 1.0
    """Longest gradient; longer ones are scaled down."""
    evaluate_every: int = 0
    """Steps between looks at the held-out loss; 0 looks once an epoch."""
    patience: int = 2
    """Looks without improvement after which it stops; 0 never stops early."""
    held_out: float = 0.1
    """Share held out when no validation file is given."""
    precision: str = "auto"
    """Of the arithmetic: ``fp32``, ``bf16`` (weights stay fp32), or what suits the
    processor."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them: less memory, a third slower."""
    checkpoint_seconds: float = 60.0
    """Time between checkpoints: what a kill loses at most. Changes no result."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_tokens", "accumulation"):
            self._check(name, getattr(self, name) >= 1, ">= 1")
        for name in ("learning_rate", "weight_decay", "max_steps", "evaluate_every"):
            self._check(name, getattr(self, name) >= 0, ">= 0")
        self._check("patience", self.patience >= 0, ">= 0")
        self._check("clip_norm", self.clip_norm > 0, "> 0")
        self._check("warmup", 0 <= self.warmup < 1, "in [0, 1)")
        self._check("held_out", 0 < self.held_out < 1, "in (0, 1)")
        self._one_of("schedule", SCHEDULES)
        self._one_of("precision", PRECISIONS)

    def _check(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise InvalidInputError(
                f"parameter {name} must be {expected}, got {getattr(self, name)!r}"
            )

    def _one_of(self, name: str, known: tuple[str, ...]) -> None:
        self._check(name, getattr(self, name) in known, f"one of {', '.join(known)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneSettings(LoopSettings):
    """How a model learns from examples."""

    method: str = "lora"
    """``lora`` trains low-rank adapters (Hu et al. 2021), ``full`` every weight."""
    rank: int = 16
    """Of the adapters."""
    alpha: float = 32.0
    """Adapters count ``alpha / rank``."""
    dropout: float = 0.0
    """Of the adapters' input while training."""
    merge: bool = True
    """Whether adapters are added into the weights; without, there is no model output."""
    max_tokens: int = 1024
    """Longest example; a longer one is an error."""

    def __post_init__(self) -> None:
        # Explicit class: dataclasses with slots are made anew, which breaks super().
        LoopSettings.__post_init__(self)
        self._one_of("method", METHODS)
        self._check("rank", 1 <= self.rank <= 1024, "1 to 1024")  # noqa: PLR2004
        self._check("alpha", self.alpha > 0, "> 0")
        self._check("dropout", 0 <= self.dropout < 1, "in [0, 1)")
        self._check("max_tokens", self.max_tokens >= 2, ">= 2")  # noqa: PLR2004
        if self.method == "full" and not self.merge:
            raise InvalidInputError(
                'parameter merge must be true with method "full": there is no adapter'
            )

    @property
    def peak(self) -> float:
        """Peak learning rate."""
        default = 2e-4 if self.method == "lora" else 5e-5
        return self.learning_rate or default


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillSettings(LoopSettings):
    """How a student learns from a teacher."""

    epochs: int = 1
    """Passes over the text."""
    top_k: int = 64
    """Teacher's most likely tokens kept for each position; the rest is one mass."""
    temperature: float = 1.0
    """Both distributions are flattened by it (Hinton et al. 2015)."""
    label_weight: float = 0.0
    """Share of the loss that is cross entropy with the true tokens."""
    window_tokens: int = 256
    """Length of the pieces a text is cut into."""
    max_windows: int = 0
    """Most pieces used; 0 for all."""
    max_tokens: int = 1024
    """Longest example of `data`."""

    def __post_init__(self) -> None:
        LoopSettings.__post_init__(self)
        self._check("top_k", 1 <= self.top_k <= 4096, "1 to 4096")  # noqa: PLR2004
        self._check("temperature", 0.1 <= self.temperature <= 100, "0.1 to 100")  # noqa: PLR2004
        self._check("label_weight", 0 <= self.label_weight <= 1, "in [0, 1]")
        self._check("window_tokens", self.window_tokens >= 2, ">= 2")  # noqa: PLR2004
        self._check("max_windows", self.max_windows >= 0, ">= 0")

    @property
    def peak(self) -> float:
        """Peak learning rate."""
        return self.learning_rate or 2e-4


@dataclass(frozen=True, kw_only=True, slots=True)
class RecoverSettings(DistillSettings):
    """How a student learns to be quantized."""

    @property
    def peak(self) -> float:
        """Peak learning rate: weights must move by less than a step of their grid."""
        return self.learning_rate or 2e-5


def input_file(job: Job, role: str) -> Path:
    """Return the file of a role.

    Raises:
        InvalidInputError: the job has none.
    """
    if role not in job.inputs:
        raise InvalidInputError(f"input {role} is missing, got {sorted(job.inputs)}")
    return job.inputs[role]


def read_settings(job: Job, kind: type[Settings]) -> Settings:
    """Read a job's parameters; what is not given keeps its default.

    Raises:
        InvalidInputError: an unknown name, a wrong type or an impossible value.
    """
    types = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for name in job.parameters:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {names}"
            raise InvalidInputError(f"parameter {name!r} is unknown; {hint}")
    given = {name: job.parameter(name, types[name]) for name in job.parameters}
    return kind(**given)
