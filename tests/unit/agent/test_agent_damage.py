"""Disks, networks and registries that fail while something is installed."""

import os
import random
import signal
import threading

import pytest

from slmops.agent.clock import Backoff
from slmops.agent.slots import POINTER
from slmops.domain.errors import UntrustedError
from slmops.domain.installation import State
from slmops.testing.agent_in_process import ARTEFACTS, AgentInProcess
from slmops.testing.raw_server import answer, head, raw
from slmops.testing.stage import wait_until

pytestmark = pytest.mark.slow  # real processes


def test_a_damaged_pointer_is_mended_from_the_journal(device: AgentInProcess) -> None:
    device.assign(1, 1)
    device.steps()
    (device.folder / POINTER).write_bytes(b"\x00" * 50)
    device.restart()
    device.models._watch_once()
    assert device.serves() == "sample-1"
    assert device.slots.read().active is not None


def test_bytes_that_rot_while_serving_are_noticed_at_the_next_start_and_fetched_anew(
    device: AgentInProcess,
) -> None:
    device.assign(1, 1)
    device.steps()
    child = device.models.serving
    assert child is not None
    path = device.slots.blobs.path(child.deployment.variant)
    path.write_bytes(path.read_bytes().replace(b"1", b"2"))
    os.kill(child.worker.pid, signal.SIGKILL)
    wait_until(lambda: not child.worker.alive(), "its end")
    device.models._watch_once()
    device.clock.advance(100)
    with pytest.raises(UntrustedError, match="damaged"):
        device.models._watch_once()
    assert device.serves() is None
    device.steps()
    assert device.serves() == "sample-1"


def test_a_wrong_answer_of_the_registry_refuses_an_offer_only_when_it_lasts(
    device: AgentInProcess,
) -> None:
    targets = device.published.workspace.registry / "targets" / "releases"
    device.assign(1, 1)
    device.loop.step()
    targets.rename(targets.with_name("gone"))
    device.loop.step()
    found = device.journal.installation()
    assert found is not None
    assert (found.state, found.spoiled_downloads) == (State.OFFERED, 1)
    assert "offer doubted" in found.reason
    targets.with_name("gone").rename(targets)
    device.steps()
    assert device.serves() == "sample-1"
    device.assign(2, 2)
    targets.rename(targets.with_name("gone"))
    device.clock.advance(60)
    device.steps()
    targets.with_name("gone").rename(targets)
    outcome = device.journal.outcome_of(2)
    assert outcome is not None
    assert "offer refused" in outcome.reason
    assert not outcome.variant_at_fault


BINARY = "application/octet-stream"


def test_wrong_bytes_are_fetched_anew_a_few_times_and_then_refused(
    device: AgentInProcess,
) -> None:
    device.blob_reply = answer(200, bytes(len(ARTEFACTS[1])), kind=BINARY)
    device.assign(1, 1)
    device.steps()
    outcome = device.journal.last_outcome()
    assert outcome is not None
    assert outcome.state is State.ROLLED_BACK
    assert outcome.reason.endswith("3 times")
    assert outcome.bytes_downloaded == 3 * len(ARTEFACTS[1])
    # The way is to blame, not the variant: another assignment may bring it.
    assert device.journal.quarantined() == ()
    device.blob_reply = None
    device.clock.advance(60)
    device.assign(1, 2)
    device.steps()
    assert device.serves() == "sample-1"


def test_a_download_waits_out_a_broken_network_and_counts_what_it_cost(
    device: AgentInProcess,
) -> None:
    size = len(ARTEFACTS[1])
    device.blob_reply = raw(head(kind=BINARY, length=size) + ARTEFACTS[1][:4])
    device.assign(1, 1)
    device.steps(10)
    found = device.journal.installation()
    assert found is not None
    assert found.state is State.DOWNLOADING
    assert "RemoteProtocolError" in found.reason or "asked for bytes" in found.reason
    assert found.bytes_downloaded >= 4
    device.blob_reply = None
    device.steps()
    assert device.serves() == "sample-1"


def test_a_full_disk_defers_and_does_not_spin(
    device: AgentInProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    device.assign(1, 1)
    while device.state() is not State.DOWNLOADING:
        device.loop.step()
    monkeypatch.setattr("slmops.registry.durable.flush", no_space)
    wait_s = device.loop.step()
    monkeypatch.undo()
    found = device.journal.installation()
    assert found is not None
    assert (found.state, found.reason) == (
        State.WAITING,
        "disk: No space left on device",
    )
    assert wait_s > 1
    device.steps()
    assert device.serves() == "sample-1"


def test_bytes_that_rot_before_the_switch_do_not_quarantine_the_variant(
    device: AgentInProcess,
) -> None:
    device.assign(1, 1)
    device.steps()
    device.assign(2, 2)
    while device.state() is not State.SWITCHED:
        device.loop.step()
        device.clock.advance(0.5)
    found = device.journal.installation()
    assert found is not None
    assert found.target is not None
    path = device.slots.blobs.path(found.target.variant)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"?")
    device.steps(3)
    outcome = device.journal.last_outcome()
    assert outcome is not None
    # Rotten bytes are the disk's fault: not quarantined.
    assert "does not start" in outcome.reason
    assert device.journal.quarantined() == ()
    assert device.serves() == "sample-1"


def test_a_disk_that_refuses_for_a_while_neither_ends_the_loop_nor_blames_a_model(
    device: AgentInProcess,
) -> None:
    device.assign(1, 1)
    device.steps()
    device.assign(2, 2, probation_s=0.0)
    while device.state() is not State.PROBATION:
        device.loop.step()
        device.clock.advance(0.5)
    device.journal._connection.execute("PRAGMA query_only=ON")
    device.loop.error_backoff = Backoff(
        first_s=0.01, longest_s=0.01, chance=random.Random(1)
    )
    thread = threading.Thread(target=device.loop.run)
    thread.start()
    wait_until(lambda: device.loop.error_backoff.failures > 3, "some failures")
    assert thread.is_alive()
    assert device.state() is State.PROBATION
    device.journal._connection.execute("PRAGMA query_only=OFF")
    wait_until(lambda: device.journal.outcome_of(2) is not None, "an outcome")
    device.loop.stop.set()
    thread.join(5)
    assert device.serves() == "sample-2"
    assert device.journal.quarantined() == ()
