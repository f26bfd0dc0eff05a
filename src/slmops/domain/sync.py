"""What a device and the control plane say to each other: one idempotent exchange."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from slmops.domain.device import DeviceFacts
from slmops.domain.ids import Digest
from slmops.domain.installation import State

MAX_REASON_CHARS = 1_000
"""Of a reason in a sync; longer ones are cut by the device, refused by the other side."""
MAX_REPORTS_SENT = 64
"""Reports in one sync."""
MAX_QUARANTINED_SENT = 256
"""Quarantined variants in one sync, the newest ones."""
MAX_LABELS = 32
"""Labels of a device."""
MAX_LABEL_KEY_CHARS = 64
"""Of a label's key."""
MAX_LABEL_VALUE_CHARS = 256
"""Of a label's value."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Installed:
    """A variant on a device, and the release it came with."""

    release: str
    """Release label: ``assistant-2``."""
    variant: Digest
    """Digest of the artefact."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialResult:
    """What the golden prompts and the live traffic of the trial showed; no text."""

    passed: bool
    """The device's own verdict."""
    reason: str
    """Why, with figures; names prompts by index, never by text."""
    card_delta: float | None = None
    """Mean |Δ log p| of first tokens against the release card, nats."""
    paired_loss: float | None = None
    """Loss of mean log p against the replaced model on this device, nats a token."""
    decode_tokens_per_s: float | None = None
    """Decode speed on the golden prompts."""
    peak_rss_mib: float | None = None
    """Peak memory of the model's process."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InstallationReport:
    """How the device's current or last installation stands."""

    assignment: int
    """Sequence number of the assignment it answers."""
    state: State
    """As journaled."""
    entered_at: float
    """Device's Unix time when it entered the state, seconds."""
    reason: str = ""
    """Why it failed or waits."""
    bytes_downloaded: int = 0
    """Body bytes received for it so far."""
    trial: TrialResult | None = None
    """Once there is one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """Counts over one time window; never text."""

    sequence: int
    """Strictly increasing per device: the collector counts each number once."""
    started_at: float
    """Device's Unix time, seconds."""
    ended_at: float
    """Device's Unix time, seconds."""
    release: str | None
    """Label of the release that served or failed to; None when none was to serve."""
    requests: int = 0
    """Answered or failed."""
    failures: int = 0
    """5xx answers and broken streams."""
    output_tokens: int = 0
    """Generated."""
    restarts: int = 0
    """Unplanned restarts of the model's process."""
    first_token_ms: tuple[int, ...] = ()
    """Counts on the log grid `slmops.domain.report.GRID_MS`."""
    decode_tokens_per_s: tuple[int, ...] = ()
    """Counts on the log grid `slmops.domain.report.GRID_PER_S`."""
    peak_rss_mib: float = 0.0
    """Largest resident memory of the model's process."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SyncRequest:
    """All a device says in one exchange; safe to send twice."""

    facts: DeviceFacts
    """Current."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Set by the device's owner."""
    assignment: int = 0
    """Sequence number of the newest assignment the device has journaled; 0 for none."""
    active: Installed | None = None
    """What serves now."""
    previous: Installed | None = None
    """What it can go back to."""
    quarantined: tuple[Digest, ...] = ()
    """Variants that failed here and will not be tried again."""
    installation: InstallationReport | None = None
    """Current or last installation."""
    reports: tuple[Report, ...] = ()
    """Not yet acknowledged, oldest first. Any 2xx or 304 acknowledges them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Assignment:
    """What the director wants a device to run.

    Signed by the director; a device installs only what the release signer vouches for
    too.
    """

    device: str
    """Id of the one device it is for."""
    sequence: int
    """Strictly increasing per device; an older one is a replay."""
    rollout: str
    """Id of the rollout that made it."""
    release: str
    """Release label."""
    release_digest: Digest
    """Digest of the release document."""
    variant: Digest
    """Digest of the artefact to run."""
    device_class: str
    """Class the control plane put the device in."""
    probation_s: float
    """How long to watch live traffic before committing."""
    issued_at: float
    """Unix time, seconds."""
    revert: bool = False
    """True when it brings a device back to what it ran before: the trial compares with
    the card only."""
    allow_downgrade: bool = False
    """True when the operator asked for a release older than the newest one; without it
    a device goes back only to what it ran before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SyncAnswer:
    """Answer with status 200; 304 means: nothing new.

    Both carry the header ``Slmops-Next-Poll`` with jittered seconds.
    """

    assignment: str
    """DSSE envelope (JSON text) around an `Assignment`, signed by the director."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EnrolRequest:
    """First contact of a device; proves that it holds the key."""

    token: str
    """One-time enrolment token."""
    public_key: str
    """Ed25519 public key, 64 hex digits; made on the device."""
    signature: str
    """Ed25519 signature over ``slmops-enrol:`` + token, hex."""
    facts: DeviceFacts
    """Current."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Set by the device's owner."""
    name: str | None = None
    """Wanted device name; made up when None."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EnrolAnswer:
    """What a device keeps from its enrolment."""

    device: str
    """Its id."""
    director_key: str
    """Ed25519 public key of the director, 64 hex digits."""
    root: str
    """Trusted TUF root metadata, JSON text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SessionRequest:
    """Ask for a short-lived bearer token; answers to a signature of the device's key."""

    device: str
    """Its id."""
    counter: int
    """Strictly increasing per device; needs no right clock and makes replays useless."""
    signature: str
    """Ed25519 signature over ``slmops-session:`` device ``:`` counter, hex."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SessionAnswer:
    """A bearer token for `POST /v1/sync` and the registry's files."""

    token: str
    """Send as ``Authorization: Bearer``."""
    expires_in_s: float
    """Ask for a new one before this."""
