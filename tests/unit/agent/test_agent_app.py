"""The agent as a whole, in this process: enrolment, one run, and what stands against it."""

import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx
import pytest

from slmops.agent import app
from slmops.agent.app import _Agent, run_agent
from slmops.agent.enrolment import Enrolment, enrol_device
from slmops.agent.journal import Journal
from slmops.agent.machine import ENDPOINT, JOURNAL, KEY, ROOT
from slmops.agent.settings import AgentSettings, load_agent_settings
from slmops.agent.slots import SlotStore
from slmops.domain.errors import (
    ConflictError,
    InvalidInputError,
    NotFoundError,
    UnavailableError,
    UntrustedError,
)
from slmops.registry.keys import SigningKey, verify_signature
from slmops.testing.raw_server import RawServer, answer, raw
from slmops.testing.sample_deployment import sample_deployment
from slmops.testing.stage import echo_artefact, wait_until

ENROLLED = answer(
    body=json.dumps(
        {"device": "till-1", "director_key": "ab" * 32, "root": "the root"}
    ).encode()
)


@pytest.fixture
def server() -> Iterator[RawServer]:
    with RawServer(replies=[ENROLLED]) as server:
        yield server


def wanted(server: RawServer, /, **change: object) -> Enrolment:
    given: dict[str, object] = {
        "server": server.url,
        "token": "one-time",
        "name": "till-1",
        "labels": {"site": "north"},
        "memory_mib": 512,
        **change,
    }
    return Enrolment(**given)  # type: ignore[arg-type]


def test_enrolment_keeps_all_that_the_agent_needs_for_its_owner_only(
    server: RawServer, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    settings = enrol_device(state, wanted(server))
    assert load_agent_settings(state, {}) == settings
    assert (settings.device, settings.labels) == ("till-1", {"site": "north"})
    assert (state / ROOT).read_text() == "the root"
    assert state.stat().st_mode & 0o777 == 0o700
    for name in (KEY, ROOT):
        assert (state / name).stat().st_mode & 0o777 == 0o600
    sent = json.loads(server.received[0].body)
    key = SigningKey.load(state / KEY)
    assert sent["public_key"] == key.public_hex
    verify_signature(key.public_hex, sent["signature"], b"slmops-enrol:one-time")
    assert sent["facts"]["memory_mib"] == 512


def test_the_runtime_without_a_model_is_offered_only_where_it_was_asked_for(
    server: RawServer, tmp_path: Path
) -> None:
    for asked in (False, True):
        state = tmp_path / str(asked)
        settings = enrol_device(state, wanted(server, test_runtimes=asked))
        assert load_agent_settings(state, {}).test_runtimes == asked
        sent = json.loads(server.received[-1].body)["facts"]["runtimes"]
        assert ("echo" in sent) == asked
        agent = _Agent(state, settings, lambda path, now: Journal.open(path, now=now))
        agent.close()
        assert ("echo" in agent._facts.runtimes) == asked


def test_an_enrolment_that_broke_off_is_repeated_with_the_same_key(
    server: RawServer, tmp_path: Path
) -> None:
    server.replies = [raw(b""), answer(403, b"{}"), ENROLLED]
    with pytest.raises(UnavailableError):
        enrol_device(tmp_path, wanted(server))
    with pytest.raises(UntrustedError):
        enrol_device(tmp_path, wanted(server))
    with pytest.raises(NotFoundError):
        load_agent_settings(tmp_path, {})
    enrol_device(tmp_path, wanted(server))
    keys = {json.loads(request.body)["public_key"] for request in server.received}
    assert len(keys) == 1
    with pytest.raises(ConflictError, match="holds an enrolled device"):
        enrol_device(tmp_path, wanted(server))


@pytest.mark.parametrize("change", [{"memory_mib": 0}, {"server": "till-server"}])
def test_what_is_wrong_is_found_before_the_token_is_used_up(
    server: RawServer, tmp_path: Path, change: dict[str, object]
) -> None:
    with pytest.raises(InvalidInputError):
        enrol_device(tmp_path, wanted(server, **change))
    assert server.received == []


@dataclass
class Watched:
    """What another thread saw of an agent that runs in this one."""

    state: Path
    then: Callable[[], None]
    """What to do once it was seen to serve."""
    seen: list[httpx.Response] = field(default_factory=list)
    problems: list[Exception] = field(default_factory=list)

    def watch(self) -> None:
        """Wait for the endpoint, ask it, do what is to be done; then stop the agent."""
        place = self.state / ENDPOINT
        wait_until(place.exists, "endpoint", timeout_s=20)
        try:
            url = json.loads(place.read_text())["url"]
            with httpx.Client(base_url=url, timeout=10) as client:
                wait_until(
                    lambda: client.get("/healthz").is_success, "a model", timeout_s=20
                )
                self.seen.append(client.get("/v1/models"))
                body = {"messages": [{"role": "user", "content": "Hi"}]}
                self.seen.append(client.post("/v1/chat/completions", json=body))
            self.then()
        except Exception as error:  # noqa: BLE001 - shown by the test
            self.problems.append(error)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def enrolled(server: RawServer, tmp_path: Path) -> Path:
    enrol_device(tmp_path, wanted(server))
    server.replies = [answer(503, b"{}")]
    slots = SlotStore(tmp_path)
    content = echo_artefact()
    variant = slots.blobs.put_bytes(content)
    slots.activate(sample_deployment(variant, len(content)))
    return tmp_path


def quiet(state: Path, port: int) -> AgentSettings:
    return load_agent_settings(state, {"SLMOPS_AGENT_PORT": str(port)})


@pytest.mark.slow
def test_an_agent_serves_what_its_slots_hold_and_ends_cleanly_on_a_signal(
    enrolled: Path,
) -> None:
    watched = Watched(enrolled, then=lambda: run_agent(enrolled))
    thread = threading.Thread(target=watched.watch)
    thread.start()
    run_agent(enrolled, quiet(enrolled, 0))
    thread.join(20)
    models, completion = watched.seen
    assert [entry["id"] for entry in models.json()["data"]] == ["sample-1"]
    assert completion.json()["choices"][0]["message"]["content"] == "You said: Hi"
    (problem,) = watched.problems
    assert isinstance(problem, ConflictError)  # the second agent on this folder
    assert not (enrolled / ENDPOINT).exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("host", "allowed"),
    [("::1", ()), ("0.0.0.0", ("till",)), ("0.0.0.0", ("*",))],  # noqa: S104
)
def test_it_answers_under_the_address_it_was_given(
    enrolled: Path, host: str, allowed: tuple[str, ...]
) -> None:
    if ":" in host and not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    watched = Watched(enrolled, then=lambda: None)
    thread = threading.Thread(target=watched.watch)
    thread.start()
    run_agent(enrolled, replace(quiet(enrolled, 0), host=host, allowed_hosts=allowed))
    thread.join(20)
    assert [str(problem) for problem in watched.problems] == []
    assert [answer.status_code for answer in watched.seen] == [200, 200]


@pytest.mark.slow
def test_without_a_journal_it_serves_and_installs_once_the_disk_allows_it(
    enrolled: Path, server: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "_JOURNAL_RETRY_S", 0.1)
    (enrolled / JOURNAL).mkdir()  # SQLite cannot open it, as on a full disk
    synced_before: list[int] = []

    def health() -> str:
        url = json.loads((enrolled / ENDPOINT).read_text())["url"]
        return str(httpx.get(f"{url}/healthz", timeout=10).json().get("updates", "ok"))

    def mend() -> None:
        assert health().startswith("stopped: journal")
        synced_before.append(len(server.received))
        (enrolled / JOURNAL).rmdir()
        wait_until(lambda: len(server.received) > 1, "a sync")
        assert health() == "ok"

    watched = Watched(enrolled, then=mend)
    thread = threading.Thread(target=watched.watch)
    thread.start()
    run_agent(enrolled, quiet(enrolled, 0))
    thread.join(20)
    assert watched.seen[1].status_code == 200
    assert synced_before == [1]  # the enrolment
    assert [str(problem) for problem in watched.problems] == []
    assert (enrolled / JOURNAL).is_file()


def test_a_port_that_is_taken_is_said(enrolled: Path, server: RawServer) -> None:
    port = int(server.url.rpartition(":")[2])
    with pytest.raises(UnavailableError, match=f"127.0.0.1:{port}"):
        run_agent(enrolled, quiet(enrolled, port))


def test_an_agent_on_a_folder_that_was_never_enrolled_says_what_to_do(
    tmp_path: Path,
) -> None:
    with pytest.raises(NotFoundError, match="slmops agent enrol"):
        run_agent(tmp_path)
