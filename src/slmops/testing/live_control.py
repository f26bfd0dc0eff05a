"""A control plane process and devices without models, for tests of operator commands."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx

from slmops.domain.blueprint import WavePlan
from slmops.domain.device import DeviceFacts
from slmops.testing.control_in_process import QUICK_POLICY, quick_release
from slmops.testing.control_process import ControlProcess
from slmops.testing.sample_release import publish_sample
from slmops.testing.scripted_device import ScriptedDevice

_POLICY = replace(QUICK_POLICY, waves=(WavePlan(count=2), WavePlan(share=1.0)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Ran:
    """What a command did."""

    code: int
    """Exit code."""
    out: str
    """Standard output."""
    err: str
    """Standard error."""


Slmops = Callable[..., Ran]
"""Runs `slmops` with arguments."""


@dataclass(slots=True)
class LiveControl:
    """A running control plane; sample-1, sample-2 and so on are published."""

    control: ControlProcess
    """The process."""
    http: httpx.Client
    """Calls it with the operator's token."""

    def enrol(
        self,
        name: str,
        *,
        memory_mib: int = 512,
        labels: Mapping[str, str] | None = None,
        bad_releases: Mapping[str, str] | None = None,
    ) -> ScriptedDevice:
        """Enrol a device that obeys a script."""
        token = self.http.post("/v1/tokens").json()["token"]
        facts = DeviceFacts(
            memory_mib=memory_mib, disk_mib=900, cpu_count=1, architecture="x86_64"
        )
        device = ScriptedDevice(
            name=name,
            facts=facts,
            labels=labels or {},
            bad_releases=bad_releases or {},
        )
        device.enrol(self.http, token)
        return device

    @contextmanager
    def syncing(self, devices: Sequence[ScriptedDevice]) -> Iterator[None]:
        """Let devices sync in the background, through outages."""
        end = threading.Event()
        thread = threading.Thread(target=self._sync, args=(devices, end))
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join()

    def _sync(self, devices: Sequence[ScriptedDevice], end: threading.Event) -> None:
        with httpx.Client(base_url=self.control.url, timeout=10) as http:
            while not end.wait(0.02):
                for device in devices:
                    try:
                        device.sync(http)
                    except httpx.HTTPError:
                        end.wait(0.05)


@contextmanager
def live_control(folder: Path, *, releases: int) -> Iterator[LiveControl]:
    """Publish sample releases, start a control plane, end it at the end."""
    now = time.time()  # noqa: TID251 - a composition root: metadata expires
    published = [quick_release(n + 1, policy=_POLICY) for n in range(releases)]
    publish_sample(folder, published, now=now)
    control = ControlProcess(workspace=folder)
    control.start()
    try:
        with control.operator() as http:
            yield LiveControl(control=control, http=http)
    finally:
        control.kill_if_running()
