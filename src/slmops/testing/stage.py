"""A whole fleet of real processes on one machine: registry, control plane, agents.

All of them end with the process that set the stage up, also when that is killed.

Releases carry echo artefacts (`slmops.runtimes.echo_model`) with golden answers that
were really recorded, so a bad artefact fails the real trial on the real agent.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx

from slmops.domain.blueprint import RolloutPolicy, WavePlan
from slmops.domain.device import DeviceClass
from slmops.domain.release import GoldenSet, Release
from slmops.registry.blobs import BlobStore
from slmops.registry.workspace import Workspace
from slmops.runtimes.address import Address
from slmops.runtimes.base import WorkerSettings
from slmops.runtimes.golden import ask_golden, record_golden
from slmops.runtimes.worker import start_worker
from slmops.testing.sample_release import publish_sample, sample_release
from slmops.testing.tether import tethered
from slmops.wire import codec

QUICK = RolloutPolicy(
    waves=(WavePlan(share=1.0),), soak_s=0.0, probation_s=0.5, deadline_s=600.0
)
"""One wave, next to no waiting."""
PROMPTS = ("Capital of France?", "Name a colour.")
_END_S = 5.0
_START_S = 30.0


def echo_artefact(**behaviour: object) -> bytes:
    """Return the bytes of an echo model that behaves so."""
    return codec.encode_json({"echo": 1, **behaviour})


@dataclass(slots=True)
class Stage:
    """Everything lies below `folder`; `close` ends all processes it started."""

    folder: Path
    """For workspace, states and logs."""
    policy: RolloutPolicy = QUICK
    """Of all releases."""
    url: str = ""
    """Control plane."""
    _processes: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)
    _golden: GoldenSet | None = None

    @property
    def workspace(self) -> Workspace:
        """Registry, keys and control plane."""
        return Workspace(root=self.folder / "workspace")

    def publish(
        self, version: int, artefact: bytes, *, claims: bytes | None = None
    ) -> Release:
        """Publish an echo release.

        Args:
            version: 1, 2, 3 …
            artefact: of `echo_artefact`; what devices get.
            claims: whose golden scores the card promises; the artefact's own by default.
        """
        golden = self._record(artefact)
        promised = self._scores(claims or artefact, golden)
        everybody = DeviceClass(name="any", context_tokens=256, runtime="echo")
        release = sample_release(
            version,
            classes=(everybody,),
            artefacts={"any": artefact},
            golden=golden,
        )
        release = replace(
            release,
            blueprint=replace(release.blueprint, rollout=self.policy),
            variants=tuple(
                replace(variant, golden_logprobs=promised)
                for variant in release.variants
            ),
        )
        now = time.time()  # noqa: TID251 - a composition root: metadata expires
        publish_sample(self.workspace.root, [release], artefacts=[artefact], now=now)
        return release

    def serve(self, *, port: int | None = None) -> None:
        """Start the control plane."""
        chosen = port or free_port()
        self.url = f"http://127.0.0.1:{chosen}"
        self.start("control", ["serve", "--port", str(chosen), "--poll-s", "0.2"])
        wait_until(lambda: _answers(f"{self.url}/healthz"), "control plane")

    def enrol(self, name: str, *, memory_mib: int = 1024) -> Path:
        """Enrol a device and return its state folder."""
        token = self.operator("POST", "/v1/tokens", {"expires_in_s": 600})["token"]
        state = self.folder / name
        self.run(
            *("agent", "enrol", "--server", self.url, "--token", token),
            *("--state", str(state), "--name", name, "--memory-mib", str(memory_mib)),
        )
        return state

    def start_agent(self, state: Path, *, crash: Sequence[str] = ()) -> None:
        """Start the agent of a state folder; with `crash`, the crashing one.

        Args:
            state: of an enrolled device.
            crash: arguments of `slmops.testing.crash` beside ``--state``.
        """
        place = state / "endpoint.json"
        place.unlink(missing_ok=True)
        if crash:
            module = [sys.executable, "-m", "slmops.testing.crash"]
            self._spawn(state.name, [*module, "--state", str(state), *crash])
        else:
            self.start(
                state.name, ["agent", "run", "--state", str(state), "--port", "0"]
            )
        process = self._processes[state.name]
        wait_until(
            lambda: place.exists() or process.poll() is not None,
            f"endpoint of {state.name}",
        )

    def endpoint(self, state: Path) -> str:
        """Return the endpoint's base address."""
        tree = codec.parse_json(
            (state / "endpoint.json").read_bytes(), where="endpoint"
        )
        return str(tree["url"])

    def serving(self, state: Path) -> str | None:
        """Return the label an agent serves now, or None."""
        try:
            answer = httpx.get(f"{self.endpoint(state)}/v1/models", timeout=5)
        except (httpx.HTTPError, FileNotFoundError):
            return None
        listed = answer.json()["data"]
        return str(listed[0]["id"]) if listed else None

    def roll_out(self, label: str, *, allow_downgrade: bool = False) -> str:
        """Start a rollout and return its id."""
        order = {"release": label, "allow_downgrade": allow_downgrade}
        return str(self.operator("POST", "/v1/rollouts", order)["id"])

    def operator(self, method: str, path: str, body: object = None) -> Any:  # noqa: ANN401
        """Ask the control plane as its operator; return the tree."""
        token = (self.workspace.control / "operator-token").read_text().strip()
        answer = httpx.request(
            method,
            self.url + path,
            headers={"Authorization": f"Bearer {token}"},
            json=body,
            timeout=20,
        )
        answer.raise_for_status()
        return answer.json()

    def status(self, state: Path) -> Any:  # noqa: ANN401 - a tree
        """Return what `slmops agent status` says."""
        said = self.run("agent", "status", "--state", str(state), "--json")
        return codec.parse_json(said, where="status")

    def run(self, *arguments: str) -> bytes:
        """Run a command to its end and return what it printed."""
        result = self.try_run(*arguments)
        assert result.returncode == 0, result.stderr.decode()
        return result.stdout

    def try_run(self, *arguments: str) -> "subprocess.CompletedProcess[bytes]":
        """Run a command to its end, whatever that is."""
        return subprocess.run(
            [sys.executable, "-m", "slmops", *arguments],
            env=self._environment(),
            capture_output=True,
            check=False,
            timeout=60,
        )

    def process(self, name: str) -> "subprocess.Popen[bytes]":
        """Return a process that was started."""
        return self._processes[name]

    def start(self, name: str, arguments: Sequence[str]) -> None:
        """Start a `slmops` command under a name."""
        self._spawn(name, [sys.executable, "-m", "slmops", *arguments])

    def kill(self, name: str) -> None:
        """End a process as a power cut would."""
        process = self._processes.pop(name)
        process.kill()
        process.wait()

    def stop(self, name: str) -> float:
        """Ask a process to end; return how long it took, seconds."""
        process = self._processes.pop(name)
        begin = time.monotonic()
        process.send_signal(signal.SIGTERM)
        code = process.wait(30)
        assert code == 0, f"{name} ended with {code}: {self.log(name)}"
        return time.monotonic() - begin

    def wait_for_end(self, name: str, *, timeout_s: float = _START_S) -> int:
        """Wait until a process ended by itself; return its exit code."""
        return self._processes.pop(name).wait(timeout_s)

    def children(self, name: str) -> list[int]:
        """Return the process ids of a process's children: an agent's models."""
        tasks = Path(f"/proc/{self.process(name).pid}/task")
        listed = [path.read_text() for path in tasks.glob("*/children")]
        return [int(pid) for text in listed for pid in text.split()]

    def log(self, name: str) -> str:
        """Return the end of a process's log."""
        path = self.folder / f"{name}.log"
        return path.read_text(errors="replace")[-6000:] if path.exists() else ""

    def close(self) -> None:
        """End everything: asked first, then killed."""
        for process in self._processes.values():
            process.terminate()
        deadline = time.monotonic() + _END_S
        for process in self._processes.values():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()

    def _spawn(self, name: str, command: Sequence[str]) -> None:
        assert name not in self._processes, f"{name} runs already"
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                tethered(command),
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "SLMOPS_WORKSPACE": str(self.workspace.root),
            "SLMOPS_AGENT_TEST_RUNTIMES": "true",
        }

    def _record(self, artefact: bytes) -> GoldenSet:
        """Record once: all releases of a stage are asked the same."""
        if self._golden is None:
            with self._worker(artefact) as address:
                self._golden = record_golden(address, PROMPTS, 4)
        return self._golden

    def _scores(self, artefact: bytes, golden: GoldenSet) -> tuple[float, ...]:
        with self._worker(artefact) as address:
            run = ask_golden(address, golden)
        return tuple(score.logprobs[0] for score in run.scores)

    @contextlib.contextmanager
    def _worker(self, artefact: bytes) -> Iterator[Address]:
        blobs = BlobStore(self.folder / "scratch")
        path = blobs.path(blobs.put_bytes(artefact))
        with start_worker("echo", path, WorkerSettings(context_tokens=256)) as worker:
            yield worker.address


@contextlib.contextmanager
def stage(folder: Path, *, policy: RolloutPolicy = QUICK) -> Iterator[Stage]:
    """Set a stage up and end its processes at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    built = Stage(folder, policy=policy)
    try:
        yield built
    finally:
        built.close()


def wait_until(
    holds: Callable[[], object], what: str, *, timeout_s: float = _START_S
) -> None:
    """Poll until `holds` is true."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s:g} s"
        time.sleep(0.05)


def free_port() -> int:
    """Return a TCP port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).is_success
    except httpx.HTTPError:
        return False
