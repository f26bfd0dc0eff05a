"""What the control plane remembers: documents of the store, no SQL and no HTTP."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from slmops.domain.device import DeviceFacts
from slmops.domain.gate import GateResult
from slmops.domain.ids import Digest
from slmops.domain.members import Member
from slmops.domain.rollout import Rollout
from slmops.domain.sync import Assignment, InstallationReport, Installed, Report


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceStatus:
    """What a device said about its software in its newest sync."""

    assignment: int = 0
    """Sequence of the newest assignment it has journaled; 0 for none."""
    active: Installed | None = None
    """What serves."""
    previous: Installed | None = None
    """What it can go back to."""
    quarantined: tuple[Digest, ...] = ()
    """Variants it will not try again."""
    installation: InstallationReport | None = None
    """Current or last installation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Telemetry:
    """A device's reports, added up."""

    requests: int = 0
    """Answered or failed, since enrolment."""
    failures: int = 0
    """5xx answers and broken streams, since enrolment."""
    output_tokens: int = 0
    """Generated, since enrolment."""
    restarts: int = 0
    """Unplanned restarts of the model's process, since enrolment."""
    first_token_ms: float | None = None
    """Median of the newest window with traffic."""
    decode_tokens_per_s: float | None = None
    """Median of the newest window with traffic."""
    peak_rss_mib: float = 0.0
    """Of the newest window."""
    bytes_downloaded: int = 0
    """Artefact bytes received for all installations, since enrolment."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceRecord:
    """One enrolled device as last seen."""

    id: str
    """Unique; chosen at enrolment."""
    public_key: str
    """Ed25519, 64 hex digits."""
    enrolled_at: float
    """Unix time, seconds."""
    facts: DeviceFacts
    """As last reported."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """As last reported."""
    seen_at: float = 0.0
    """Newest sync, Unix seconds; written in batches, so it may be a little old after a
    restart."""
    status: DeviceStatus = field(default_factory=DeviceStatus)
    """Software on it."""
    telemetry: Telemetry = field(default_factory=Telemetry)
    """Its reports, added up."""
    retired_at: float | None = None
    """When the operator took it out of the fleet for good; None while it belongs."""
    counter: int = 0
    """Of its newest session: the next one's must be greater."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Placed:
    """A member of a rollout, and what its device ran when the offer was made."""

    member: Member
    """As the domain's `advance` sees it."""
    before: Installed | None = None
    """Where a revert leads; None when it ran nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LeftOut:
    """A device that a rollout does not reach."""

    device: str
    """Its id."""
    reason: str
    """Why, for people."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredRollout:
    """A rollout with its history's dates."""

    rollout: Rollout
    """As the domain sees it."""
    product: str
    """The release's name: one active rollout each."""
    created_at: float
    """Unix time, seconds."""
    ended_at: float | None = None
    """When it was done, halted or aborted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """A verdict with what it was reached from; never changed, never removed."""

    rollout: str
    """Rollout id."""
    at: float
    """Unix time, seconds."""
    wave: int
    """Wave it was about."""
    result: GateResult
    """Gate, verdict, reason."""
    rule_version: str
    """Of the rules that said so."""
    inputs: Mapping[str, Any]
    """Counts per class the rules saw."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditEntry:
    """Who did what; never changed, never removed."""

    at: float
    """Unix time, seconds."""
    actor: str
    """``operator``, an operator's name, ``engine`` or ``device:<id>``."""
    action: str
    """``rollout.start``, ``device.enrol`` …"""
    subject: str
    """Id of what it was done to."""
    detail: str = ""
    """More, for people."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OperatorRecord:
    """A person who may steer the fleet with a token of their own."""

    name: str
    """Unique for ever: it stands in the audit log."""
    added_at: float
    """Unix time, seconds."""
    removed_at: float | None = None
    """Since when the token is worthless; None while it is good."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SyncChange:
    """What one sync changes in the store; parts that are None stay as they are."""

    device: str
    """Who."""
    at: float
    """Now, Unix seconds."""
    facts: DeviceFacts
    """As reported."""
    labels: Mapping[str, str]
    """As reported."""
    status: DeviceStatus
    """As reported."""
    reports: tuple[Report, ...] = ()
    """To append; sequences already stored are skipped."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SyncResult:
    """What the store made of a sync."""

    newest: Assignment | None
    """Newest assignment of the device."""
    changed: bool
    """Something was written."""
    facts_changed: bool
    """Facts or labels differ from before: its class may, too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Commit:
    """One pass of the engine, written in one transaction."""

    rollout: Rollout
    """New value; `revision` is the one that was read."""
    at: float
    """Now, Unix seconds."""
    members: tuple[Placed, ...] = ()
    """Members that changed or are new."""
    left_out: tuple[LeftOut, ...] = ()
    """Members that are none any more; with the reason."""
    assignments: tuple[Assignment, ...] = ()
    """To append; their `sequence` is given by the store."""
    evaluations: tuple[Evaluation, ...] = ()
    """To append."""
    audit: tuple[AuditEntry, ...] = ()
    """To append."""
