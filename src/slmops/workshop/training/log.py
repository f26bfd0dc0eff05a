"""What a training job tells about itself: nothing that differs when it runs again.

How long it took is in the step's record.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class StepLog:
    """One optimizer step."""

    step: int
    """Number, from 1."""
    loss: float
    """Mean over the learnt tokens of the step, nats."""
    learning_rate: float
    """Used in this step."""
    gradient_norm: float
    """Before clipping."""
    tokens: int
    """Computed in this step, padding included."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationLog:
    """One look at the held-out examples."""

    step: int
    """Steps done before it; 0 is the model as it came."""
    loss: float
    """Mean over their learnt tokens, nats."""
    same_top1: float
    """Share of positions whose most likely token is the true one (fine-tuning) or the
    teacher's (distillation)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingLog:
    """A whole run: what it learnt from, how it went, what it took."""

    kind: str
    """``finetune``, ``distill`` or ``recover``."""
    device: str
    """``cpu`` or ``cuda``."""
    precision: str
    """``fp32`` or ``bf16``."""
    threads: int
    """Processors used."""
    seed: int
    """Of order, split and adapters."""
    versions: dict[str, str]
    """Package → version."""
    parameters: int
    """Weights of the model."""
    trained_parameters: int
    """Weights that were trained."""
    examples: int
    """Sequences learnt from."""
    held_out_examples: int
    """Sequences held out."""
    learnt_tokens: int
    """Predicted and counted in one epoch."""
    padded_share: float
    """Share of computed tokens that is padding."""
    planned_steps: int
    """Steps without early stopping."""
    best_step: int
    """Step whose weights are the output: the lowest held-out loss."""
    stopped_early: bool
    """Whether patience ran out."""
    steps: tuple[StepLog, ...] = field(repr=False)
    """One per step."""
    evaluations: tuple[EvaluationLog, ...]
    """In order."""
