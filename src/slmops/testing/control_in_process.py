"""A control plane in this process that moves only when a test tells it to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from slmops.control.app import create_app
from slmops.control.plane import Plane
from slmops.control.settings import ControlSettings
from slmops.domain.blueprint import OnHalt, RolloutPolicy, WavePlan
from slmops.domain.device import DeviceFacts
from slmops.domain.installation import State
from slmops.domain.release import Release
from slmops.testing.sample_release import (
    SAMPLE_TIME,
    PublishedSample,
    publish_sample,
    sample_release,
)
from slmops.testing.scripted_device import ScriptedDevice

QUICK_POLICY = RolloutPolicy(
    waves=(WavePlan(count=2), WavePlan(share=1.0)),
    tolerated_failure_rate=0.2,
    alpha=0.3,
    soak_s=0.0,
    deadline_s=100.0,
    probation_s=1.0,
    on_halt=OnHalt.REVERT,
)
"""Two waves, the first of two devices; halts after two failures."""


def quick_release(version: int = 1, *, policy: RolloutPolicy = QUICK_POLICY) -> Release:
    """Return a sample release that is rolled out without waiting."""
    release = sample_release(version)
    return replace(release, blueprint=replace(release.blueprint, rollout=policy))


@dataclass(slots=True)
class ControlInProcess:
    """Real store, real registry, real routes; a clock and an engine that tests drive."""

    http: TestClient
    """Calls the routes without a socket."""
    plane: Plane
    """What runs."""
    sample: PublishedSample
    """Its workspace and releases."""
    settings: ControlSettings
    """As it was built."""
    times: list[float] = field(default_factory=lambda: [SAMPLE_TIME])
    """The clock: one Unix time."""

    def __enter__(self) -> "ControlInProcess":
        self.http.__enter__()
        return self

    def __exit__(self, *_error: object) -> None:
        self.http.__exit__(None, None, None)

    def restart(self) -> None:
        """Stop, and start anew on the same workspace; for use inside ``with control:``."""
        self.http.__exit__(None, None, None)
        self.http, self.plane = _open(self.settings, self.times)
        self.http.__enter__()

    @property
    def operator(self) -> dict[str, str]:
        """The operator's credential."""
        path = self.sample.workspace.control / "operator-token"
        return {"Authorization": f"Bearer {path.read_text().strip()}"}

    def get(self, path: str, status: int = 200) -> Any:  # noqa: ANN401 - a tree
        """Read as the operator."""
        answer = self.http.get(path, headers=self.operator)
        assert answer.status_code == status, answer.text
        return answer.json()

    def post(self, path: str, body: object = None, status: int = 200) -> Any:  # noqa: ANN401 - a tree
        """Order something as the operator."""
        answer = self.http.post(path, json=body, headers=self.operator)
        assert answer.status_code == status, answer.text
        return answer.json()

    def enrol(
        self,
        name: str,
        memory_mib: int = 512,
        *,
        bad_releases: Mapping[str, str] | None = None,
        steps: Sequence[State] = (),
    ) -> ScriptedDevice:
        """Enrol a scripted device."""
        token = self.post("/v1/tokens", {}, status=201)["token"]
        facts = DeviceFacts(
            memory_mib=memory_mib, disk_mib=4000, cpu_count=1, architecture="x86_64"
        )
        device = ScriptedDevice(
            name=name,
            facts=facts,
            steps=tuple(steps),
            bad_releases=bad_releases or {},
        )
        device.enrol(self.http, token)
        return device

    def tick(self, seconds: float = 0.0) -> None:
        """Let time pass and the engine work until it has nothing to do."""
        self.times[0] += seconds
        for _ in range(50):
            if not self.plane.engine.run_pass(self.times[0]):
                return
        raise AssertionError("the engine never comes to rest")

    def play(self, *devices: ScriptedDevice, rounds: int = 12) -> None:
        """Let devices and engine take turns."""
        for _ in range(rounds):
            self.tick(1.0)
            for device in devices:
                status = device.sync(self.http)
                assert status in {200, 304}, status
        self.tick()


def control_in_process(
    folder: Path, releases: Sequence[Release] = (), **settings: float
) -> ControlInProcess:
    """Build a control plane; enter its `http` to start it, exit to stop.

    Args:
        folder: of the workspace.
        releases: published; one quick release by default.
        settings: fields of `ControlSettings`.
    """
    sample = publish_sample(folder, releases or (quick_release(),))
    # The background engine sleeps: the test drives it, on a clock of its own.
    chosen: dict[str, Any] = {"engine_s": 1e6, "device_burst": 1000, **settings}
    built = ControlSettings(workspace=sample.workspace, **chosen)
    times = [SAMPLE_TIME]
    http, plane = _open(built, times)
    return ControlInProcess(
        http=http, plane=plane, sample=sample, settings=built, times=times
    )


def _open(settings: ControlSettings, times: list[float]) -> tuple[TestClient, Plane]:
    app = create_app(settings)
    plane: Plane = app.state.plane
    plane.clock = lambda: times[0]
    # News would wake the background engine in the middle of a test's own pass.
    plane.wake.set = lambda: None  # type: ignore[method-assign]
    return TestClient(app, raise_server_exceptions=False), plane
