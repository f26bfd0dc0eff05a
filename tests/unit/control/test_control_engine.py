"""Rollouts as the engine moves them, with devices that speak the protocol."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from slmops.domain.blueprint import OnHalt, RolloutPolicy
from slmops.domain.device import Budget
from slmops.domain.installation import State
from slmops.domain.release import Release
from slmops.testing.control_in_process import (
    QUICK_POLICY,
    ControlInProcess,
    quick_release,
)
from slmops.testing.sample_release import SAMPLE_CLASSES, sample_release
from slmops.testing.scripted_device import ScriptedDevice

Run = Callable[..., ControlInProcess]


def start(control: ControlInProcess, label: str = "sample-1", status: int = 201) -> Any:  # noqa: ANN401
    return control.post("/v1/rollouts", {"release": label}, status=status)


def rollout(control: ControlInProcess, number: int = 1) -> Any:  # noqa: ANN401
    return control.get(f"/v1/rollouts/r-{number}")


def test_a_good_release_reaches_every_device_in_waves(
    control: ControlInProcess,
) -> None:
    fleet = [control.enrol(f"d{index}", 512 + 2000 * (index % 2)) for index in range(6)]
    start(control)
    control.tick()
    assert [wave["offered"] for wave in rollout(control)["waves"]] == [2, 0]
    control.play(*fleet)
    ended = rollout(control)
    assert ended["state"] == "done"
    assert {member["outcome"] for member in ended["members"]} == {"succeeded"}
    assert {device.active_release for device in fleet} == {"sample-1"}
    assert all(len(device.targets) == 1 for device in fleet)
    passes = [
        one["wave"]
        for one in ended["evaluations"]
        if one["result"] == {**one["result"], "gate": "advance", "verdict": "pass"}
    ]
    assert passes == [0, 1]


def two_releases(
    run_control: Run, policy: RolloutPolicy = QUICK_POLICY
) -> tuple[ControlInProcess, list[ScriptedDevice]]:
    control = run_control(quick_release(1), quick_release(2, policy=policy))
    bad = {"sample-2": "golden prompts: 2 of 2 answers differ"}
    fleet = [control.enrol(f"d{index}", bad_releases=bad) for index in range(6)]
    start(control)
    control.play(*fleet)
    assert rollout(control)["state"] == "done"
    return control, fleet


def test_a_bad_release_halts_in_its_first_wave_with_the_devices_reason(
    run_control: Run,
) -> None:
    control, fleet = two_releases(run_control)
    start(control, "sample-2")
    control.play(*fleet)
    halted = rollout(control, 2)
    assert halted["state"] == "halted"
    assert "2 of 2 answers differ" in halted["reason"]
    assert sum(member["offered_at"] is not None for member in halted["members"]) == 2
    assert {device.active_release for device in fleet} == {"sample-1"}
    assert halted["evaluations"][-1]["result"]["verdict"] == "fail"
    assert halted["evaluations"][-1]["rule_version"]
    assert any(
        e["action"] == "rollout.halted" for e in control.get("/v1/audit")["entries"]
    )


def test_a_halt_brings_back_devices_that_committed_or_still_install(
    run_control: Run,
) -> None:
    control, fleet = two_releases(run_control)
    start(control, "sample-2")
    control.tick()
    offered = {
        member["device"]
        for member in rollout(control, 2)["members"]
        if member["offered_at"] is not None
    }
    first, second = [device for device in fleet if device.name in offered]
    second.bad_releases = {}
    second.steps = (State.PROBATION,) * 4
    for _ in range(3):
        first.sync(control.http)
    second.sync(control.http)
    control.tick()
    if rollout(control, 2)["state"] == "running":  # one failure may not be enough
        control.post("/v1/rollouts/r-2/abort", {"keep": False})
    control.play(*fleet)
    assert {device.active_release for device in fleet} == {"sample-1"}
    assert second.newest.revert
    assert second.newest.release == "sample-1"


SOAKING = replace(QUICK_POLICY, soak_s=20.0, deadline_s=1000.0)


def soaking_release(version: int) -> Release:
    limited = [replace(one, budget=Budget(memory_mib=400)) for one in SAMPLE_CLASSES]
    release = sample_release(version, classes=limited)
    return replace(release, blueprint=replace(release.blueprint, rollout=SOAKING))


def soak_first_wave(control: ControlInProcess, fleet: list[ScriptedDevice]) -> None:
    start(control)
    control.play(*fleet, rounds=4)
    found = rollout(control)
    assert (found["wave"], found["phase"]) == (0, "soaking")


def test_a_soak_that_nobody_reported_in_holds_the_wave(run_control: Run) -> None:
    control = run_control(soaking_release(1))
    fleet = [control.enrol(f"d{index}") for index in range(6)]
    soak_first_wave(control, fleet)
    control.tick(500)
    held = rollout(control)
    assert (held["state"], held["wave"], held["phase"]) == ("running", 0, "soaking")
    assert held["evaluations"][-1]["result"]["verdict"] == "inconclusive"
    assert "2 of 2 not heard of" in held["evaluations"][-1]["result"]["reason"]
    control.play(*fleet, rounds=40)
    assert rollout(control)["state"] == "done"


def test_devices_that_fall_silent_after_their_commit_halt_the_rollout(
    run_control: Run,
) -> None:
    control = run_control(soaking_release(1))
    fleet = [control.enrol(f"d{index}") for index in range(6)]
    soak_first_wave(control, fleet)
    control.tick(1100)
    halted = rollout(control)
    assert halted["state"] == "halted"
    assert "not heard of for 1000 s since it committed" in halted["reason"]
    offered = [one for one in halted["members"] if one["offered_at"] is not None]
    assert [one["outcome"] for one in offered] == ["silent", "silent"]


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        ({"live_failures": {"sample-2": 10}}, "live requests failed"),
        ({"live_restarts": {"sample-2": 1}}, "its process ended"),
        ({"live_peak_mib": {"sample-2": 5000.0}}, "peak memory 5000 MiB"),
    ],
)
def test_a_release_that_fails_after_its_commit_halts_in_the_soak_and_is_taken_back(
    run_control: Run, trouble: dict[str, Any], reason: str
) -> None:
    control = run_control(soaking_release(1), soaking_release(2))
    fleet = [control.enrol(f"d{index}") for index in range(6)]
    start(control)
    control.play(*fleet, rounds=60)
    assert rollout(control)["state"] == "done"
    for device in fleet:
        for name, value in trouble.items():
            setattr(device, name, value)
    start(control, "sample-2")
    control.play(*fleet, rounds=30)
    halted = rollout(control, 2)
    assert halted["state"] == "halted", halted["reason"]
    assert "after it committed, " in halted["reason"]
    assert reason in halted["reason"]
    assert sum(member["offered_at"] is not None for member in halted["members"]) == 2
    assert {device.active_release for device in fleet} == {"sample-1"}
    inputs = halted["evaluations"][-1]["inputs"]["classes"]
    assert any(one.get("live_requests") for one in inputs.values())
    actions = {entry["action"] for entry in control.get("/v1/audit")["entries"]}
    assert "device.unwell" in actions


@pytest.mark.parametrize("keep", [True, False])
def test_an_abort_names_devices_that_failed_after_their_commit(
    run_control: Run, keep: bool
) -> None:
    holding = replace(SOAKING, on_halt=OnHalt.HOLD)
    control = run_control(quick_release(1), quick_release(2, policy=holding))
    fleet = [control.enrol(f"d{index}") for index in range(2)]
    start(control)
    control.play(*fleet)
    for device in fleet:
        device.live_restarts = {"sample-2": 1}
    start(control, "sample-2")
    control.play(*fleet)
    assert rollout(control, 2)["state"] == "halted"
    assert {device.active_release for device in fleet} == {"sample-2"}
    ended = control.post("/v1/rollouts/r-2/abort", {"keep": keep})
    stays = {"device": "d0", "reason": "kept by the operator"}
    assert (stays in ended["stay"], "d0" in ended["back"]) == (keep, not keep)
    control.play(*fleet)
    expected = "sample-2" if keep else "sample-1"
    assert {device.active_release for device in fleet} == {expected}


def test_a_release_that_stays_well_passes_its_soak(run_control: Run) -> None:
    control = run_control(soaking_release(1))
    fleet = [control.enrol(f"d{index}") for index in range(4)]
    for device in fleet:
        device.live_failures = {"sample-1": 0}
    start(control)
    control.play(*fleet, rounds=60)
    ended = rollout(control)
    assert ended["state"] == "done"
    assert all(member["live"]["requests"] > 0 for member in ended["members"])


def test_hold_leaves_devices_where_they_are(run_control: Run) -> None:
    control, fleet = two_releases(
        run_control, replace(QUICK_POLICY, on_halt=OnHalt.HOLD)
    )
    start(control, "sample-2")
    control.play(*fleet)
    assert rollout(control, 2)["state"] == "halted"
    assert not any(
        target.revert for device in fleet for target in device.targets.values()
    )


def test_silence_past_the_deadline_counts_as_failure(control: ControlInProcess) -> None:
    for index in range(3):
        control.enrol(f"d{index}")
    start(control)
    control.tick()
    control.tick(101.0)
    halted = rollout(control)
    assert halted["state"] == "halted"
    silent = [one for one in halted["members"] if one["outcome"] == "silent"]
    assert len(silent) == 2
    assert silent[0]["reason"] == "no outcome within 100 s of its offer"


def test_a_pause_offers_nothing_more_until_resumed(control: ControlInProcess) -> None:
    fleet = [control.enrol(f"d{index}") for index in range(4)]
    start(control)
    control.tick()
    paused = control.post("/v1/rollouts/r-1/pause", {"reason": "shop hours"})
    assert (paused["state"], paused["reason"]) == ("paused", "shop hours")
    control.play(*fleet)
    assert rollout(control)["waves"][1]["offered"] == 0
    assert rollout(control)["waves"][0]["succeeded"] == 2
    control.post("/v1/rollouts/r-1/resume")
    control.play(*fleet)
    assert rollout(control)["state"] == "done"
    control.post("/v1/rollouts/r-1/resume", status=409)


def test_only_one_rollout_of_a_product_at_a_time(run_control: Run) -> None:
    control = run_control(quick_release(1), quick_release(2))
    control.enrol("a")
    start(control)
    error = start(control, "sample-2", status=409)["error"]
    assert error["code"] == "conflict"
    control.post("/v1/rollouts/r-1/abort", {"keep": True})
    start(control, "sample-2")


def test_an_older_release_is_rolled_out_only_when_asked_for(run_control: Run) -> None:
    control, fleet = two_releases(run_control)
    start(control, "sample-2")
    control.play(*fleet)
    error = start(control, "sample-1", status=409)["error"]
    assert error["message"] == (
        "release sample-1 is older than sample-2, which rollout r-2 brought; a downgrade"
        " needs --allow-downgrade"
    )
    assert not any(device.newest.allow_downgrade for device in fleet)
    order = {"release": "sample-1", "allow_downgrade": True}
    control.post("/v1/rollouts", order, status=201)
    control.play(*fleet)
    assert rollout(control, 3)["state"] == "done"
    assert all(device.newest.allow_downgrade for device in fleet)


def test_the_same_release_may_be_rolled_out_again(run_control: Run) -> None:
    control = run_control(quick_release(1))
    fleet = [control.enrol("a")]
    for number in (1, 2):
        start(control)
        control.play(*fleet)
        assert rollout(control, number)["state"] == "done"


def test_a_deadline_that_no_device_could_meet_here_starts_no_rollout(
    run_control: Run,
) -> None:
    tight = replace(QUICK_POLICY, deadline_s=60.0, probation_s=20.0)
    control = run_control(quick_release(1, policy=tight))
    control.enrol("a")
    error = start(control, status=422)["error"]
    assert "deadline_s must be at least 80 here" in error["message"]
    assert "two polls of 30 s, got 60" in error["message"]
    assert control.get("/v1/rollouts")["rollouts"] == []


def test_a_release_with_a_damaged_artefact_is_not_rolled_out(
    control: ControlInProcess,
) -> None:
    control.enrol("a")
    variant = control.sample.releases[0].variants[0]
    blob = control.sample.catalog.blobs.path(variant.digest)
    blob.chmod(0o644)
    blob.write_bytes(b"x" * variant.bytes)
    assert start(control, status=403)["error"]["code"] == "untrusted"
    assert control.get("/v1/rollouts")["rollouts"] == []


def test_a_device_of_no_class_is_left_out_with_the_reason(run_control: Run) -> None:
    only_small = sample_release(1, classes=SAMPLE_CLASSES[:1])
    blueprint = replace(only_small.blueprint, rollout=QUICK_POLICY)
    control = run_control(replace(only_small, blueprint=blueprint))
    control.enrol("giant", memory_mib=4096)
    nobody = start(control, status=409)["error"]["message"]
    assert "giant: fits no class of sample-1" in nobody
    small = control.enrol("a")
    [left] = start(control)["left_out"]
    assert left["device"] == "giant"
    assert "small: memory_mib 4096 is outside ..768" in left["reason"]
    control.play(small)
    assert rollout(control)["state"] == "done"


def test_a_device_that_joins_during_a_rollout_goes_last(
    control: ControlInProcess,
) -> None:
    fleet = [control.enrol(f"d{index}") for index in range(3)]
    start(control)
    control.tick()
    fleet.append(control.enrol("late"))
    control.tick()
    waves = {one["device"]: one["wave"] for one in rollout(control)["members"]}
    assert waves["late"] == 1
    control.play(*fleet)
    assert fleet[-1].active_release == "sample-1"


def test_a_device_that_comes_after_the_end_gets_the_release_too(
    control: ControlInProcess,
) -> None:
    first = control.enrol("first")
    start(control)
    control.play(first)
    late = control.enrol("late")
    control.play(first, late)
    assert late.active_release == "sample-1"
    assert rollout(control)["state"] == "done"


def test_waiting_writes_no_new_verdicts(control: ControlInProcess) -> None:
    device = control.enrol("a")
    start(control)
    control.tick()
    before = rollout(control)
    for _ in range(5):
        control.tick(1.0)
        device.assignment = None
    after = rollout(control)
    assert after["evaluations"] == before["evaluations"]
    assert after["revision"] == before["revision"]


def test_a_deferral_is_not_a_failure(control: ControlInProcess) -> None:
    device = control.enrol("a")
    device.steps = (State.WAITING,) * 5
    start(control)
    control.play(device, rounds=4)
    assert rollout(control)["members"][0]["outcome"] == "pending"
    assert rollout(control)["state"] == "running"
    control.play(device)
    assert rollout(control)["state"] == "done"


def test_a_revert_without_a_release_before_is_recorded(
    control: ControlInProcess,
) -> None:
    device = control.enrol("a")
    start(control)
    control.tick()
    control.post("/v1/rollouts/r-1/abort", {"keep": False})
    control.play(device)
    stays = [
        e for e in control.get("/v1/audit")["entries"] if e["action"] == "device.stays"
    ]
    assert stays[0]["subject"] == "a"
    assert "nothing to go back to" in stays[0]["detail"]
