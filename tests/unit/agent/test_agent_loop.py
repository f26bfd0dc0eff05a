"""The loop step by step: real parts, a simulated clock, a control plane of one socket."""

import json
import os
import random
import re
import signal
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx
import pytest

from slmops.agent.actions import Actions
from slmops.agent.clock import Backoff
from slmops.agent.download import Downloads
from slmops.agent.journal import Journal
from slmops.agent.link import Link, http_client
from slmops.agent.loop import AgentLoop, Identity
from slmops.agent.models import Models, ModelTimes
from slmops.agent.offers import Offers, Registry
from slmops.agent.slots import POINTER, SlotStore
from slmops.agent.telemetry import Answered, Telemetry
from slmops.agent.upstream import Gateway
from slmops.domain.device import Budget, DeviceClass, DeviceFacts
from slmops.domain.errors import UntrustedError
from slmops.domain.installation import State
from slmops.domain.release import ExpectedToken, GoldenPrompt, GoldenSet
from slmops.domain.sync import Assignment
from slmops.registry.envelope import seal
from slmops.registry.keys import SigningKey
from slmops.registry.trust import TrustedRegistry
from slmops.testing.clock import SimulatedClock
from slmops.testing.raw_server import RawServer, Received, Reply, answer, head, raw
from slmops.testing.sample_release import (
    SAMPLE_TIME,
    PublishedSample,
    digest_of,
    publish_sample,
    sample_release,
)
from slmops.testing.stage import echo_artefact, wait_until
from slmops.wire import codec

pytestmark = pytest.mark.slow  # real processes

FACTS = DeviceFacts(
    memory_mib=1024, disk_mib=100, cpu_count=1, architecture="x", runtimes=("echo",)
)
GOLDEN = GoldenSet(
    prompts=(
        GoldenPrompt(
            prompt="Hi",
            answer=(
                ExpectedToken(text="You", logprob=-0.1),
                ExpectedToken(text=" said", logprob=-0.1),
            ),
        ),
    )
)
ARTEFACTS = {
    1: echo_artefact(),
    2: echo_artefact(start_delay_ms=1),
    3: echo_artefact(logprob=-4.0),
}
"""By version; the third answers otherwise than its card says."""
NOTHING_NEW = raw(head(304, Slmops_Next_Poll="30"))


@dataclass
class Device:
    """The agent's parts, and the control plane they talk to."""

    folder: Path
    server: RawServer
    client: httpx.Client
    published: PublishedSample
    clock: SimulatedClock = field(default_factory=lambda: SimulatedClock(SAMPLE_TIME))
    sync_reply: Reply = NOTHING_NEW
    obstacle: str | None = None
    blob_reply: Reply | None = None
    memory_mib: int = FACTS.memory_mib

    def __post_init__(self) -> None:
        self.director = SigningKey.create(self.folder / "director.key")
        self.key = SigningKey.create(self.folder / "device.key")
        self.journal = Journal.open(self.folder / "journal.db", now=self.clock.now())
        self.server.replies = [self._reply]
        self.build()

    def build(self) -> None:
        """Make the parts that hold no state of their own, as a restart does."""
        self.slots = SlotStore(self.folder)
        self.telemetry = Telemetry(self.clock.now)
        self.models = Models(
            slots=self.slots,
            gateway=Gateway(hold_s=1, max_waiting=4),
            telemetry=self.telemetry,
            clock=self.clock,
            backoff=self._backoff(),
            times=ModelTimes(stop_s=1.0, drain_s=1.0),
        )
        offers = Offers(
            device="till-1",
            director_key=self.director.public_hex,
            facts=FACTS,
            open_registry=self._registry,
        )
        self.actions = Actions(
            journal=self.journal,
            slots=self.slots,
            models=self.models,
            downloads=Downloads(
                self.client, self.slots.blobs, self.folder / "incoming"
            ),
            offers=offers,
            telemetry=self.telemetry,
            clock=self.clock,
            memory_mib=self.memory_mib,
            obstacle=lambda _: self.obstacle,
            pause=lambda: False,
        )
        self.loop = AgentLoop(
            identity=Identity(facts=FACTS, labels={}),
            journal=self.journal,
            slots=self.slots,
            models=self.models,
            actions=self.actions,
            offers=offers,
            link=Link(
                self.client,
                device="till-1",
                key=self.key,
                journal=self.journal,
                clock=self.clock,
            ),
            telemetry=self.telemetry,
            clock=self.clock,
            sync_backoff=self._backoff(),
            error_backoff=self._backoff(),
            window_s=60.0,
            stop=threading.Event(),
        )

    def restart(self) -> str | None:
        """End the agent as a power cut does, and start it anew."""
        self.models.close(stop_s=1.0)
        self.build()
        return self.loop.resume()

    def close(self) -> None:
        self.models.close(stop_s=1.0)
        self.journal.close()

    def assign(self, version: int, sequence: int, **change: object) -> str:
        """Let the next syncs bring an assignment; return its envelope."""
        release, digest = self.published.catalog.load(f"sample-{version}")
        assignment = Assignment(
            device="till-1",
            sequence=sequence,
            rollout="r-1",
            release=release.label,
            release_digest=digest,
            variant=release.variants[0].digest,
            device_class="any",
            probation_s=2.0,
            issued_at=self.clock.now(),
        )
        changed = replace(assignment, **change)  # type: ignore[arg-type]
        envelope = seal(codec.encode_json(changed), self.director)
        self.bring(envelope)
        return envelope

    def bring(self, envelope: str) -> None:
        content = json.dumps({"assignment": envelope}).encode()
        self.sync_reply = answer(body=content, Slmops_Next_Poll="30")

    def steps(self, most: int = 60) -> list[State]:
        """Step until nothing happens; return the states that were entered."""
        entered: list[State] = []
        for _ in range(most):
            self.loop.step()
            self.clock.advance(0.5)
            found = self.state()
            if found is not None and (not entered or entered[-1] is not found):
                entered.append(found)
            if found is State.IDLE and len(entered) > 1:
                break
        return entered

    def state(self) -> State | None:
        found = self.journal.installation()
        return None if found is None else found.state

    def serves(self) -> str | None:
        current = self.models.gateway.current
        return None if current is None else current.release

    def syncs(self) -> list[dict[str, object]]:
        return [
            json.loads(request.body)
            for request in self.server.received
            if request.path == "/v1/sync"
        ]

    def _registry(self) -> Registry:
        return TrustedRegistry(
            self.folder / "trust",
            self.published.keys.root_json,
            self.published.workspace.registry,
            now=self.clock.now,
        )

    def _backoff(self) -> Backoff:
        return Backoff(first_s=1.0, longest_s=60.0, chance=random.Random(1))

    def _reply(self, connection: socket.socket, request: Received) -> None:
        if request.path == "/v1/session":
            reply = answer(body=b'{"token": "t", "expires_in_s": 3600}')
        elif request.path == "/v1/sync":
            reply = self.sync_reply
        elif self.blob_reply is not None:
            reply = self.blob_reply
        else:
            name = re.sub(".*/", "sha256:", request.path)
            found = [raw for raw in ARTEFACTS.values() if digest_of(raw) == name]
            kind = "application/octet-stream"
            reply = answer(200, found[0], kind=kind) if found else answer(404)
        reply(connection, request)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> PublishedSample:
    everybody = DeviceClass(
        name="any", context_tokens=256, runtime="echo", budget=Budget(memory_mib=250)
    )
    releases = [
        replace(
            release,
            variants=tuple(
                replace(variant, golden_logprobs=(-0.1,))
                for variant in release.variants
            ),
        )
        for release in (
            sample_release(
                version,
                classes=(everybody,),
                artefacts={"any": content},
                golden=GOLDEN,
            )
            for version, content in ARTEFACTS.items()
        )
    ]
    return publish_sample(
        tmp_path_factory.mktemp("workspace"),
        releases,
        artefacts=list(ARTEFACTS.values()),
        now=SAMPLE_TIME,
    )


@pytest.fixture
def device(tmp_path: Path, published: PublishedSample) -> Iterator[Device]:
    with RawServer(replies=[]) as server, http_client(server.url) as client:
        device = Device(tmp_path, server, client, published)
        yield device
        device.close()


GOOD_WAY = [
    *(State.OFFERED, State.WAITING, State.DOWNLOADING, State.VERIFIED, State.STAGED),
    *(State.SWITCHED, State.PROBATION, State.COMMITTED, State.IDLE),
]


def test_an_assignment_is_installed_state_by_state(device: Device) -> None:
    device.assign(1, 1)
    assert device.steps() == GOOD_WAY
    assert device.serves() == "sample-1"
    outcome = device.journal.last_outcome()
    assert outcome is not None
    assert outcome.trial is not None
    assert outcome.trial.passed
    assert outcome.bytes_downloaded == len(ARTEFACTS[1])
    # The outcome is reported at once, not at the next poll.
    device.loop.step()
    last = device.syncs()[-1]["installation"]
    assert isinstance(last, dict)
    assert last["state"] == "committed"


def test_a_bad_update_rolls_back_is_quarantined_and_not_tried_again(
    device: Device,
) -> None:
    device.assign(1, 1)
    device.steps()
    device.assign(3, 2)
    entered = device.steps()
    assert entered[-3:] == [State.PROBATION, State.ROLLED_BACK, State.IDLE]
    assert device.serves() == "sample-1"
    (quarantined,) = device.journal.quarantined()
    assert quarantined.release == "sample-3"
    assert "answers differ from the release card" in quarantined.reason
    # The same again, and the same with a new number: neither is tried.
    device.steps(5)
    device.assign(3, 3)
    device.steps(5)
    assert device.state() is State.IDLE
    assert len(device.journal.outcomes()) == 2


def test_a_death_under_live_traffic_in_the_soak_fails_the_trial(
    device: Device,
) -> None:
    device.assign(1, 1)
    device.steps()
    device.assign(2, 2, probation_s=1000.0)
    device.steps(20)
    assert (device.state(), device.serves()) == (State.PROBATION, "sample-2")
    child = device.models.serving
    assert child is not None
    os.kill(child.worker.pid, signal.SIGKILL)
    wait_until(lambda: not child.worker.alive(), "its end")
    # Dead, but not yet counted by the supervisor: no verdict on a missing figure.
    device.loop.step()
    assert device.state() is State.PROBATION
    device.models._watch_once()
    device.steps(5)
    outcome = device.journal.last_outcome()
    assert outcome is not None
    assert outcome.state is State.ROLLED_BACK
    assert "ended 1 times under live traffic" in outcome.reason
    device.clock.advance(100)
    device.models._watch_once()
    assert device.serves() == "sample-1"


def test_failed_requests_in_the_soak_fail_the_trial(device: Device) -> None:
    device.assign(1, 1, probation_s=1000.0)
    device.steps(20)
    for _ in range(3):
        device.telemetry.failed("sample-1")
    device.steps(5)
    outcome = device.journal.last_outcome()
    assert outcome is not None
    assert outcome.reason == "3 of 3 live requests failed"
    assert device.serves() is None
    assert "rolled back" in device.models.gateway.reason


@pytest.mark.parametrize(
    "state",
    [State.DOWNLOADING, State.VERIFIED, State.STAGED, State.SWITCHED, State.PROBATION],
)
def test_a_restart_in_any_state_serves_the_proven_model_and_goes_on(
    device: Device, state: State
) -> None:
    device.assign(1, 1)
    device.steps()
    device.assign(2, 2, probation_s=30.0)
    while device.state() is not state:
        device.loop.step()
        device.clock.advance(0.5)
    assert device.restart() is None
    wanted = device.models.wanted
    assert wanted is not None
    assert wanted.release == "sample-1"
    device.models._watch_once()
    assert device.serves() == "sample-1"
    device.steps(100)
    assert device.serves() == "sample-2"
    outcome = device.journal.last_outcome()
    assert outcome is not None
    assert (outcome.assignment, outcome.state) == (2, State.COMMITTED)


def test_a_newer_assignment_ends_an_undecided_installation(device: Device) -> None:
    device.assign(1, 1)
    device.steps()
    device.obstacle = "waiting for disk"
    device.assign(2, 2)
    device.steps(10)
    assert device.state() is State.WAITING
    found = device.journal.installation()
    assert found is not None
    assert found.reason == "waiting for disk"
    device.clock.advance(60)
    device.assign(1, 3)
    device.steps(10)
    outcome = device.journal.outcome_of(2)
    assert outcome is not None
    assert outcome.reason == "superseded by assignment 3"
    assert device.serves() == "sample-1"


@pytest.mark.parametrize("name", ["replay", "other device", "stranger", "garbage"])
def test_an_assignment_that_is_none_of_ours_changes_nothing(
    device: Device, name: str
) -> None:
    device.assign(1, 5)
    device.steps()
    known = device.journal.assignment()
    if name == "replay":
        device.assign(2, 5)
    elif name == "other device":
        device.assign(2, 6, device="till-2")
    elif name == "stranger":
        stranger = SigningKey.create(device.folder / "stranger.key")
        device.bring(seal(b"{}", stranger))
    else:
        device.bring("garbage")
    device.clock.advance(60)
    device.steps(5)
    assert device.journal.assignment() == known
    assert device.serves() == "sample-1"


def test_a_lost_journal_does_not_let_an_old_assignment_back_in(device: Device) -> None:
    device.assign(2, 7)
    device.steps()
    old = device.assign(1, 6)
    device.journal.close()
    (device.folder / "journal.db").unlink()
    device.journal = Journal.open(device.folder / "journal.db", now=device.clock.now())
    device.restart()
    device.bring(old)
    device.steps(5)
    assert device.journal.assignment() is None
    assert device.syncs()[-1]["assignment"] == 7


def test_reports_wait_while_the_control_plane_fails_ever_more_seldom(
    device: Device,
) -> None:
    device.telemetry.answered("sample-1", Answered(output_tokens=3))
    device.sync_reply = answer(503, b"{}")
    waits = []
    for _ in range(9):
        device.loop.sync()
        waits.append(device.loop._next_sync - device.clock.monotonic())
        device.clock.advance(waits[-1])
    for wait, longest in zip(waits, (1, 2, 4, 8, 16, 32, 60, 60, 60), strict=True):
        assert longest / 2 <= wait <= longest
    (waiting,) = device.journal.reports_to_send(most=9)
    assert waiting.output_tokens == 3
    device.sync_reply = NOTHING_NEW
    device.loop.sync()
    assert device.journal.reports_to_send(most=9) == ()
    assert device.loop._next_sync - device.clock.monotonic() == 30.0
    sent = [sync["reports"] for sync in device.syncs()]
    assert sent[0] == sent[-1]


@pytest.mark.parametrize(
    "reply",
    [
        answer(200, b"{}"),
        answer(200, b"<html>Log in</html>", kind="text/html"),
        answer(401, b"{}"),
        answer(404, b"{}"),
        raw(b""),
    ],
    ids=["json", "portal", "401", "404", "nothing"],
)
def test_an_answer_of_somebody_else_acknowledges_no_report(
    device: Device, reply: Reply
) -> None:
    device.telemetry.failed("sample-1")
    device.sync_reply = reply
    device.loop.sync()
    assert len(device.journal.reports_to_send(most=9)) == 1


def test_reports_that_the_control_plane_refuses_do_not_block_all_others(
    device: Device,
) -> None:
    device.telemetry.failed("sample-1")
    device.sync_reply = answer(422, b"{}")
    device.loop.sync()
    assert device.journal.reports_to_send(most=9) == ()


def test_an_action_that_fails_in_an_unforeseen_way_ends_after_some_tries(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    device.assign(1, 1)
    device.loop.step()

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Path, "replace", broken)  # the slot pointer cannot be written
    tries = 0
    while device.journal.last_outcome() is None:
        try:
            device.loop.step()
        except ZeroDivisionError:
            tries += 1
            device.loop._count_crash()
        device.clock.advance(1)
        assert tries < 50
        if device.state() is State.ROLLED_BACK:
            monkeypatch.undo()
    outcome = device.journal.last_outcome()
    assert outcome is not None
    assert "unexpected error" in outcome.reason


def test_a_damaged_pointer_is_mended_from_the_journal(device: Device) -> None:
    device.assign(1, 1)
    device.steps()
    (device.folder / POINTER).write_bytes(b"\x00" * 50)
    device.restart()
    device.models._watch_once()
    assert device.serves() == "sample-1"
    assert device.slots.read().active is not None


def test_bytes_that_rot_while_serving_are_noticed_at_the_next_start_and_fetched_anew(
    device: Device,
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
    device: Device,
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
    device: Device,
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
    device: Device,
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
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    device.assign(1, 1)
    while device.state() is not State.DOWNLOADING:
        device.loop.step()
    monkeypatch.setattr("slmops.agent.download.os.fsync", no_space)
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


def test_where_two_models_do_not_fit_the_old_one_goes_first_and_comes_back(
    device: Device,
) -> None:
    device.memory_mib = 241  # the card promises 240, and the old one takes some too
    device.build()
    device.assign(1, 1)
    device.steps()
    old = device.models.serving
    assert old is not None
    device.assign(3, 2)
    while device.state() is not State.PROBATION:
        device.loop.step()
        device.clock.advance(0.5)
    assert not old.worker.alive()
    assert device.serves() == "sample-3"  # nobody else can
    while device.state() is not State.IDLE:
        device.loop.step()
    assert device.models.gateway.holding  # requests wait for the old one
    device.clock.advance(1)
    device.models._watch_once()
    assert device.serves() == "sample-1"


def test_bytes_that_rot_before_the_switch_do_not_quarantine_the_variant(
    device: Device,
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


def test_the_agent_s_own_end_is_no_verdict_on_a_model(device: Device) -> None:
    device.assign(1, 1)
    device.steps()
    device.assign(2, 2)
    while device.state() is not State.PROBATION:
        device.loop.step()
        device.clock.advance(0.5)
    trial = device.actions._trial
    assert trial is not None
    device.loop.stop.set()
    trial.worker.stop(1.0)
    device.loop.step()
    assert device.state() is State.PROBATION
    assert device.journal.quarantined() == ()
    device.restart()
    device.models._watch_once()
    device.steps()
    assert device.serves() == "sample-2"


def test_a_disk_that_refuses_for_a_while_neither_ends_the_loop_nor_blames_a_model(
    device: Device,
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


def test_the_loop_s_thread_survives_errors_and_ends_when_told(device: Device) -> None:
    device.client.close()  # every sync fails in an unforeseen way
    thread = threading.Thread(target=device.loop.run)
    thread.start()
    wait_until(
        lambda: device.loop.error_backoff.failures or device.loop.sync_backoff.failures,
        "a failure",
    )
    assert thread.is_alive()
    device.loop.stop.set()
    thread.join(5)
    assert not thread.is_alive()


def test_nothing_is_installed_without_an_assignment(device: Device) -> None:
    device.steps(3)
    assert device.state() is None
    assert device.serves() is None
    assert "no model is installed" in device.models.gateway.reason
