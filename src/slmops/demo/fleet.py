"""The demo's fleet: a control plane and real agents, each a process of its own."""

import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from slmops.demo.processes import Processes, answers, wait_for
from slmops.demo.summary import VariantSummary
from slmops.domain.errors import UnavailableError
from slmops.domain.release import Release
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

ROLLOUT_TIMEOUT_S = 300.0
_START_S = 60.0
_ANSWER_TOKENS = 40
_CREATED = 201


@dataclass(slots=True)
class Fleet:
    """Starts, asks and reads what the demo runs."""

    processes: Processes
    folder: Path
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

    def start_device(self, name: str, *, memory_mib: int) -> None:
        """Enrol a device with a token of its own and start its agent."""
        state = self.folder / name
        token = self.processes.run_json(
            "device", "token", "--server", self.control_url
        )["token"]
        self.processes.run_json(
            *("agent", "enrol", "--server", self.control_url, "--token", token),
            *("--state", str(state), "--name", name, "--memory-mib", str(memory_mib)),
        )
        self.processes.start(name, "agent", "run", "--state", str(state), "--port", "0")
        place = state / "endpoint.json"
        wait_for(f"endpoint of {name}", place.exists, timeout_s=_START_S)
        tree = codec.parse_json(place.read_bytes(), where=str(place))
        self._endpoints[name] = tree["url"]

    def operator(self) -> httpx.Client:
        """Return a client with the operator's token."""
        token = (self.processes.workspace / "control" / "operator-token").read_text()
        return httpx.Client(
            base_url=self.control_url,
            headers={"Authorization": f"Bearer {token.strip()}"},
            timeout=30,
        )

    def start_rollout(self, label: str) -> Any:  # noqa: ANN401 - a tree
        """Start a rollout and return it."""
        with self.operator() as client:
            answer = client.post("/v1/rollouts", json={"release": label})
        if answer.status_code != _CREATED:
            raise UnavailableError(f"rollout of {label} refused: {answer.text[:500]}")
        return answer.json()

    def rollout(self, rollout_id: str) -> Any:  # noqa: ANN401 - a tree
        """Return a rollout with its members and verdicts, as the operator sees it."""
        with self.operator() as client:
            return client.get(f"/v1/rollouts/{rollout_id}").raise_for_status().json()

    def devices(self) -> list[Any]:
        """Return all devices as last seen."""
        with self.operator() as client:
            listed = client.get("/v1/devices").raise_for_status().json()
        return list(listed["devices"])

    def newly_serving(self) -> Iterator[str]:
        """Yield endpoints that serve a model and did not at the last call."""
        for name, url in self._endpoints.items():
            if name not in self._serving and self.models(url):
                self._serving.add(name)
                yield url

    def models(self, url: str) -> list[str]:
        """Return what an endpoint serves."""
        try:
            answer = httpx.get(f"{url}/v1/models", timeout=10)
        except httpx.HTTPError:
            return []
        return [model["id"] for model in answer.json().get("data", [])]

    def wait_until_serving(self, label: str) -> int:
        """Wait until every device serves `label`; return how many do and answer."""
        wait_for(
            f"every device on {label}",
            lambda: all(label in self.models(url) for url in self._endpoints.values()),
            timeout_s=_START_S,
        )
        return sum(bool(self.ask("Say yes.", url)) for url in self._endpoints.values())

    def ask(self, question: str, url: str | None = None) -> str:
        """Ask a device through the `openai` client, as an application would.

        Raises:
            UnavailableError: the client is not installed.
        """
        try:
            import openai
        except ImportError:
            raise UnavailableError(
                "the demo asks through the openai client: pip install 'slmops[demo]'"
            ) from None
        if url is None:
            url = self._endpoints[DEVICES[-1][0]]
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="local", max_retries=0)
        completion = client.chat.completions.create(
            model=self.models(url)[0],
            messages=[{"role": "user", "content": question}],
            max_tokens=_ANSWER_TOKENS,
            temperature=0,
        )
        return completion.choices[0].message.content or ""

    def bytes_shipped(self) -> int:
        """Return the artefact bytes that devices reported to have downloaded."""
        return sum(int(device.get("bytes_downloaded", 0)) for device in self.devices())


def variant_summaries(release: Release) -> dict[str, VariantSummary]:
    """Return what the cards say of each class's variant, in the class's settings."""
    found = {}
    for device_class in release.classes:
        variant = release.variant_for(device_class.name)
        speed = next(
            speed
            for speed in variant.card.speed
            if speed.threads == device_class.threads
            and speed.context_tokens == device_class.context_tokens
        )
        found[device_class.name] = VariantSummary(
            type=variant.card.quantization,
            bytes=variant.bytes,
            mean_kld=variant.card.fidelity.mean_kld.value,
            decode_tokens_per_s=speed.decode_tokens_per_s.value,
            peak_rss_mib=speed.peak_rss_mib,
        )
    return found


def variant_table(release: Release) -> tuple[list[str], list[list[object]]]:
    """Return columns and rows for the terminal."""
    rows: list[list[object]] = [
        [
            name,
            figures.type,
            f"{figures.bytes / 1e6:.1f}",
            f"{figures.mean_kld:.4f}",
            f"{figures.decode_tokens_per_s:.1f}",
            f"{figures.peak_rss_mib:.0f}",
        ]
        for name, figures in variant_summaries(release).items()
    ]
    return ["class", "type", "MB", "mean KLD", "decode tok/s", "peak MiB"], rows


def exposed(rollout: Any) -> int:  # noqa: ANN401 - a tree
    """Return how many devices were offered the rollout's release."""
    return sum(member["offered_at"] is not None for member in rollout["members"])


def news(rollout: Any, seen: set[str]) -> Iterator[str]:  # noqa: ANN401 - a tree
    """Yield one line for each outcome and verdict not yet in `seen`."""
    for member in rollout["members"]:
        if member["outcome"] == "pending":
            continue
        line = (
            f"wave {member['wave'] + 1}  {member['device']:<14} {member['outcome']}"
            + (f": {member['reason']}" if member["reason"] else "")
        )
        if line not in seen:
            seen.add(line)
            yield line
    line = f"rollout {rollout['state']}: {rollout['reason']}"
    if rollout["state"] in {"done", "halted", "aborted"} and line not in seen:
        seen.add(line)
        yield line


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
