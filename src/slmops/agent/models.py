"""Models as running processes: started beside each other, promoted, watched, retired.

One child serves live traffic; a trial may run beside it. The supervisor restarts the
serving child when it dies, with back-off, for ever: a device with a model that was
proved keeps trying to serve it. Every start verifies the artefact's digest first.
"""

import logging
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from slmops.agent.clock import Backoff, Clock
from slmops.agent.records import Deployment
from slmops.agent.slots import SlotStore
from slmops.agent.telemetry import Telemetry
from slmops.agent.upstream import Gateway, Upstream
from slmops.domain.errors import (
    NotFoundError,
    SlmopsError,
    UnavailableError,
    UntrustedError,
)
from slmops.runtimes.address import Address, open_client
from slmops.runtimes.base import WorkerSettings
from slmops.runtimes.worker import Worker, start_worker

_WATCH_S = 0.2
_log = logging.getLogger("slmops.agent")


@dataclass(eq=False, slots=True)
class Child:
    """A deployment, loaded."""

    deployment: Deployment
    """What it serves."""
    worker: Worker
    """Its process."""
    upstream: Upstream
    """As the endpoint sees it."""

    def peak_rss_mib(self) -> float | None:
        """Return the peak memory of its process; None when it cannot be read."""
        return self.peak_memory()[0]

    def peak_memory(self) -> tuple[float | None, str]:
        """Return the peak memory of its process, MiB, or None and why it is unknown."""
        try:
            return self.worker.memory().peak_rss_mib, ""
        except UnavailableError as error:
            return None, str(error)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelTimes:
    """How long the processes of models may take."""

    start_s: float = 120.0
    """From process start to ready; loading a gigabyte from a flash card is slow."""
    stop_s: float = 5.0
    """From SIGTERM to SIGKILL."""
    drain_s: float = 120.0
    """Longest wait for requests in flight on a child that is replaced."""
    stable_s: float = 120.0
    """A child that ran this long begins its waits anew."""
    probe_s: float = 60.0
    """How long a child that let an answer time out may take for one token."""


@dataclass(kw_only=True, slots=True)
class Models:
    """The children of this agent."""

    slots: SlotStore
    gateway: Gateway
    telemetry: Telemetry
    clock: Clock
    backoff: Backoff
    times: ModelTimes = field(default_factory=ModelTimes)
    launch: Callable[[str, Path, WorkerSettings], Worker] = start_worker
    """Starts the process of a model."""
    artefact_lost: bool = False
    """Set when the wanted artefact was found missing or damaged; the loop mends it."""
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _serving: Child | None = None
    _wanted: Deployment | None = None
    _started_at: float = 0.0
    _restart_at: float | None = None
    _retiring: list[threading.Thread] = field(default_factory=list)
    _stopped: threading.Event = field(default_factory=threading.Event)
    _children: list[Child] = field(default_factory=list)

    @property
    def serving(self) -> Child | None:
        """The child that gets live traffic; None while none is alive."""
        with self._lock:
            return self._serving

    @property
    def wanted(self) -> Deployment | None:
        """What the supervisor keeps alive or is about to start."""
        with self._lock:
            return self._wanted

    def start(self, deployment: Deployment) -> Child:
        """Start a child that gets no traffic yet; blocks until it answers.

        Raises:
            SlmopsError: the artefact is missing or damaged, or does not load.
        """
        artefact = self.slots.verified(deployment)
        worker = self.launch(
            deployment.runtime, artefact, self._worker_settings(deployment)
        )
        upstream = Upstream(
            address=worker.address,
            release=deployment.release,
            context_tokens=deployment.context_tokens,
            shows_tools=_mentions_tools(deployment.chat_template),
        )
        child = Child(deployment, worker, upstream)
        with self._lock:
            self._children.append(child)
        if self._stopped.is_set():
            self.stop(child)
            raise UnavailableError("the agent is stopping")
        return child

    def promote(self, child: Child) -> Child | None:
        """Give live traffic to `child`; return the one that had it, still running."""
        with self._lock:
            before, self._serving = self._serving, child
            self._wanted = child.deployment
            self._started_at = self.clock.monotonic()
            self._restart_at = None
            self.gateway.point_to(child.upstream)
        return None if before is child else before

    def retire(self, child: Child) -> None:
        """Let requests in flight end, then stop the child; in the background."""

        def work() -> None:
            self.gateway.drain(child.upstream, timeout_s=self.times.drain_s)
            self.stop(child)

        thread = threading.Thread(target=work, daemon=True, name="retire")
        with self._lock:
            self._retiring = [old for old in self._retiring if old.is_alive()]
            self._retiring.append(thread)
        thread.start()

    def stop(self, child: Child) -> None:
        """Stop a child now; safe to repeat."""
        child.worker.stop(self.times.stop_s)
        with self._lock:
            if child in self._children:
                self._children.remove(child)

    def make_room(self) -> None:
        """Stop the serving child after its requests; new requests wait for the next."""
        with self._lock:
            child, self._serving, self._wanted = self._serving, None, None
            self.gateway.hold()
        _log.info("model: requests wait while it is exchanged")
        if child is not None:
            self.gateway.drain(child.upstream, timeout_s=self.times.drain_s)
            self.stop(child)

    def want(self, deployment: Deployment) -> None:
        """Let the supervisor start and serve `deployment`; returns at once."""
        with self._lock:
            self._wanted = deployment
            self._restart_at = self.clock.monotonic()
            if self._serving is None and not self.gateway.holding:
                # No release is at fault: every start of the device takes its time.
                self.gateway.close(f"{deployment.release} is being loaded")

    def serve_none(self, reason: str) -> None:
        """Serve no model; the endpoint says why."""
        with self._lock:
            child, self._serving, self._wanted = self._serving, None, None
            self.gateway.close(reason)
        if child is not None:
            self.retire(child)

    def watch(self) -> None:
        """Supervise until `close`: the supervisor thread's main work."""
        while not self._stopped.wait(_WATCH_S):
            try:
                self._watch_once()
            except SlmopsError as error:
                _log.warning("model: %s", error)
            except Exception:  # noqa: BLE001 - nobody else restarts models
                _log.exception("model: unexpected error")

    def close(self, *, stop_s: float) -> None:
        """Stop all children, within about `stop_s`."""
        self._stopped.set()
        with self._lock:
            children = list(self._children)
            self.gateway.close("the agent is stopping")
        threads = [
            threading.Thread(target=child.worker.stop, args=(stop_s,), daemon=True)
            for child in children
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(stop_s + 1)

    def _watch_once(self) -> None:
        self._end_hung()
        self._note_death()
        with self._lock:
            wanted, due = self._wanted, self._restart_at
            idle = self._serving is None and wanted is not None
            if not idle or due is None or self.clock.monotonic() < due:
                return
        if wanted is not None:
            self._start_wanted(wanted)

    def _end_hung(self) -> None:
        """End a child that hangs: it lets answers time out and not even gives a token.

        One that is only slow, or has many requests to answer, is heard meanwhile.
        """
        child = self.serving
        if child is None or not child.upstream.suspected:
            return
        child.upstream.suspected = False
        heard_at = child.upstream.heard_at
        if _responds(child.upstream.address, timeout_s=self.times.probe_s):
            return
        if child.upstream.heard_at > heard_at:
            return
        _log.warning("model: %s hangs; its process is ended", child.deployment.release)
        child.worker.stop(self.times.stop_s)

    def _note_death(self) -> None:
        with self._lock:
            child = self._serving
            if child is None:
                return
            if child.worker.alive():
                if self.clock.monotonic() - self._started_at >= self.times.stable_s:
                    self.backoff.succeeded()
                return
            self._serving = None
            release = child.deployment.release
            said = f"the process of {release} ended ({child.worker.exit_reason()})"
            self.gateway.close(
                f"{said}; it is being restarted",
                release=release,
                upstream=child.upstream,
            )
            self._plan_restart()
        _log.warning("model: %s", said)
        self.telemetry.restarted(release)
        self.stop(child)

    def _plan_restart(self) -> None:
        self._restart_at = self.clock.monotonic() + self.backoff.failed()

    def _start_wanted(self, wanted: Deployment) -> None:
        try:
            child = self.start(wanted)
        except SlmopsError as error:
            with self._lock:
                if self._wanted is wanted:
                    self.gateway.close(
                        f"{wanted.release} cannot be loaded: {error}",
                        release=wanted.release,
                    )
                    self._plan_restart()
                    self.artefact_lost = isinstance(
                        error, NotFoundError | UntrustedError
                    )
            raise
        with self._lock:
            if self._wanted is wanted and self._serving is None:
                self.promote(child)
                return
        self.stop(child)

    def _worker_settings(self, deployment: Deployment) -> WorkerSettings:
        settings = deployment.settings
        draft = settings.draft and str(self.slots.blobs.path(settings.draft))
        return WorkerSettings(
            kv_cache=settings.kv_cache,
            draft=draft,
            draft_tokens=settings.draft_tokens,
            threads=deployment.threads,
            context_tokens=deployment.context_tokens,
            memory_limit_mib=deployment.memory_limit_mib,
            chat_template=deployment.chat_template,
            start_timeout_s=self.times.start_s,
        )


def _mentions_tools(chat_template: str | None) -> bool:
    """Tell whether a template shows tools to the model; the default one does not.

    >>> _mentions_tools("{% if tools %}{{ tools | tojson }}{% endif %}")
    True
    """
    return re.search(r"\btools\b", chat_template or "") is not None


def _responds(address: Address, *, timeout_s: float) -> bool:
    """Tell whether a runtime gives one token, or any other answer to that question."""
    body = {"prompt": "a", "max_tokens": 1, "temperature": 0, "cache_prompt": False}
    try:
        with open_client(address) as client:
            client.post("/v1/completions", json=body, timeout=timeout_s)
    except httpx.HTTPError:
        return False
    return True
