"""An agent without its threads: real parts, stepped by a test under a simulated clock.

Models are real processes of the echo runtime; the control plane is one raw socket.
"""

import json
import random
import re
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx

from slmops.agent.actions import Actions
from slmops.agent.clock import Backoff
from slmops.agent.download import Downloads
from slmops.agent.journal import Journal
from slmops.agent.link import Link
from slmops.agent.loop import AgentLoop, Identity
from slmops.agent.models import Models, ModelTimes
from slmops.agent.offers import Offers, Registry
from slmops.agent.slots import SlotStore
from slmops.agent.telemetry import Telemetry
from slmops.agent.upstream import Gateway
from slmops.domain.device import Budget, DeviceClass, DeviceFacts
from slmops.domain.installation import State
from slmops.domain.release import ExpectedToken, GoldenPrompt, GoldenSet
from slmops.domain.sync import Assignment
from slmops.registry.envelope import seal
from slmops.registry.keys import SigningKey
from slmops.registry.trust import TrustedRegistry
from slmops.runtimes.base import WorkerSettings
from slmops.runtimes.worker import Worker, start_worker
from slmops.testing.clock import SimulatedClock
from slmops.testing.raw_server import RawServer, Received, Reply, answer, head, raw
from slmops.testing.sample_release import (
    SAMPLE_TIME,
    PublishedSample,
    digest_of,
    publish_sample,
    sample_release,
)
from slmops.testing.stage import echo_artefact
from slmops.wire import codec

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
class AgentInProcess:
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
    disk_mib: int = FACTS.disk_mib
    disk_size_mib: int = 1000
    artefacts: Mapping[int, bytes] = field(default_factory=lambda: ARTEFACTS)
    launch: Callable[[str, Path, WorkerSettings], Worker] = start_worker
    journal_kind: type[Journal] = Journal

    def __post_init__(self) -> None:
        self.director = self.published.keys.director
        key = self.folder / "device.key"
        self.key = SigningKey.load(key) if key.exists() else SigningKey.create(key)
        self.journal = self.journal_kind.open(
            self.folder / "journal.db", now=self.clock.now()
        )
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
            launch=self.launch,
        )
        offers = Offers(
            device="till-1",
            director_key=self.director.public_hex,
            facts=FACTS,
            open_registry=self._registry,
            disk_size_bytes=lambda: self.disk_size_mib << 20,
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
            disk_mib=lambda: self.disk_mib,
        )

    def restart(self) -> str | None:
        """End the agent as a power cut does, and start it anew."""
        self.models.close(stop_s=1.0)
        self.build()
        return self.loop.resume()

    def close(self) -> None:
        """End the models' processes."""
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
        """Let the next syncs bring an envelope, whatever is in it."""
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
        """Return where the installation stands, as journaled."""
        found = self.journal.installation()
        return None if found is None else found.state

    def serves(self) -> str | None:
        """Return the label that new requests get."""
        current = self.models.gateway.current
        return None if current is None else current.release

    def syncs(self) -> list[dict[str, object]]:
        """Return what was sent to the control plane, oldest first."""
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
        return Backoff(first_s=1.0, longest_s=60.0, chance=random.Random(1))  # noqa: S311 - a test's waits

    def _reply(self, connection: socket.socket, request: Received) -> None:
        if request.path == "/v1/session":
            reply = answer(body=b'{"token": "t", "expires_in_s": 3600}')
        elif request.path == "/v1/sync":
            reply = self.sync_reply
        elif self.blob_reply is not None:
            reply = self.blob_reply
        else:
            name = re.sub(".*/", "sha256:", request.path)
            artefacts = self.artefacts.values()
            found = [content for content in artefacts if digest_of(content) == name]
            reply = _part(found[0], request) if found else answer(404)
        reply(connection, request)


def _part(content: bytes, request: Received) -> Reply:
    """Answer with a file, or with what a range asks for."""
    kind = "application/octet-stream"
    asked = re.fullmatch(r"bytes=(\d+)-", request.headers.get("range", ""))
    if asked is None:
        return answer(200, content, kind=kind)
    begin, size = int(asked[1]), len(content)
    said = f"bytes {begin}-{size - 1}/{size}"
    return answer(206, content[begin:], kind=kind, Content_Range=said)


def publish_echo(
    folder: Path, artefacts: Mapping[int, bytes] = ARTEFACTS
) -> PublishedSample:
    """Publish releases of echo artefacts, all of which claim the first one's answers."""
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
            for version, content in artefacts.items()
        )
    ]
    return publish_sample(
        folder,
        releases,
        artefacts=list(artefacts.values()),
        now=SAMPLE_TIME,
    )
