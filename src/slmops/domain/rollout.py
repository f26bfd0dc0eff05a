"""Rollouts: a release reaching the fleet in frozen waves, decided by a pure `advance`."""

from dataclasses import dataclass
from enum import StrEnum

from slmops.domain.blueprint import RolloutPolicy
from slmops.domain.gate import GateResult


class RolloutState(StrEnum):
    """Where a rollout stands. Stored; never renamed."""

    RUNNING = "running"
    PAUSED = "paused"
    HALTED = "halted"
    DONE = "done"
    ABORTED = "aborted"


class WavePhase(StrEnum):
    """Where a wave stands. Stored; never renamed."""

    PENDING = "pending"
    OFFERING = "offering"
    SOAKING = "soaking"
    PASSED = "passed"


class Outcome(StrEnum):
    """What became of one device's installation in this rollout. Stored; never renamed."""

    PENDING = "pending"
    """Not offered, or offered and still working inside its deadline."""
    SUCCEEDED = "succeeded"
    """Committed."""
    FAILED = "failed"
    """Rolled back, or committed and then unhealthy."""
    SILENT = "silent"
    """Nothing heard until the deadline: counts as failed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """One device of a rollout, as last reported."""

    device: str
    """Device id."""
    device_class: str
    """Class at the time membership froze."""
    wave: int
    """Index of its wave, 0-based; never changes once its wave has begun."""
    offered_at: float | None = None
    """When its assignment was made, Unix seconds; None before."""
    outcome: Outcome = Outcome.PENDING
    """As reported; `advance` turns late PENDING into SILENT."""
    reason: str = ""
    """The device's own reason for a failure."""
    paired_loss: float | None = None
    """From its trial: loss of mean log p against the replaced model, nats a token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollout:
    """One release on its way to the fleet."""

    id: str
    """``r-`` and a number."""
    release: str
    """Release label."""
    policy: RolloutPolicy
    """As the release's blueprint said when the rollout started."""
    classes: tuple[str, ...]
    """Classes it serves: K of the stop rule."""
    waves: int
    """How many there are."""
    state: RolloutState = RolloutState.RUNNING
    """Overall."""
    wave: int = 0
    """Index of the current wave."""
    phase: WavePhase = WavePhase.PENDING
    """Of the current wave."""
    phase_at: float = 0.0
    """When the phase began, Unix seconds."""
    reason: str = ""
    """Why it halted, was paused or aborted."""
    revision: int = 0
    """Grows with every commit: optimistic concurrency."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """What one pass of the engine decided; empty effects mean: nothing to do yet."""

    rollout: Rollout
    """New value; same `revision`, the store raises it on commit."""
    offer: tuple[str, ...] = ()
    """Devices to give an assignment for the release now."""
    revert: tuple[str, ...] = ()
    """Devices to bring back to what they ran before."""
    silent: tuple[str, ...] = ()
    """Devices whose outcome becomes SILENT."""
    results: tuple[GateResult, ...] = ()
    """Verdicts reached in this pass; stored append-only when they changed."""
