"""Ways back: which devices an old or halted rollout may bring back, and to what."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from slmops.control.records import DeviceStatus, Placed
from slmops.control.ways_back import way_back
from slmops.domain.blueprint import OnHalt, WavePlan
from slmops.domain.ids import parse_digest
from slmops.domain.members import Member
from slmops.domain.rollout import Rollout
from slmops.domain.sync import Installed
from slmops.testing.control_in_process import (
    QUICK_POLICY,
    ControlInProcess,
    quick_release,
)
from slmops.testing.scripted_device import ScriptedDevice

Run = Callable[..., ControlInProcess]

# All at once: which devices a first wave takes depends on the release's digest.
HOLDING = replace(QUICK_POLICY, on_halt=OnHalt.HOLD, waves=(WavePlan(share=1.0),))
STRICT = replace(
    QUICK_POLICY,
    waves=(WavePlan(share=1.0),),
    tolerated_failure_rate=0.02,
    alpha=0.01,
)


def start(control: ControlInProcess, label: str) -> None:
    control.post("/v1/rollouts", {"release": label}, status=201)


def state(control: ControlInProcess, number: int) -> Any:  # noqa: ANN401 - a tree
    return control.get(f"/v1/rollouts/r-{number}")["state"]


def running(fleet: list[ScriptedDevice]) -> set[str | None]:
    return {device.active_release for device in fleet}


def halted_and_held(
    run_control: Run,
) -> tuple[ControlInProcess, list[ScriptedDevice]]:
    """Return a fleet whose second rollout halted, with some devices left on it."""
    control = run_control(
        quick_release(1), quick_release(2, policy=HOLDING), quick_release(3)
    )
    fleet = [control.enrol(f"d{index}") for index in range(6)]
    for device in fleet[::2]:
        device.bad_releases = {"sample-2": "bad"}
    start(control, "sample-1")
    control.play(*fleet)
    start(control, "sample-2")
    control.play(*fleet, rounds=30)
    assert state(control, 2) == "halted"
    assert "sample-2" in running(fleet)
    return control, fleet


def test_an_old_rollout_brings_back_no_device_that_has_moved_on(
    run_control: Run,
) -> None:
    control, fleet = halted_and_held(run_control)
    left = [one.name for one in fleet if one.active_release == "sample-2"]
    start(control, "sample-3")
    control.play(*fleet, rounds=30)
    assert (state(control, 3), running(fleet)) == ("done", {"sample-3"})
    aborted = control.post("/v1/rollouts/r-2/abort", {"keep": False})
    reason = "a newer rollout has it"
    assert aborted["back"] == []
    assert [(one["device"], one["reason"]) for one in aborted["stay"]] == [
        (name, reason) for name in left
    ]
    control.play(*fleet)
    assert running(fleet) == {"sample-3"}
    notes = [
        (entry["subject"], entry["detail"])
        for entry in control.get("/v1/audit")["entries"]
        if entry["action"] == "device.stays"
    ]
    assert sorted(notes) == [(name, f"r-2: {reason}") for name in left]


def test_a_halted_rollout_takes_nothing_back_while_a_newer_one_runs(
    run_control: Run,
) -> None:
    control, fleet = halted_and_held(run_control)
    start(control, "sample-3")
    control.tick(1.0)
    for ordered in ("running", "paused"):
        refused = control.post("/v1/rollouts/r-2/abort", {"keep": False}, status=409)
        assert f"r-3 (sample-3) is {ordered}" in refused["error"]["message"]
        if ordered == "running":
            control.post("/v1/rollouts/r-3/pause", {"reason": "a look"})
    assert state(control, 2) == "halted"
    control.post("/v1/rollouts/r-2/abort", {"keep": True})
    control.post("/v1/rollouts/r-3/resume")
    control.play(*fleet, rounds=30)
    assert (state(control, 3), running(fleet)) == ("done", {"sample-3"})


def test_a_device_on_its_way_back_is_told_once(run_control: Run) -> None:
    reverting = replace(STRICT, on_halt=OnHalt.REVERT)
    control = run_control(quick_release(1), quick_release(2, policy=reverting))
    fleet = [control.enrol("d0"), control.enrol("d1")]
    start(control, "sample-1")
    control.play(*fleet)
    fleet[1].bad_releases = {"sample-2": "bad"}
    start(control, "sample-2")
    control.play(*fleet)
    assert state(control, 2) == "halted"
    told = control.plane.store.assignments("d0")
    assert told[-1].revert
    aborted = control.post("/v1/rollouts/r-2/abort", {"keep": False})
    assert (aborted["back"], aborted["stay"]) == (["d0"], [])
    assert control.plane.store.assignments("d0") == told


def test_a_device_that_committed_while_away_goes_back_to_its_previous_slot(
    run_control: Run,
) -> None:
    control = run_control(*(quick_release(n, policy=STRICT) for n in (1, 2, 3)))
    away, other = control.enrol("d0"), control.enrol("d1")
    other.bad_releases = {"sample-3": "bad"}
    start(control, "sample-1")
    control.play(away, other)
    start(control, "sample-2")
    control.tick(1.0)
    away.sync(control.http)
    control.post("/v1/rollouts/r-2/abort", {"keep": True})
    away.steps = ()
    start(control, "sample-3")
    control.tick(1.0)  # offered from what was last heard: it ran sample-1
    while away.active_release != "sample-2":
        away._work()
    control.play(away, rounds=6)
    assert away.active_release == "sample-3"
    control.play(away, other, rounds=4)
    assert state(control, 3) == "halted"
    assert (away.newest.revert, away.newest.release) == (True, "sample-2")


def test_a_device_that_had_the_very_release_before_keeps_it() -> None:
    held = Installed(release="sample-2", variant=parse_digest("sha256:" + "2" * 64))
    older = Installed(release="sample-1", variant=parse_digest("sha256:" + "1" * 64))
    again = Rollout(
        id="r-3", release="sample-2", policy=QUICK_POLICY, classes=("small",), waves=2
    )
    member = Member(device="a", device_class="small", wave=0, offered_at=1.0)
    status = DeviceStatus(active=held, previous=older)
    assert way_back(again, Placed(member=member, before=held), status) == held
