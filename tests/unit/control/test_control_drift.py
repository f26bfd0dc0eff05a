"""What a device should run against what it runs."""

from dataclasses import replace
from pathlib import Path

import pytest

from slmops.control.drift import Drift, drift_of
from slmops.control.records import DeviceStatus
from slmops.domain.installation import State
from slmops.domain.sync import Assignment, InstallationReport, Installed
from slmops.testing.control_in_process import control_in_process
from slmops.testing.sample_release import digest_of

ORDER = Assignment(
    device="till-1",
    sequence=3,
    rollout="r-1",
    release="sample-2",
    release_digest=digest_of(b"release"),
    variant=digest_of(b"new"),
    device_class="small",
    probation_s=1.0,
    issued_at=0.0,
)
OLD = Installed(release="sample-1", variant=digest_of(b"old"))
NEW = Installed(release="sample-2", variant=ORDER.variant)


def at(state: State, reason: str = "") -> InstallationReport:
    return InstallationReport(assignment=3, state=state, entered_at=0.0, reason=reason)


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (DeviceStatus(active=NEW, assignment=3), (Drift.IN_STEP, "")),
        (DeviceStatus(active=OLD, assignment=2), (Drift.ON_ITS_WAY, "not taken")),
        (
            DeviceStatus(
                active=OLD, assignment=3, installation=at(State.WAITING, "on battery")
            ),
            (Drift.ON_ITS_WAY, "waiting: on battery"),
        ),
        (
            DeviceStatus(
                active=OLD,
                assignment=3,
                installation=at(State.ROLLED_BACK, "gibberish"),
            ),
            (Drift.REFUSED, "gibberish"),
        ),
        (
            DeviceStatus(active=OLD, assignment=3, quarantined=(ORDER.variant,)),
            (Drift.REFUSED, "quarantined"),
        ),
        (
            DeviceStatus(assignment=3, installation=at(State.COMMITTED)),
            (Drift.ADRIFT, "runs nothing"),
        ),
    ],
)
def test_each_difference_has_its_name_and_reason(
    status: DeviceStatus, expected: tuple[Drift, str]
) -> None:
    drift, reason = drift_of(ORDER, status)
    assert drift is expected[0]
    assert expected[1] in reason


def test_a_device_that_nothing_was_wanted_of_drifts_nowhere() -> None:
    assert drift_of(None, DeviceStatus(active=OLD)) == (Drift.NOTHING, "")


def test_the_fleet_shows_who_refused_and_who_lost_its_model(tmp_path: Path) -> None:
    with control_in_process(tmp_path) as control:
        bad = {"sample-1": "golden prompts: gibberish"}
        good, refusing = control.enrol("good"), control.enrol("odd", bad_releases=bad)
        control.post("/v1/rollouts", {"release": "sample-1"}, status=201)
        control.play(good, refusing, rounds=4)
        drift = {
            one["id"]: one["drift"] for one in control.get("/v1/devices")["devices"]
        }
        assert drift == {"good": "in-step", "odd": "refused"}
        good.active = None  # its disk was replaced
        good.installation = replace(good.installation, assignment=1)  # type: ignore[type-var]
        good.sync(control.http)
        shown = control.get("/v1/devices/good")["device"]
        assert (shown["desired"], shown["drift"]) == ("sample-1", "adrift")
        assert "installs sample-1 anew" in shown["drift_reason"]
