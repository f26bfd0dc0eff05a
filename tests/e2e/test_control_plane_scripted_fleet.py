"""The control plane as a real process, and devices that speak its protocol."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from slmops.domain.blueprint import RolloutPolicy
from slmops.domain.device import DeviceFacts
from slmops.domain.installation import State
from slmops.domain.sync import (
    Assignment,
    EnrolRequest,
    InstallationReport,
    Installed,
    Report,
    SessionRequest,
    SyncRequest,
    TrialResult,
)
from slmops.registry.envelope import open_envelope
from slmops.registry.keys import SigningKey
from slmops.testing.sample_release import publish_sample, sample_release
from slmops.wire import codec

pytestmark = pytest.mark.slow


@dataclass(slots=True)
class Control:
    """A `slmops serve` process on one port, killed and started again at will."""

    workspace: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        arguments = ["serve", "--port", str(self.port), "--poll-s", "1"]
        with (self.workspace / "serve.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "slmops", *arguments],
                env={**os.environ, "SLMOPS_WORKSPACE": str(self.workspace)},
                stdout=log,
                stderr=log,
            )
        for _ in range(150):
            try:
                if httpx.get(f"{self.url}/healthz").status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.1)
        raise AssertionError((self.workspace / "serve.log").read_text())

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def operator(self, method: str, path: str, body: object = None) -> httpx.Response:
        token = (self.workspace / "control" / "operator-token").read_text().strip()
        return httpx.request(
            method,
            self.url + path,
            json=body,
            headers={"Authorization": f"Bearer {token}"},
        )


@dataclass(slots=True)
class ScriptedDevice:
    """A device reduced to what it says."""

    control: Control
    key: SigningKey
    name: str
    memory_mib: int
    id: str = ""
    director: str = ""
    session: str = ""
    counter: int = 0
    seen: dict[int, str] = field(default_factory=dict)
    active: Installed | None = None
    installation: InstallationReport | None = None
    assignment: int = 0

    @property
    def facts(self) -> DeviceFacts:
        return DeviceFacts(
            memory_mib=self.memory_mib,
            disk_mib=4000,
            cpu_count=2,
            architecture="x86_64",
            runtimes=("echo",),
        )

    def enrol(self, token: str) -> httpx.Response:
        answer = self.post(
            "/v1/enrol",
            EnrolRequest(
                token=token,
                public_key=self.key.public_hex,
                signature=self.key.sign(f"slmops-enrol:{token}".encode()),
                facts=self.facts,
                name=self.name,
            ),
        )
        if answer.is_success:
            self.id = answer.json()["device"]
            self.director = answer.json()["director_key"]
        return answer

    def open_session(self) -> None:
        self.counter += 1
        message = f"slmops-session:{self.id}:{self.counter}".encode()
        answer = self.post(
            "/v1/session",
            SessionRequest(
                device=self.id, counter=self.counter, signature=self.key.sign(message)
            ),
        )
        self.session = answer.raise_for_status().json()["token"]

    def sync(self, reports: tuple[Report, ...] = ()) -> httpx.Response:
        answer = self.post(
            "/v1/sync",
            SyncRequest(
                facts=self.facts,
                assignment=self.assignment,
                active=self.active,
                installation=self.installation,
                reports=reports,
            ),
        )
        if answer.status_code == 200:
            payload = open_envelope(answer.json()["assignment"], self.director)
            self.obey(codec.decode_json(payload, Assignment, where="assignment"))
        return answer

    def obey(self, wanted: Assignment) -> None:
        """Note the assignment; a second target for a known number is a failure."""
        assert wanted.device == self.id
        assert self.seen.setdefault(wanted.sequence, wanted.variant) == wanted.variant
        self.assignment = wanted.sequence
        self.active = Installed(release=wanted.release, variant=wanted.variant)
        self.installation = InstallationReport(
            assignment=wanted.sequence,
            state=State.COMMITTED,
            entered_at=1.0,
            trial=TrialResult(passed=True, reason="golden prompts: fine"),
        )

    def post(self, path: str, document: object) -> httpx.Response:
        return httpx.post(
            self.control.url + path,
            content=codec.encode_json(document),
            headers={"Authorization": f"Bearer {self.session or 'none'}"},
        )


@pytest.fixture
def control(tmp_path: Path) -> Iterator[Control]:
    release = sample_release()
    rollout = RolloutPolicy(soak_s=0, probation_s=0)
    quick = replace(release, blueprint=replace(release.blueprint, rollout=rollout))
    publish_sample(tmp_path, [quick], now=time.time())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running = Control(workspace=tmp_path, port=port)
    running.start()
    yield running
    running.kill()


def new_token(control: Control) -> str:
    answer = control.operator("POST", "/v1/tokens", {})
    return str(answer.raise_for_status().json()["token"])


def enrolled(control: Control, folder: Path, count: int) -> list[ScriptedDevice]:
    devices = []
    for index in range(count):
        device = ScriptedDevice(
            control=control,
            key=SigningKey.create(folder / "devices" / f"{index}.key"),
            name=f"device-{index}",
            memory_mib=(512, 4096)[index % 2],
        )
        device.enrol(new_token(control)).raise_for_status()
        device.open_session()
        devices.append(device)
    return devices


def play(control: Control, fleet: list[ScriptedDevice], rollout: str) -> Any:  # noqa: ANN401
    """Let devices sync until the rollout ends."""
    state: Any = None
    for _ in range(200):
        for device in fleet:
            assert device.sync().status_code in {200, 304}
        state = control.operator("GET", f"/v1/rollouts/{rollout}").json()
        if state["state"] != "running":
            return state
        time.sleep(0.1)
    raise AssertionError(f"rollout still runs: {state}")


def test_an_enrolment_token_works_once_and_only_with_its_key(
    control: Control, tmp_path: Path
) -> None:
    token = new_token(control)
    first = ScriptedDevice(
        control, SigningKey.create(tmp_path / "a.key"), "first", memory_mib=512
    )
    assert first.enrol(token).is_success
    second = ScriptedDevice(
        control, SigningKey.create(tmp_path / "b.key"), "second", memory_mib=512
    )
    assert second.enrol(token).status_code == 403
    assert second.enrol("enrol_made-up").status_code == 403


BAD_BODIES = (
    b"",
    b"{",
    b"[]",
    b"null",
    b'"x"',
    b'{"facts": 3}',
    b"\xff\xfe",
    b"[" * 20_000,
)


def test_bad_sync_bodies_are_refused_and_the_control_plane_stays_up(
    control: Control, tmp_path: Path
) -> None:
    (device,) = enrolled(control, tmp_path, 1)
    for body in BAD_BODIES:
        answer = httpx.post(
            f"{control.url}/v1/sync",
            content=body,
            headers={"Authorization": f"Bearer {device.session}"},
        )
        assert answer.status_code == 422, body[:20]
        assert answer.json()["error"]["code"] == "invalid_input"
    assert httpx.get(f"{control.url}/healthz").status_code == 200


def test_a_kill_in_mid_rollout_loses_nothing_and_gives_no_device_two_targets(
    control: Control, tmp_path: Path
) -> None:
    fleet = enrolled(control, tmp_path, 6)
    started = control.operator("POST", "/v1/rollouts", {"release": "sample-1"})
    rollout = started.raise_for_status().json()["id"]
    report = Report(sequence=1, started_at=0, ended_at=60, release=None, requests=7)
    for _ in range(20):
        for device in fleet:
            assert device.sync(reports=(report,)).status_code in {200, 304}
        if any(device.seen for device in fleet):
            break
        time.sleep(0.2)
    assert any(device.seen for device in fleet)
    control.kill()
    control.start()
    ended = play(control, fleet, rollout)
    assert ended["state"] == "done", ended
    assert {member["outcome"] for member in ended["members"]} == {"succeeded"}
    assert all(len(device.seen) == 1 for device in fleet)
