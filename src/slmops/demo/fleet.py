"""The demo's fleet: a control plane and real agents, each a process of its own."""

import socket
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import httpx

from slmops.control.auth import OPERATOR_TOKEN_FILE
from slmops.control.views import DeviceList, DeviceView, RolloutDetail, RolloutList
from slmops.demo.processes import Processes, answers, wait_for
from slmops.demo.summary import OnDevice
from slmops.domain.errors import UnavailableError
from slmops.domain.members import Outcome
from slmops.wire import codec

DEVICES: tuple[tuple[str, int], ...] = (
    ("gateway-1", 512),
    ("gateway-2", 512),
    ("till-1", 1024),
    ("till-2", 1024),
    ("workstation-1", 4096),
    ("workstation-2", 4096),
)
"""Name and memory in MiB that the device's owner gives to the agent."""

_START_S = 60.0
_REPORTS_S = 60.0
_ANSWER_TOKENS = 40

Document = TypeVar("Document")


@dataclass(slots=True)
class Fleet:
    """Starts, asks and reads what the demo runs."""

    processes: Processes
    folder: Path
    """Holds one state folder for each device."""
    control_url: str = ""
    _endpoints: dict[str, str] = field(default_factory=dict)
    _serving: set[str] = field(default_factory=set)

    def start_control(self) -> None:
        """Start the control plane and wait until it answers."""
        port = _free_port()
        self.control_url = f"http://127.0.0.1:{port}"
        self.processes.start("control", "serve", "--port", str(port), "--poll-s", "1")
        wait_for(
            "control plane answering",
            lambda: answers(f"{self.control_url}/healthz"),
            timeout_s=_START_S,
        )
        self.processes.variables["SLMOPS_SERVER"] = self.control_url

    def start_device(self, name: str, *, memory_mib: int) -> None:
        """Enrol a device with a token of its own and start its agent."""
        state = self.folder / name
        token = self.processes.run_json("device", "token")["token"]
        self.processes.run_json(
            *("agent", "enrol", "--server", self.control_url, "--token", token),
            *("--state", str(state), "--name", name, "--memory-mib", str(memory_mib)),
        )
        self.processes.start(name, "agent", "run", "--state", str(state), "--port", "0")
        place = state / "endpoint.json"
        wait_for(f"endpoint of {name}", place.exists, timeout_s=_START_S)
        tree = codec.parse_json(place.read_bytes(), where=str(place))
        self._endpoints[name] = tree["url"]

    @property
    def dashboard(self) -> str:
        """Address of the live page, the operator's token in its fragment."""
        return f"{self.control_url}/#token={self._operator_token()}"

    def newest_rollout(self) -> RolloutDetail:
        """Return the rollout that started last, with its members."""
        newest = self._get("/v1/rollouts", RolloutList).rollouts[0]
        return self._get(f"/v1/rollouts/{newest.id}", RolloutDetail)

    def devices(self) -> tuple[DeviceView, ...]:
        """Return all devices as last seen."""
        return self._get("/v1/devices", DeviceList).devices

    def newly_serving(self) -> Iterator[str]:
        """Yield endpoints that serve a model and did not at the last call."""
        for name, url in self._endpoints.items():
            if name not in self._serving and self._models(url):
                self._serving.add(name)
                yield url

    def wait_until_answering(self, label: str) -> int:
        """Wait until every device serves `label`; return how many do and answer."""
        wait_for(
            f"every device on {label}",
            lambda: all(label in self._models(url) for url in self._endpoints.values()),
            timeout_s=_START_S,
        )
        return sum(bool(self.ask("Say yes.", name)) for name in self._endpoints)

    def ask(self, question: str, name: str) -> str:
        """Ask a device through the `openai` client, as an application would.

        Raises:
            ModuleNotFoundError: the client is not installed; the command line says how.
        """
        import openai

        url = self._endpoints[name]
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="local", max_retries=0)
        completion = client.chat.completions.create(
            model=self._models(url)[0],
            messages=[{"role": "user", "content": question}],
            max_tokens=_ANSWER_TOKENS,
            temperature=0,
        )
        return completion.choices[0].message.content or ""

    def bytes_shipped(self) -> int:
        """Return the artefact bytes that devices reported to have downloaded."""
        return sum(device.bytes_downloaded for device in self.devices())

    def measured(self) -> dict[str, OnDevice]:
        """Wait until every device has reported its traffic; return medians by class."""

        def reported() -> bool:
            return all(d.decode_tokens_per_s is not None for d in self.devices())

        wait_for("a report from every device", reported, timeout_s=_REPORTS_S)
        by_class: dict[str, list[DeviceView]] = {}
        for device in self.devices():
            by_class.setdefault(device.device_class or "", []).append(device)
        return {
            name: OnDevice(
                devices=len(members),
                decode_tokens_per_s=round(
                    statistics.median(d.decode_tokens_per_s or 0.0 for d in members), 1
                ),
                peak_rss_mib=round(max(d.peak_rss_mib for d in members), 1),
            )
            for name, members in by_class.items()
        }

    def check_processes(self) -> None:
        """Fail at once when a control plane or an agent has ended by itself.

        Raises:
            UnavailableError: naming it.
        """
        died = self.processes.died()
        if died:
            raise UnavailableError(
                f"{', '.join(died)} ended; logs are in {self.processes.logs}"
            )

    def _models(self, url: str) -> list[str]:
        try:
            answer = httpx.get(f"{url}/v1/models", timeout=10)
        except httpx.HTTPError:
            return []
        return [model["id"] for model in answer.json().get("data", [])]

    def _get(self, path: str, kind: type[Document]) -> Document:
        answer = httpx.get(
            self.control_url + path,
            headers={"Authorization": f"Bearer {self._operator_token()}"},
            timeout=30,
        )
        return codec.decode_json(answer.raise_for_status().content, kind, where=path)

    @property
    def token_file(self) -> Path:
        """Where the operator's token lies."""
        return self.processes.workspace.control / OPERATOR_TOKEN_FILE

    def _operator_token(self) -> str:
        return self.token_file.read_text().strip()


def exposed(rollout: RolloutDetail) -> int:
    """Return how many devices were offered the rollout's release."""
    return sum(member.offered_at is not None for member in rollout.members)


def news(rollout: RolloutDetail, seen: set[str]) -> Iterator[str]:
    """Yield one line for each outcome and verdict not yet in `seen`."""
    lines = [
        f"wave {member.wave + 1}  {member.device:<14} {member.outcome}"
        + (f": {member.reason}" if member.reason else "")
        for member in rollout.members
        if member.outcome is not Outcome.PENDING
    ]
    if rollout.state in {"done", "halted", "aborted"}:
        lines.append(f"rollout {rollout.state}: {rollout.reason}")
    for line in lines:
        if line not in seen:
            seen.add(line)
            yield line


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
