"""Who goes first, who waits, who is left out, and who must agree."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from slmops.domain.blueprint import LabWave, RolloutPolicy, WavePlan
from slmops.domain.installation import State
from slmops.testing.control_in_process import (
    QUICK_POLICY,
    ControlInProcess,
    control_in_process,
    quick_release,
)
from slmops.testing.scripted_device import ScriptedDevice

ONE_WAVE = replace(QUICK_POLICY, waves=(WavePlan(share=1.0),))


@contextmanager
def fleet(folder: Path, *policies: RolloutPolicy) -> Iterator[ControlInProcess]:
    """A control plane with releases sample-1, sample-2 … of these policies."""
    releases = [
        quick_release(version, policy=policy)
        for version, policy in enumerate(policies, start=1)
    ]
    control = control_in_process(folder, releases)
    with control.http:
        yield control


def enrol(
    control: ControlInProcess,
    name: str,
    labels: dict[str, str] | None = None,
    **more: Any,  # noqa: ANN401 - arguments of `enrol`
) -> ScriptedDevice:
    device = control.enrol(name, **more)
    device.labels = labels or {}
    device.sync(control.http)
    return device


def start(
    control: ControlInProcess, release: str, status: int = 201, **more: bool
) -> Any:  # noqa: ANN401 - a tree
    return control.post("/v1/rollouts", {"release": release, **more}, status=status)


def as_operator(
    control: ControlInProcess, token: str, path: str, body: object = None
) -> Any:  # noqa: ANN401 - a tree
    answer = control.http.post(
        path, json=body, headers={"Authorization": f"Bearer {token}"}
    )
    return answer.status_code, answer.json()


def test_lab_devices_pass_before_anybody_else_is_offered(tmp_path: Path) -> None:
    with fleet(tmp_path, replace(QUICK_POLICY, lab=LabWave.IF_ANY)) as control:
        lab = enrol(control, "bench", {"lab": "true", "emulates": "till"})
        shop = enrol(control, "shop")
        begun = start(control, "sample-1")
        assert begun["lab"]
        waves = {one["device"]: one["wave"] for one in begun["members"]}
        assert waves == {"bench": 0, "shop": 1}
        assert [one["emulates"] for one in begun["members"]] == ["till", ""]
        control.tick()
        assert shop.sync(control.http) == 304
        control.play(lab, shop)
        assert control.get(f"/v1/rollouts/{begun['id']}")["state"] == "done"
        assert shop.active_release == "sample-1"


def test_a_lab_device_that_fails_stops_the_release_before_the_fleet(
    tmp_path: Path,
) -> None:
    with fleet(tmp_path, QUICK_POLICY) as control:
        bad = {"sample-1": "golden prompts: gibberish"}
        lab = enrol(control, "bench", {"lab": "true"}, bad_releases=bad)
        shop = enrol(control, "shop")
        begun = start(control, "sample-1")
        control.play(lab, shop)
        ended = control.get(f"/v1/rollouts/{begun['id']}")
        assert ended["state"] == "halted"
        assert ended["reason"].startswith(
            "lab wave: class small: 1 of 1 devices failed"
        )
        assert shop.assignment is None


def test_a_required_lab_names_the_class_that_has_none(tmp_path: Path) -> None:
    with fleet(tmp_path, replace(QUICK_POLICY, lab=LabWave.REQUIRED)) as control:
        enrol(control, "bench", {"lab": "true"}, memory_mib=512)
        enrol(control, "big", memory_mib=4000)
        refused = start(control, "sample-1", status=409)
        assert "no lab device for class large" in refused["error"]["message"]


def test_a_site_works_on_no_more_devices_at_once_than_it_may(tmp_path: Path) -> None:
    with fleet(tmp_path, replace(ONE_WAVE, max_per_site=2)) as control:
        slow = (State.DOWNLOADING, State.STAGED, State.PROBATION)
        north = [
            enrol(control, f"n{i}", {"site": "north"}, steps=slow) for i in range(5)
        ]
        south = [enrol(control, "s0", {"site": "south"}, steps=slow)]
        nowhere = [enrol(control, f"x{i}", steps=slow) for i in range(3)]
        everyone = [*north, *south, *nowhere]
        begun = start(control, "sample-1")
        most = 0
        for _ in range(40):
            control.tick(1.0)
            members = control.get(f"/v1/rollouts/{begun['id']}")["members"]
            at_work = [
                one
                for one in members
                if one["offered_at"] is not None and one["outcome"] == "pending"
            ]
            most = max(most, sum(one["site"] == "north" for one in at_work))
            for device in everyone:
                device.sync(control.http)
        assert most == 2
        assert {device.active_release for device in everyone} == {"sample-1"}


def test_a_holdback_keeps_the_same_devices_on_what_they_run(tmp_path: Path) -> None:
    held = replace(ONE_WAVE, holdback=0.3)
    with fleet(tmp_path, held, held, held) as control:
        devices = [enrol(control, f"d{i}") for i in range(20)]
        for release in ("sample-1", "sample-2", "sample-3"):
            start(control, release)
            control.play(*devices)
        behind = {one.name for one in devices if one.active_release == "sample-1"}
        assert 1 <= len(behind) <= 12
        assert {one.active_release for one in devices} == {"sample-1", "sample-3"}
        newest = control.get("/v1/rollouts/r-3")
        assert {one["device"] for one in newest["left_out"]} == behind
        assert "keeps sample-1" in newest["left_out"][0]["reason"]


def test_a_draft_offers_nothing_until_enough_others_approve(tmp_path: Path) -> None:
    with fleet(tmp_path, replace(ONE_WAVE, approvals=2)) as control:
        device = enrol(control, "one")
        tokens = {
            name: control.post("/v1/operators", {"name": name}, status=201)["token"]
            for name in ("ada", "ben", "cleo")
        }
        order = {"release": "sample-1"}
        status, begun = as_operator(control, tokens["ada"], "/v1/rollouts", order)
        assert (status, begun["state"], begun["started_by"]) == (201, "draft", "ada")
        approve = f"/v1/rollouts/{begun['id']}/approve"
        control.play(device, rounds=3)
        assert device.assignment is None
        status, said = as_operator(control, tokens["ada"], approve)
        assert status == 409
        assert "another operator" in said["error"]["message"]
        assert as_operator(control, tokens["ben"], approve)[1]["state"] == "draft"
        assert as_operator(control, tokens["ben"], approve)[0] == 409
        assert as_operator(control, tokens["cleo"], approve)[1]["state"] == "running"
        control.play(device)
        assert device.active_release == "sample-1"
        audit = control.get("/v1/audit")["entries"]
        who = {(one["actor"], one["action"]) for one in audit}
        assert {("ada", "rollout.start"), ("ben", "rollout.approve")} <= who


def test_an_operators_token_is_worthless_once_removed_and_adds_nobody(
    tmp_path: Path,
) -> None:
    with fleet(tmp_path, QUICK_POLICY) as control:
        token = control.post("/v1/operators", {"name": "ada"}, status=201)["token"]
        order = {"release": "sample-1"}
        assert as_operator(control, token, "/v1/operators", {"name": "eve"})[0] == 403
        assert as_operator(control, token, "/v1/rollouts/preview", order)[0] == 409
        control.post("/v1/operators/ada/remove")
        assert as_operator(control, token, "/v1/rollouts/preview", order)[0] == 403
        again = control.post("/v1/operators", {"name": "ada"}, status=409)
        assert "not used again" in again["error"]["message"]


def test_a_release_with_a_variant_that_failed_before_must_be_insisted_on(
    tmp_path: Path,
) -> None:
    with fleet(tmp_path, QUICK_POLICY, QUICK_POLICY) as control:
        bad = {"sample-1": "golden prompts: gibberish"}
        devices = [enrol(control, f"d{i}", bad_releases=bad) for i in range(3)]
        start(control, "sample-1")
        control.play(*devices)
        assert control.get("/v1/rollouts/r-1")["state"] == "halted"
        refused = start(control, "sample-1", status=409)["error"]["message"]
        assert "class small" in refused
        assert "failed in rollout r-1" in refused
        start(control, "sample-1", despite_quarantine=True)
        control.post("/v1/rollouts/r-2/abort", {"keep": True})
        start(control, "sample-2")


def test_an_emergency_stop_ends_every_rollout_and_brings_devices_back(
    tmp_path: Path,
) -> None:
    with fleet(tmp_path, ONE_WAVE, ONE_WAVE) as control:
        here, away = enrol(control, "here"), enrol(control, "away")
        start(control, "sample-1")
        control.play(here, away)
        start(control, "sample-2")
        control.tick()
        away.sync(control.http)  # it takes the offer, and falls silent at work
        control.play(here, rounds=4)
        assert here.active_release == "sample-2"
        stopped = control.post("/v1/emergency-stop", {"reason": "wrong prices"})
        assert [one["state"] for one in stopped["rollouts"]] == ["aborted"]
        assert stopped["rollouts"][0]["reason"] == "wrong prices"
        assert away.sync(control.http) == 200
        assert away.newest.revert
        control.play(here, away)
        assert here.active_release == away.active_release == "sample-1"
        assert control.post("/v1/emergency-stop", {"reason": "x"})["rollouts"] == []


def test_a_finished_rollout_is_reverted_by_a_rollout_with_its_waves(
    tmp_path: Path,
) -> None:
    with fleet(tmp_path, QUICK_POLICY, QUICK_POLICY) as control:
        devices = [enrol(control, f"d{i}") for i in range(5)]
        start(control, "sample-1")
        control.play(*devices)
        late = enrol(control, "late")
        start(control, "sample-2")
        control.play(*devices, late)
        assert {one.active_release for one in (*devices, late)} == {"sample-2"}
        begun = control.post("/v1/rollouts/r-2/revert", status=201)
        assert (begun["release"], begun["reverts"]) == ("sample-1", "r-2")
        assert sum(one["wave"] == 0 for one in begun["members"]) == 2
        control.tick()
        first = [one for one in devices if one.sync(control.http) == 200]
        assert len(first) <= 2
        control.play(*devices, late)
        assert control.get("/v1/rollouts/r-3")["state"] == "done"
        assert {one.active_release for one in devices} == {"sample-1"}
        refused = control.post("/v1/rollouts/r-1/revert", status=409)
        assert "cannot be reverted" in refused["error"]["message"]


def test_a_preview_shows_what_a_start_then_does(tmp_path: Path) -> None:
    with fleet(tmp_path, QUICK_POLICY) as control:
        enrol(control, "bench", {"lab": "true"})
        for index in range(4):
            enrol(control, f"d{index}", memory_mib=4000 if index == 0 else 512)
        shown = control.post("/v1/rollouts/preview", {"release": "sample-1"})
        assert control.get("/v1/rollouts")["rollouts"] == []
        begun = start(control, "sample-1")
        for index, wave in enumerate(shown["waves"]):
            members = [one for one in begun["members"] if one["wave"] == index]
            assert sum(wave.values()) == len(members)
        assert shown["lab"] is begun["lab"] is True


@pytest.mark.parametrize("path", ["/v1/operators", "/v1/emergency-stop"])
def test_without_a_token_nothing_is_ordered(tmp_path: Path, path: str) -> None:
    with fleet(tmp_path, QUICK_POLICY) as control:
        assert control.http.post(path, json={}).status_code == 403
