"""Devices that are dead, stolen or sold: out of the fleet, and out of rollouts."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from slmops.control.records import Placed
from slmops.control.retirement import leave_out_retired
from slmops.domain.blueprint import RolloutPolicy
from slmops.domain.members import Member, Outcome
from slmops.domain.rollout import Rollout
from slmops.testing.control_in_process import ControlInProcess, quick_release
from slmops.wire import codec

Run = Callable[..., ControlInProcess]


def rollout(control: ControlInProcess, number: int = 1) -> Any:  # noqa: ANN401
    return control.get(f"/v1/rollouts/r-{number}")


def test_a_dead_device_no_longer_halts_a_rollout(control: ControlInProcess) -> None:
    fleet = [control.enrol(f"d{index}") for index in range(6)]
    control.post("/v1/rollouts", {"release": "sample-1"}, status=201)
    control.tick()
    first = [one["device"] for one in rollout(control)["members"] if one["wave"] == 0]
    [dead, other] = [device for device in fleet if device.name in first]
    control.post(f"/v1/devices/{dead.name}/retire")
    control.play(other, *(device for device in fleet if device.name not in first))
    control.tick(1000.0)
    ended = rollout(control)
    assert ended["state"] == "done"
    assert [one["device"] for one in ended["left_out"]] == [dead.name]
    assert dead.name not in [one["device"] for one in ended["members"]]
    actions = [one["action"] for one in control.get("/v1/audit")["entries"]]
    assert "device.retire" in actions
    assert "device.left_out" in actions


def test_a_class_without_its_canary_gets_another_before_later_waves(
    control: ControlInProcess,
) -> None:
    fleet = [control.enrol(f"d{index}") for index in range(6)]
    control.post("/v1/rollouts", {"release": "sample-1"}, status=201)
    control.tick()
    for one in rollout(control)["members"]:
        if one["wave"] == 0:
            control.post(f"/v1/devices/{one['device']}/retire")
    control.tick()
    waves = rollout(control)["waves"]
    assert [wave["offered"] for wave in waves] == [1, 0], "no evidence, no next wave"
    left = {one["device"] for one in rollout(control)["members"]}
    control.play(*(device for device in fleet if device.name in left))
    assert rollout(control)["state"] == "done"


def test_a_retired_device_is_in_no_new_rollout_and_gets_no_way_back(
    run_control: Run,
) -> None:
    control = run_control(quick_release(1), quick_release(2))
    fleet = [control.enrol(f"d{index}") for index in range(4)]
    control.post("/v1/devices/d0/retire")
    control.post("/v1/rollouts", {"release": "sample-1"}, status=201)
    control.play(*fleet[1:])
    assert rollout(control)["state"] == "done"
    assert {one["device"] for one in rollout(control)["members"]} == {"d1", "d2", "d3"}
    assert control.get("/v1/devices/d0")["assignments"] == []


def test_every_door_is_closed_to_a_retired_device(control: ControlInProcess) -> None:
    device = control.enrol("a")
    headers = device.headers()
    control.post("/v1/devices/a/retire")
    detail = control.post("/v1/devices/a/retire")
    assert detail["device"]["retired_at"] == control.times[0]
    raw = codec.encode_json(device.request())
    assert (
        control.http.post("/v1/sync", content=raw, headers=headers).status_code == 403
    )
    answer = control.http.post(
        "/v1/session",
        content=json.dumps(
            {
                "device": "a",
                "counter": 9,
                "signature": device.key.sign(b"slmops-session:a:9"),
            }
        ),
    )
    assert answer.status_code == 403
    assert "a was retired" in answer.json()["error"]["message"]
    retired = [
        one
        for one in control.get("/v1/audit")["entries"]
        if one["action"] == "device.retire"
    ]
    assert len(retired) == 1
    control.post("/v1/devices/nobody/retire", status=404)


def test_an_abort_says_who_goes_back_and_who_stays_and_why(
    run_control: Run,
) -> None:
    control = run_control(quick_release(1), quick_release(2))
    old = control.enrol("old")
    control.post("/v1/rollouts", {"release": "sample-1"}, status=201)
    control.play(old)
    fresh = control.enrol("fresh")
    fresh.sync(control.http)  # assigned nothing yet
    control.post("/v1/rollouts", {"release": "sample-2"}, status=201)
    control.tick()
    answer = control.post("/v1/rollouts/r-2/abort", {"keep": False})
    assert answer["back"] == ["old"]
    assert answer["stay"] == [
        {
            "device": "fresh",
            "reason": "nothing to go back to: it ran no release before",
        }
    ]


def placed(
    device: str, wave: int, outcome: Outcome = Outcome.PENDING, name: str = "small"
) -> Placed:
    return Placed(
        member=Member(device=device, device_class=name, wave=wave, outcome=outcome)
    )


ROLLOUT = Rollout(
    id="r-1",
    release="x-1",
    policy=RolloutPolicy(),
    classes=("small", "large"),
    waves=3,
    wave=0,
)


@pytest.mark.parametrize(
    ("outcome", "leaves"),
    [
        (Outcome.PENDING, True),
        (Outcome.SILENT, True),
        (Outcome.SUCCEEDED, True),
        (Outcome.FAILED, False),
    ],
)
def test_only_a_reported_failure_outlives_its_device(
    outcome: Outcome, leaves: bool
) -> None:
    commit = leave_out_retired(ROLLOUT, [placed("a", 0, outcome)], {"a"}, 5.0)
    assert (commit is not None) is leaves


def test_a_substitute_is_of_the_same_class_and_of_the_next_wave() -> None:
    fleet = [
        placed("a", 0),
        placed("b", 0, name="large"),
        placed("c", 2),
        placed("d", 1),
        placed("e", 1, name="large"),
    ]
    commit = leave_out_retired(ROLLOUT, fleet, {"a"}, 5.0)
    assert commit is not None
    assert [(one.member.device, one.member.wave) for one in commit.members] == [
        ("d", 0)
    ]
    assert leave_out_retired(ROLLOUT, fleet, {"nobody"}, 5.0) is None
