"""Rollouts: a release reaching the fleet in frozen waves, decided by a pure `advance`.

Two separate questions, both failing closed: *stop?* is asked on every pass, *advance?*
once a wave is decided and has soaked. `advance` does one thing a pass and returns; the
next pass sees the truth. How devices are dealt to waves is in `slmops.domain.waves`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from slmops.domain.blueprint import OnHalt, RolloutPolicy
from slmops.domain.device import Budget
from slmops.domain.gate import (
    AdvanceRule,
    GateResult,
    Verdict,
    advance_gate,
    stop_gate,
)
from slmops.domain.members import (
    Member,
    Outcome,
    class_counts,
    device_reasons,
    free_to_offer,
    newly_silent,
    newly_unwell,
    on_release,
)


class RolloutState(StrEnum):
    """Where a rollout stands. Stored; never renamed."""

    DRAFT = "draft"
    """Waits for approvals: nothing is offered."""
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
    allow_downgrade: bool = False
    """The operator asked for a release older than the newest one rolled out."""
    lab: bool = False
    """Wave 0 is the lab's; the policy's waves follow."""
    reverts: str | None = None
    """Id of the rollout whose devices this one brings back; None for an ordinary one."""
    started_by: str = ""
    """Operator."""
    approved_by: tuple[str, ...] = ()
    """Operators that approved, in order."""
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
    unwell: Mapping[str, str] = field(default_factory=dict)
    """Committed devices whose outcome becomes FAILED, with the reason."""
    results: tuple[GateResult, ...] = ()
    """Verdicts reached in this pass; stored append-only when they changed."""


ENDED = frozenset({RolloutState.HALTED, RolloutState.DONE, RolloutState.ABORTED})
"""Nothing more is offered."""

_NAMED = 3
"""Devices named in a reason; the rest are counted."""


def wave_name(rollout: Rollout) -> str:
    """Name the current wave for people.

    >>> from slmops.domain.blueprint import RolloutPolicy
    >>> one = Rollout(
    ...     id="r-1", release="a-1", policy=RolloutPolicy(), classes=("a",), waves=5, lab=True
    ... )
    >>> wave_name(one), wave_name(replace(one, wave=1))
    ('lab wave', 'wave 1 of 4')
    """
    if rollout.lab and rollout.wave == 0:
        return "lab wave"
    lab = int(rollout.lab)
    return f"wave {rollout.wave + 1 - lab} of {rollout.waves - lab}"


def late_joiner_wave(rollout: Rollout) -> int | None:
    """Return the wave for a device that appears now: the last, unless it has begun."""
    last = rollout.waves - 1
    begun = rollout.wave == last and rollout.phase is not WavePhase.PENDING
    if rollout.state in ENDED or begun:
        return None
    return last


def advance(
    rollout: Rollout,
    members: Sequence[Member],
    now: float,
    *,
    max_paired_loss: float,
    budgets: Mapping[str, Budget] | None = None,
    listening_since: float = 0.0,
) -> Step:
    """Decide the next step of a rollout; pure, one thing a pass.

    Args:
        rollout: as stored.
        members: all its devices, as last reported.
        now: Unix time, seconds.
        max_paired_loss: δ of the release's golden plan, nats a token.
        budgets: class → what a device of it may spend under live traffic.
        listening_since: nobody listened before; Unix seconds.

    Returns:
        The new rollout and the effects to commit with it. Applying the same step twice
        is harmless: an effect names devices and their final assignment.
    """
    if rollout.state in ENDED or rollout.state is RolloutState.DRAFT:
        return Step(rollout=rollout)
    silent = newly_silent(
        members,
        now - rollout.policy.deadline_s,
        listening_since=listening_since,
    )
    if silent:
        return Step(rollout=rollout, silent=silent)
    unwell = newly_unwell(members, budgets or {})
    if unwell:
        return Step(rollout=rollout, unwell=unwell)
    stop = stop_gate(
        class_counts(members, rollout.classes),
        tolerated_rate=rollout.policy.tolerated_failure_rate,
        alpha=rollout.policy.alpha,
    )
    if stop.verdict is Verdict.FAIL:
        return _halt(rollout, members, stop, now)
    if rollout.state is RolloutState.PAUSED:
        return Step(rollout=rollout)
    return _run_wave(rollout, members, now, max_paired_loss)


def _run_wave(
    rollout: Rollout, members: Sequence[Member], now: float, max_paired_loss: float
) -> Step:
    """Offer the current wave, or decide it once it was offered."""
    if not members:
        return Step(rollout=rollout, results=(_empty_wave(rollout),))
    cohort = [member for member in members if member.wave == rollout.wave]
    if not cohort:
        return _pass_wave(rollout, now, _empty_wave(rollout))
    if any(member.offered_at is None for member in cohort):
        limit = rollout.policy.max_per_site
        free = free_to_offer(cohort, members, max_per_site=limit)
        return _offer(rollout, free, now) if free else Step(rollout=rollout)
    return _decide(rollout, members, cohort, now, max_paired_loss)


def _offer(rollout: Rollout, devices: tuple[str, ...], now: float) -> Step:
    phase_at = now if rollout.phase is WavePhase.PENDING else rollout.phase_at
    return Step(
        rollout=replace(rollout, phase=WavePhase.OFFERING, phase_at=phase_at),
        offer=devices,
    )


def _decide(
    rollout: Rollout,
    members: Sequence[Member],
    cohort: Sequence[Member],
    now: float,
    max_paired_loss: float,
) -> Step:
    policy = rollout.policy
    losses: dict[str, list[float]] = {}
    sizes: dict[str, int] = {}
    for member in cohort:
        sizes[member.device_class] = sizes.get(member.device_class, 0) + 1
        if member.paired_loss is not None and member.outcome is Outcome.SUCCEEDED:
            losses.setdefault(member.device_class, []).append(member.paired_loss)
    result = advance_gate(
        sizes,
        class_counts(cohort, sizes),
        losses,
        AdvanceRule(
            tolerated_rate=policy.tolerated_failure_rate,
            alpha=policy.alpha / rollout.waves,
            min_per_class=policy.min_per_class,
            max_paired_loss=max_paired_loss,
        ),
    )
    if result.verdict is Verdict.FAIL:
        return _halt(rollout, members, result, now)
    if result.verdict is Verdict.INCONCLUSIVE:
        return Step(rollout=rollout, results=(result,))
    if rollout.phase is not WavePhase.SOAKING:
        return Step(
            rollout=replace(rollout, phase=WavePhase.SOAKING, phase_at=now),
            results=(
                replace(
                    result,
                    verdict=Verdict.INCONCLUSIVE,
                    reason=f"{result.reason}; soaking {policy.soak_s:g} s",
                ),
            ),
        )
    if now - rollout.phase_at < policy.soak_s:
        return Step(rollout=rollout)
    if unheard := _unheard(rollout, cohort):
        held = replace(result, verdict=Verdict.INCONCLUSIVE, reason=unheard)
        return Step(rollout=rollout, results=(held,))
    return _pass_wave(rollout, now, result)


def _unheard(rollout: Rollout, cohort: Sequence[Member]) -> str:
    """Say who said nothing near the soak's end: no data is no evidence of health."""
    since = rollout.phase_at + rollout.policy.soak_s * 2 / 3
    on_it = [one for one in cohort if one.outcome is Outcome.SUCCEEDED]
    mute = [one.device for one in on_it if one.seen_at is None or one.seen_at < since]
    if not mute or rollout.policy.soak_s == 0:
        return ""
    named = ", ".join(mute[:_NAMED]) + (" …" * (len(mute) > _NAMED))
    return f"{len(mute)} of {len(on_it)} not heard of at the soak's end: {named}"


def _pass_wave(rollout: Rollout, now: float, result: GateResult) -> Step:
    """Begin the next wave, or finish."""
    if rollout.wave + 1 < rollout.waves:
        following = replace(
            rollout, wave=rollout.wave + 1, phase=WavePhase.PENDING, phase_at=now
        )
    elif result.verdict is Verdict.PASS or rollout.wave > 0:
        following = replace(
            rollout,
            state=RolloutState.DONE,
            phase=WavePhase.PASSED,
            phase_at=now,
            reason="every wave passed",
        )
    else:
        return Step(rollout=rollout, results=(result,))
    return Step(rollout=following, results=(result,))


def _empty_wave(rollout: Rollout) -> GateResult:
    return GateResult(
        gate="advance",
        verdict=Verdict.INCONCLUSIVE,
        reason=f"{wave_name(rollout)} has no devices: nothing shown",
    )


def _halt(
    rollout: Rollout, members: Sequence[Member], result: GateResult, now: float
) -> Step:
    """Stop for good, with the gate's reason and the devices' own."""
    said = device_reasons(members)
    reason = f"{wave_name(rollout)}: {result.reason}" + (
        f"; devices say: {said}" if said else ""
    )
    keep = rollout.policy.on_halt is OnHalt.HOLD
    return Step(
        rollout=replace(
            rollout, state=RolloutState.HALTED, reason=reason, phase_at=now
        ),
        revert=() if keep else on_release(members),
        results=(replace(result, reason=reason),),
    )
