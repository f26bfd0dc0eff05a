"""What the control plane does by itself: fresh timestamps, last-seen times."""

import time
from collections.abc import Callable

from slmops.registry.key_changes import KeyChanges, Wanted
from slmops.registry.key_folder import KeyAccess
from slmops.registry.roots import LIFE, director_keys
from slmops.testing.control_in_process import ControlInProcess

Run = Callable[..., ControlInProcess]


def timestamp_version(control: ControlInProcess) -> int:
    answer = control.http.get("/v1/registry/metadata/timestamp.json")
    version: int = answer.json()["signed"]["version"]
    return version


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 5.0
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_timestamp_that_wears_out_is_signed_anew(run_control: Run) -> None:
    control = run_control(timestamp_s=0.01)
    assert timestamp_version(control) == 1
    control.times[0] += 0.6 * LIFE["timestamp"].total_seconds()
    wait_until(lambda: timestamp_version(control) == 2)


def test_last_seen_times_are_written_in_batches(run_control: Run) -> None:
    control = run_control(seen_flush_s=0.01)
    device = control.enrol("a")
    device.sync(control.http)
    control.times[0] += 50.0
    answer = control.http.post(
        "/v1/sync",
        content=b'{"facts": {"memory_mib": 512, "disk_mib": 4000, "cpu_count": 1,'
        b' "architecture": "x86_64"}}',
        headers=device.headers(),
    )
    assert answer.status_code == 304
    wait_until(lambda: control.plane.store.device("a").seen_at == control.times[0])


def test_a_rotated_director_signs_without_a_restart(run_control: Run) -> None:
    control = run_control()
    workspace = control.sample.workspace
    before = control.plane.keys.director.public_hex
    changes = KeyChanges(workspace.keys, control.sample.catalog, KeyAccess())
    changes.rotate(Wanted(role="director"), now=control.times[0])
    wait_until(lambda: control.plane.keys.director.public_hex != before)
    named = director_keys(changes.newest_root())
    assert named == (control.plane.keys.director.public_hex,)
