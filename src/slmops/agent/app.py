"""The agent's composition root: builds the parts, runs them, stops them in order.

Three threads: the endpoint (asyncio, main), the supervisor of the model's process, and
the loop that syncs and installs.
"""

import asyncio
import contextlib
import functools
import logging
import os
import random
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from slmops.agent import probe
from slmops.agent.actions import Actions
from slmops.agent.clock import Backoff
from slmops.agent.constraints import Constraints
from slmops.agent.directors import DIRECTORS, Directors
from slmops.agent.endpoint import Endpoint, EndpointLimits
from slmops.agent.enrolment import prepare_state_folder
from slmops.agent.hosts import ANY
from slmops.agent.journal import Journal
from slmops.agent.link import Link, http_client
from slmops.agent.loop import AgentLoop, Identity
from slmops.agent.machine import (
    ENDPOINT,
    JOURNAL,
    KEY,
    ROOT,
    listening,
    only_agent,
    write_place,
)
from slmops.agent.mirror import downloads_for
from slmops.agent.models import Models
from slmops.agent.offers import Offers, Registry
from slmops.agent.settings import AgentSettings, load_agent_settings
from slmops.agent.slots import SlotStore
from slmops.agent.telemetry import Telemetry
from slmops.agent.upstream import Gateway
from slmops.domain.errors import InvalidInputError, UnavailableError
from slmops.registry.keys import SigningKey

_JOURNAL_RETRY_S = 30.0
_GRACE_S = 0.7
_CHILD_STOP_S = 0.5
_log = logging.getLogger("slmops.agent")


class SystemClock:
    """The machine's clocks."""

    def now(self) -> float:
        """Return the Unix time, seconds."""
        return time.time()

    def monotonic(self) -> float:
        """Return the time since some fixed moment, seconds."""
        return time.monotonic()


def run_agent(
    state: Path,
    settings: AgentSettings | None = None,
    *,
    open_journal: Callable[[Path, float], Journal] | None = None,
) -> None:
    """Serve, sync and install until SIGTERM or SIGINT.

    Args:
        state: folder of an enrolled device.
        settings: as read from it by default.
        open_journal: another journal; for crash tests.

    Raises:
        NotFoundError: not enrolled.
        ConflictError: another agent runs on this folder.
        UnavailableError: the endpoint's port is taken.
    """
    chosen = settings or load_agent_settings(state, os.environ)
    try:
        prepare_state_folder(state)
    except UnavailableError as error:
        # Read-only, as after an error of the disk: what is installed still serves.
        _log.error("%s", error)
    with only_agent(state), listening(chosen) as listener:
        agent = _Agent(state, chosen, open_journal or _open_journal)
        try:
            asyncio.run(agent.serve(listener))
        finally:
            agent.close()


class _Agent:
    """The parts of one running agent."""

    def __init__(
        self,
        state: Path,
        settings: AgentSettings,
        open_journal: Callable[[Path, float], Journal],
    ) -> None:
        self._state = state
        self._settings = settings
        self._open_journal = open_journal
        self._journal: Journal | None = None
        self._clock = SystemClock()
        self._chance = random.SystemRandom()
        self._stop = threading.Event()
        self._client = http_client(settings.server)
        self._facts = probe.device_facts(
            state,
            memory_limit_mib=settings.memory_mib,
            test_runtimes=settings.test_runtimes,
        )
        self._slots = SlotStore(state)
        self._telemetry = Telemetry(self._clock.now)
        self._gateway = Gateway(hold_s=settings.hold_s, max_waiting=64)
        self._models = Models(
            slots=self._slots,
            gateway=self._gateway,
            telemetry=self._telemetry,
            clock=self._clock,
            backoff=self._backoff(0.5, 60.0),
        )
        self._threads: list[threading.Thread] = []
        self._show_place: Callable[[], None] = lambda: None
        self._loop: AgentLoop | None = None
        self._refusal = ""

    async def serve(self, listener: socket.socket) -> None:
        """Serve on `listener` until a signal; the other threads run meanwhile."""
        endpoint = Endpoint(
            self._gateway,
            self._telemetry,
            EndpointLimits(),
            allowed_hosts=self._settings.hosts,
            trouble=self._trouble,
        )
        if ANY in self._settings.hosts:
            _log.warning("endpoint: it answers to every host name, so to web pages too")
        server = _Server(
            uvicorn.Config(
                endpoint.application(),
                log_config=None,
                access_log=False,
                lifespan="off",
                server_header=False,
                http="h11",
                ws="none",
                timeout_graceful_shutdown=1,
            )
        )
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._ask_to_stop, server)
        self._show_place = functools.partial(write_place, self._state, listener)
        self._start_threads()
        self._show_place()
        await server.serve(sockets=[listener])

    def close(self) -> None:
        """Stop everything; the journal makes it safe to do so in the middle."""
        self._stop.set()
        self._models.close(stop_s=_CHILD_STOP_S)
        for thread in self._threads:
            thread.join(0.2)
        with contextlib.suppress(OSError):
            (self._state / ENDPOINT).unlink()
        if not any(thread.is_alive() for thread in self._threads):
            self._client.close()
            if self._journal is not None:
                self._journal.close()

    def _ask_to_stop(self, server: "_Server") -> None:
        _log.info("stopping")
        self._stop.set()
        server.should_exit = True

    def _trouble(self) -> str | None:
        """Say why nothing is installed or reported now; None while all is well."""
        return self._loop.trouble if self._loop is not None else self._refusal

    def _start_threads(self) -> None:
        loop = self._resumed_loop()
        if loop is None:
            self._serve_slots()
        for name, work in (
            ("supervisor", self._models.watch),
            ("loop", loop.run if loop is not None else self._run_later),
        ):
            thread = threading.Thread(target=work, name=name, daemon=True)
            thread.start()
            self._threads.append(thread)

    def _resumed_loop(self) -> AgentLoop | None:
        """Open the journal and find out what was going on; None while the disk refuses."""
        try:
            self._journal = self._open_journal(self._state / JOURNAL, self._clock.now())
            if self._journal.lost:
                _log.error("%s", self._journal.lost)
            loop = self._build_loop(self._journal)
            mended = loop.resume()
        except (OSError, UnavailableError) as error:
            self._refusal = str(error)
            _log.error("nothing is installed or reported for now: %s", error)
            if self._journal is not None:
                self._journal.close()
                self._journal = None
            return None
        if mended is not None:
            _log.error("slots: %s", mended)
        self._loop = loop
        return loop

    def _serve_slots(self) -> None:
        """Serve what the pointer names: it needs neither journal nor room on the disk."""
        try:
            active = self._slots.read().active
        except InvalidInputError as error:
            _log.error("slots: %s", error)
            return
        if active is not None:
            self._models.want(active)

    def _run_later(self) -> None:
        """Be a loop once the disk allows it."""
        while not self._stop.wait(_JOURNAL_RETRY_S):
            loop = self._resumed_loop()
            if loop is not None:
                self._show_place()
                loop.run()

    def _build_loop(self, journal: Journal) -> AgentLoop:
        settings = self._settings
        offers = Offers(
            device=settings.device,
            director_key=Directors(settings.director_key, self._state / DIRECTORS),
            facts=self._facts,
            open_registry=self._open_registry,
            disk_size_bytes=lambda: probe.disk_size_bytes(self._state),
            labels=settings.labels,
        )
        actions = Actions(
            journal=journal,
            slots=self._slots,
            models=self._models,
            downloads=downloads_for(
                settings, self._client, self._slots.blobs, self._state / "incoming"
            ),
            offers=offers,
            telemetry=self._telemetry,
            clock=self._clock,
            memory_mib=self._facts.memory_mib,
            obstacle=Constraints(
                settings=settings, state=self._state, now=self._clock.now
            ).obstacle,
            pause=lambda: loop.sync_is_due(),
        )
        loop = AgentLoop(
            identity=Identity(facts=self._facts, labels=settings.labels),
            journal=journal,
            slots=self._slots,
            models=self._models,
            actions=actions,
            offers=offers,
            link=Link(
                self._client,
                device=settings.device,
                key=SigningKey.load(self._state / KEY),
                journal=journal,
                clock=self._clock,
            ),
            telemetry=self._telemetry,
            clock=self._clock,
            sync_backoff=self._backoff(1.0, settings.sync_longest_s),
            error_backoff=self._backoff(1.0, 60.0),
            window_s=settings.window_s,
            stop=self._stop,
            disk_mib=lambda: probe.disk_mib(self._state),
        )
        return loop

    def _open_registry(self) -> Registry:
        # Imported on use: the TUF client costs as much memory as all the rest, and a
        # device that only serves does without.
        from slmops.registry.trust import TrustedRegistry

        return TrustedRegistry(
            self._state / "trust",
            (self._state / ROOT).read_bytes(),
            f"{self._settings.server}/v1/registry",
            now=self._clock.now,
        )

    def _backoff(self, first_s: float, longest_s: float) -> Backoff:
        return Backoff(first_s=first_s, longest_s=longest_s, chance=self._chance)


class _Server(uvicorn.Server):
    """Leaves signals to the agent: uvicorn would raise them again at the end."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _open_journal(path: Path, now: float) -> Journal:
    return Journal.open(path, now=now)


def set_up_logging() -> None:
    """Log to standard error; other libraries only when something is wrong."""
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )
    logging.getLogger("slmops").setLevel(logging.INFO)
