"""The pure engine step."""

from dataclasses import replace

import pytest

from slmops.domain.blueprint import OnHalt, RolloutPolicy, WavePlan
from slmops.domain.command import COMMANDS, Command, apply_command
from slmops.domain.device import Budget
from slmops.domain.errors import ConflictError
from slmops.domain.gate import Verdict
from slmops.domain.members import Member, Outcome
from slmops.domain.rollout import (
    Rollout,
    RolloutState,
    Step,
    WavePhase,
    advance,
    late_joiner_wave,
)
from slmops.domain.soak import LiveCounts

POLICY = RolloutPolicy(
    waves=(WavePlan(count=3), WavePlan(share=1.0)),
    soak_s=10,
    deadline_s=100,
    probation_s=1,
)
CLASSES = ("gateway", "till", "workstation")


def rollout(**changes: object) -> Rollout:
    start = Rollout(id="r-1", release="a-1", policy=POLICY, classes=CLASSES, waves=2)
    return replace(start, **changes)  # type: ignore[arg-type]


def members(outcomes: dict[str, Outcome], *, offered_at: float = 0.0) -> list[Member]:
    """Two devices per class; the first of each is in wave 0."""
    made = []
    for name in CLASSES:
        for index in (0, 1):
            device = f"{name}-{index}"
            outcome = outcomes.get(device, Outcome.PENDING)
            offered = offered_at if index == 0 else None
            made.append(
                Member(
                    device=device,
                    device_class=name,
                    wave=index,
                    outcome=outcome,
                    offered_at=offered,
                    seen_at=offered,
                )
            )
    return made


def step(value: Rollout, fleet: list[Member], now: float = 1.0) -> Step:
    return advance(value, fleet, now, max_paired_loss=0.15)


def heard(fleet: list[Member], *, at: float) -> list[Member]:
    return [replace(member, seen_at=at) for member in fleet]


def first_wave(outcome: Outcome) -> dict[str, Outcome]:
    return {f"{name}-0": outcome for name in CLASSES}


def test_the_first_pass_offers_the_first_wave_only() -> None:
    fleet = [replace(member, offered_at=None) for member in members({})]
    result = step(rollout(), fleet)
    assert result.offer == ("gateway-0", "till-0", "workstation-0")
    assert result.rollout.phase is WavePhase.OFFERING


def test_nothing_decided_means_hold() -> None:
    result = step(rollout(phase=WavePhase.OFFERING), members({}))
    assert result.rollout.state is RolloutState.RUNNING
    assert result.rollout.wave == 0
    assert not result.offer


def test_a_wave_soaks_before_the_next_begins() -> None:
    fleet = heard(members(first_wave(Outcome.SUCCEEDED)), at=14)
    soaking = step(rollout(phase=WavePhase.OFFERING), fleet, now=5).rollout
    assert soaking.phase is WavePhase.SOAKING
    assert step(soaking, fleet, now=14).rollout.wave == 0
    assert step(soaking, fleet, now=15).rollout.wave == 1


def test_the_last_wave_ends_the_rollout() -> None:
    done = {
        **first_wave(Outcome.SUCCEEDED),
        **{f"{n}-1": Outcome.SUCCEEDED for n in CLASSES},
    }
    fleet = [replace(member, offered_at=0.0, seen_at=9.0) for member in members(done)]
    value = rollout(wave=1, phase=WavePhase.SOAKING, phase_at=0.0)
    assert step(value, fleet, now=20).rollout.state is RolloutState.DONE


def test_a_wave_whose_every_device_failed_halts_with_their_reasons() -> None:
    fleet = members(first_wave(Outcome.FAILED))
    result = step(rollout(phase=WavePhase.OFFERING), fleet)
    assert result.rollout.state is RolloutState.HALTED
    assert "1 of 1 devices failed" in result.rollout.reason
    assert "gateway-0" in result.rollout.reason


def test_a_halt_reverts_devices_that_had_succeeded_unless_told_to_hold() -> None:
    outcomes = {**first_wave(Outcome.FAILED), "till-0": Outcome.SUCCEEDED}
    assert step(rollout(phase=WavePhase.OFFERING), members(outcomes)).revert == (
        "till-0",
    )
    holding = rollout(
        phase=WavePhase.OFFERING, policy=replace(POLICY, on_halt=OnHalt.HOLD)
    )
    assert step(holding, members(outcomes)).revert == ()


@pytest.mark.parametrize(("failed", "halts"), [(8, False), (30, True)])
def test_early_failures_of_a_large_wave_are_weighed_against_all_it_was_offered(
    failed: int, halts: bool
) -> None:
    """2 % of 400 failing at once is no alarm while 392 are in probation."""
    wave = [
        Member(
            device=f"g{index}",
            device_class="gateway",
            wave=0,
            offered_at=0.0,
            outcome=Outcome.FAILED if index < failed else Outcome.PENDING,
        )
        for index in range(400)
    ]
    later = [replace(one, device=f"l{one.device}", wave=1) for one in wave]
    unoffered = [
        replace(one, offered_at=None, outcome=Outcome.PENDING) for one in later
    ]
    value = rollout(phase=WavePhase.OFFERING)
    state = step(value, wave + unoffered).rollout.state
    assert (state is RolloutState.HALTED) is halts


def committed(live: LiveCounts) -> list[Member]:
    fleet = members(first_wave(Outcome.SUCCEEDED))
    counts = dict.fromkeys(first_wave(Outcome.SUCCEEDED), LiveCounts())
    counts["till-0"] = live
    return [replace(member, live=counts.get(member.device)) for member in fleet]


@pytest.mark.parametrize(
    ("live", "reason"),
    [
        (LiveCounts(requests=9, failures=9), "9 of 9 live requests failed"),
        (LiveCounts(requests=9, restarts=1), "its process ended 1 times"),
        (LiveCounts(peak_rss_mib=300.0), "peak memory 300 MiB"),
    ],
)
def test_a_device_that_fails_after_its_commit_halts_the_wave_and_is_brought_back(
    live: LiveCounts, reason: str
) -> None:
    budgets = {"till": Budget(memory_mib=200)}
    value = rollout(phase=WavePhase.SOAKING, phase_at=0.0)
    fleet = committed(live)
    found = advance(value, fleet, 5.0, max_paired_loss=0.15, budgets=budgets)
    assert list(found.unwell) == ["till-0"]
    assert found.unwell["till-0"].startswith(f"after it committed, {reason}")
    fleet = [
        replace(member, outcome=Outcome.FAILED, reason=found.unwell[member.device])
        if member.device in found.unwell
        else member
        for member in fleet
    ]
    halted = advance(value, fleet, 6.0, max_paired_loss=0.15, budgets=budgets)
    assert halted.rollout.state is RolloutState.HALTED
    assert reason in halted.rollout.reason
    assert set(halted.revert) == {"gateway-0", "till-0", "workstation-0"}


def test_a_device_that_stays_well_soaks_on() -> None:
    value = rollout(phase=WavePhase.SOAKING, phase_at=0.0)
    fleet = committed(LiveCounts(requests=100, failures=2, peak_rss_mib=100.0))
    budgets = {"till": Budget(memory_mib=200)}
    found = advance(value, fleet, 5.0, max_paired_loss=0.15, budgets=budgets)
    assert not found.unwell
    assert found.rollout.state is RolloutState.RUNNING


def test_silence_past_the_deadline_becomes_a_failure() -> None:
    value = rollout(phase=WavePhase.OFFERING)
    assert step(value, members({}), now=100).silent == ()
    result = step(value, members({}), now=101)
    assert result.silent == ("gateway-0", "till-0", "workstation-0")
    halted = step(value, members(first_wave(Outcome.SILENT)), now=101)
    assert halted.rollout.state is RolloutState.HALTED


def test_a_wave_whose_devices_fell_silent_in_the_soak_is_held() -> None:
    soaking = rollout(phase=WavePhase.SOAKING, phase_at=0.0)
    fleet = heard(members(first_wave(Outcome.SUCCEEDED)), at=9.0)
    fleet[0] = replace(fleet[0], seen_at=1.0)
    held = step(soaking, fleet, now=50)
    assert held.rollout == soaking
    assert held.results[0].verdict is Verdict.INCONCLUSIVE
    assert held.results[0].reason == (
        "1 of 3 not heard of at the soak's end: gateway-0"
    )
    fleet[0] = replace(fleet[0], seen_at=50.0)
    assert step(soaking, fleet, now=51).rollout.wave == 1


def test_without_a_soak_the_commit_is_enough() -> None:
    quick = rollout(phase=WavePhase.SOAKING, policy=replace(POLICY, soak_s=0))
    fleet = heard(members(first_wave(Outcome.SUCCEEDED)), at=1.0)
    assert step(replace(quick, phase_at=2.0), fleet, now=3).rollout.wave == 1


def test_a_committed_device_silent_for_the_deadline_counts_as_failed() -> None:
    soaking = rollout(phase=WavePhase.SOAKING, phase_at=0.0)
    fleet = heard(members(first_wave(Outcome.SUCCEEDED)), at=200.0)
    fleet[0] = replace(fleet[0], seen_at=99.0)
    assert step(soaking, fleet, now=199).silent == ()
    assert step(soaking, fleet, now=200).silent == ("gateway-0",)


def test_silence_while_nobody_listened_is_not_the_devices() -> None:
    soaking = rollout(phase=WavePhase.SOAKING, phase_at=0.0)
    fleet = heard(members(first_wave(Outcome.SUCCEEDED)), at=9.0)

    def restarted(now: float) -> Step:
        return advance(soaking, fleet, now, max_paired_loss=0.15, listening_since=5000)

    assert restarted(5100).silent == ()
    assert len(restarted(5101).silent) == 3


def test_a_paused_rollout_offers_nothing_but_still_stops() -> None:
    paused = rollout(state=RolloutState.PAUSED)
    fresh = [replace(member, offered_at=None) for member in members({})]
    assert step(paused, fresh).offer == ()
    failing = [
        Member(
            device=f"g{i}",
            device_class="gateway",
            wave=0,
            offered_at=0.0,
            outcome=Outcome.FAILED,
        )
        for i in range(6)
    ]
    assert step(paused, failing).rollout.state is RolloutState.HALTED


@pytest.mark.parametrize(
    "state", [RolloutState.HALTED, RolloutState.DONE, RolloutState.ABORTED]
)
def test_an_ended_rollout_does_nothing(state: RolloutState) -> None:
    assert step(rollout(state=state), members({})) == Step(rollout=rollout(state=state))


@pytest.mark.parametrize("command", list(Command))
@pytest.mark.parametrize("state", list(RolloutState))
def test_commands_follow_the_table(state: RolloutState, command: Command) -> None:
    fleet = members(first_wave(Outcome.SUCCEEDED))
    value = rollout(state=state)
    if (state, command) not in COMMANDS:
        with pytest.raises(ConflictError, match="possible"):
            apply_command(value, fleet, command, by="ada")
        return
    result = apply_command(value, fleet, command, by="ada")
    approved = command is Command.APPROVE
    expected = RolloutState.RUNNING if approved else COMMANDS[state, command]
    assert result.rollout.state is expected
    reverting = command is Command.ABORT_REVERT
    assert bool(result.revert) is reverting


def test_late_joiners_go_to_the_last_wave_until_it_begins() -> None:
    assert late_joiner_wave(rollout()) == 1
    assert late_joiner_wave(rollout(wave=1, phase=WavePhase.OFFERING)) is None
    assert late_joiner_wave(rollout(state=RolloutState.HALTED)) is None


@pytest.mark.parametrize("waves", [1, 2, 4])
def test_a_fleet_without_devices_never_counts_as_a_success(waves: int) -> None:
    value = rollout(waves=waves)
    for _ in range(2 * waves):
        result = step(value, [])
        assert result.results[0].verdict is Verdict.INCONCLUSIVE
        value = result.rollout
    assert value.state is RolloutState.RUNNING


def test_a_last_wave_left_empty_by_a_small_fleet_ends_the_rollout() -> None:
    fleet = [
        replace(member, offered_at=0.0, seen_at=9.0)
        for member in members(first_wave(Outcome.SUCCEEDED))
        if member.wave == 0
    ]
    soaked = rollout(phase=WavePhase.SOAKING)
    last = step(soaked, fleet, now=20).rollout
    assert last.wave == 1
    assert step(last, fleet, now=20).rollout.state is RolloutState.DONE
