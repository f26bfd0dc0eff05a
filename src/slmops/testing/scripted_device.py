"""A device without a model: speaks the real protocol, installs nothing, obeys a script.

For tests of the control plane: hundreds fit into one process. What the control plane
acknowledged and what it assigned is kept, so that a test can compare afterwards.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from slmops.domain.device import DeviceFacts
from slmops.domain.installation import State
from slmops.domain.sync import (
    Assignment,
    EnrolAnswer,
    EnrolRequest,
    InstallationReport,
    Installed,
    Report,
    SessionAnswer,
    SessionRequest,
    SyncAnswer,
    SyncRequest,
    TrialResult,
)
from slmops.registry.envelope import open_envelope
from slmops.registry.keys import SigningKey
from slmops.wire import codec

_UNAUTHORISED = 403
_OK = 200
_NOT_MODIFIED = 304
_CREATED = 201


class Answer(Protocol):
    """What is read of an HTTP answer."""

    status_code: int
    """HTTP status."""
    content: bytes
    """Body."""


class Http(Protocol):
    """What is asked of a client: `httpx.Client` and Starlette's `TestClient` fit."""

    def post(self, url: str, *, content: bytes, headers: Mapping[str, str]) -> Any:  # noqa: ANN401
        """Send a body, return an `Answer`."""
        ...


@dataclass(slots=True)
class ScriptedDevice:
    """One device; each `sync` moves its installation one state further."""

    name: str
    """Wanted id."""
    facts: DeviceFacts
    """What it says about itself."""
    bad_releases: Mapping[str, str] = field(default_factory=dict)
    """Release label → reason with which its trial fails here."""
    live_failures: Mapping[str, int] = field(default_factory=dict)
    """Release label → how many of the ten requests of each window fail with it."""
    live_restarts: Mapping[str, int] = field(default_factory=dict)
    """Release label → how often its process ends in each window."""
    live_peak_mib: Mapping[str, float] = field(default_factory=dict)
    """Release label → peak memory in each window; 200 MiB where none is said."""
    steps: tuple[State, ...] = (State.DOWNLOADING, State.PROBATION)
    """States between an assignment and its outcome."""
    key: SigningKey = field(
        default_factory=lambda: SigningKey(Ed25519PrivateKey.generate())
    )
    """Made on the device."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Set by its owner."""
    active: Installed | None = None
    """What serves."""
    previous: Installed | None = None
    """What it can go back to."""
    assignment: Assignment | None = None
    """Newest, as journaled."""
    installation: InstallationReport | None = None
    """Current or last."""
    targets: dict[int, Assignment] = field(default_factory=dict)
    """Every assignment it ever got, by sequence."""
    acknowledged: list[int] = field(default_factory=list)
    """Sequences of reports that were answered."""
    director_key: str = ""
    """From enrolment."""
    _counter: int = 0
    _token: str = ""
    _sequence: int = 0
    _queue: list[State] = field(default_factory=list)

    @property
    def active_release(self) -> str | None:
        """Label of the release that serves."""
        return self.active.release if self.active else None

    @property
    def newest(self) -> Assignment:
        """Its newest assignment; there must be one."""
        assert self.assignment is not None
        return self.assignment

    def enrol(self, http: Http, token: str) -> None:
        """Enrol with a one-time token and open a session."""
        request = EnrolRequest(
            token=token,
            public_key=self.key.public_hex,
            signature=self.key.sign(f"slmops-enrol:{token}".encode()),
            facts=self.facts,
            labels=self.labels,
            name=self.name,
        )
        answer = self._post(http, "/v1/enrol", request)
        assert answer.status_code == _CREATED, answer.content
        kept = codec.decode_json(answer.content, EnrolAnswer, where="enrol")
        self.director_key = kept.director_key
        self.open_session(http)

    def open_session(self, http: Http) -> None:
        """Get a fresh session token."""
        self._counter += 1
        message = f"slmops-session:{self.name}:{self._counter}".encode()
        request = SessionRequest(
            device=self.name, counter=self._counter, signature=self.key.sign(message)
        )
        answer = self._post(http, "/v1/session", request)
        assert answer.status_code == _OK, answer.content
        self._token = codec.decode_json(
            answer.content, SessionAnswer, where="session"
        ).token

    def sync(self, http: Http) -> int:
        """Say everything, with one new report; take what is assigned; one step on.

        Returns:
            The HTTP status. Nothing is taken as acknowledged unless it is 200 or 304.
        """
        report = self._report()
        answer = self._post(http, "/v1/sync", self.request(report))
        if answer.status_code == _UNAUTHORISED:
            self.open_session(http)
            answer = self._post(http, "/v1/sync", self.request(report))
        if answer.status_code not in {_OK, _NOT_MODIFIED}:
            return int(answer.status_code)
        self._sequence = report.sequence
        self.acknowledged.append(report.sequence)
        if answer.status_code == _OK:
            self._take(answer.content)
        else:
            self._work()
        return int(answer.status_code)

    def request(self, *reports: Report) -> SyncRequest:
        """Return what it says now."""
        return SyncRequest(
            facts=self.facts,
            labels=self.labels,
            assignment=self.assignment.sequence if self.assignment else 0,
            active=self.active,
            previous=self.previous,
            installation=self.installation,
            reports=reports,
        )

    def headers(self) -> dict[str, str]:
        """Return its credential."""
        return {"Authorization": f"Bearer {self._token}"} if self._token else {}

    def _report(self) -> Report:
        sequence = self._sequence + 1
        release = self.active_release
        serving = release or ""
        return Report(
            sequence=sequence,
            started_at=float(sequence),
            ended_at=float(sequence + 1),
            release=release,
            requests=10,
            failures=self.live_failures.get(serving, 0),
            restarts=self.live_restarts.get(serving, 0),
            output_tokens=100,
            peak_rss_mib=self.live_peak_mib.get(serving, 200.0),
        )

    def _take(self, content: bytes) -> None:
        text = codec.decode_json(content, SyncAnswer, where="sync").assignment
        payload = open_envelope(text, self.director_key)
        got = codec.decode_json(payload, Assignment, where="assignment")
        assert got.device == self.name, got
        known = self.targets.setdefault(got.sequence, got)
        assert known == got, f"two targets for {self.name}: {known} and {got}"
        newest = max(self.targets)
        assert got.sequence == newest, f"{got.sequence} after {newest}: a replay"
        self.assignment = got
        self._queue = list(self.steps)

    def _work(self) -> None:
        if self.assignment is None or self._done():
            return
        if self._queue:
            self._enter(self._queue.pop(0))
            return
        reason = self.bad_releases.get(self.assignment.release)
        if reason is not None:
            self._enter(State.ROLLED_BACK, reason=reason)
            return
        target = Installed(
            release=self.assignment.release, variant=self.assignment.variant
        )
        if target != self.active:
            self.previous, self.active = self.active, target
        self._enter(State.COMMITTED)

    def _done(self) -> bool:
        installation = self.installation
        return (
            self.assignment is not None
            and installation is not None
            and installation.assignment == self.assignment.sequence
            and installation.state in {State.COMMITTED, State.ROLLED_BACK}
        )

    def _enter(self, state: State, *, reason: str = "") -> None:
        assert self.assignment is not None
        ended = state in {State.COMMITTED, State.ROLLED_BACK}
        trial = TrialResult(
            passed=not reason,
            reason=reason or "answers like the card",
            paired_loss=0.0,
            decode_tokens_per_s=40.0,
        )
        self.installation = InstallationReport(
            assignment=self.assignment.sequence,
            state=state,
            entered_at=0.0,
            reason=reason,
            bytes_downloaded=1000,
            trial=trial if ended else None,
        )

    def _post(self, http: Http, path: str, document: object) -> Answer:
        answer: Answer = http.post(
            path, content=codec.encode_json(document), headers=self.headers()
        )
        return answer
