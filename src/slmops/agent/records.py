"""What the agent remembers: documents of the journal and of the slot pointer; pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from slmops.domain.blueprint import GoldenPlan
from slmops.domain.device import Budget
from slmops.domain.golden import PromptScore
from slmops.domain.ids import Digest
from slmops.domain.installation import MAX_ENTRIES, Event, State, next_state
from slmops.domain.release import GoldenSet
from slmops.domain.report import merge_counts
from slmops.domain.runtime_settings import UNCHANGED, RuntimeSettings
from slmops.domain.sync import (
    MAX_REASON_CHARS,
    InstallationReport,
    Installed,
    Report,
    TrialResult,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Deployment:
    """All it takes to serve one artefact without asking anybody.

    Made at the offer, from signed documents only.
    """

    release: str
    """Release label; the endpoint's model name."""
    release_digest: Digest
    """Digest of the release document."""
    variant: Digest
    """Digest of the artefact."""
    bytes: int
    """Its exact length."""
    runtime: str
    """Runtime that serves it."""
    device_class: str
    """Class of this device in the release; knobs below come from it."""
    threads: int
    """Threads of the runtime."""
    context_tokens: int
    """Context it is loaded with."""
    memory_limit_mib: float | None
    """Hard limit on the child's private memory; None for none."""
    expected_peak_mib: float
    """Peak memory its card promises: decides between overlap and queue."""
    chat_template: str | None
    """Pinned by the signed release, whatever the artefact says."""
    assignment: int
    """Sequence number of the assignment that brought it."""
    settings: RuntimeSettings = UNCHANGED
    """How the runtime runs it, as it was measured."""

    @property
    def artefacts(self) -> tuple[tuple[Digest, int], ...]:
        """All it is served from: digests and sizes, the variant's own first."""
        own = (self.variant, self.bytes)
        if self.settings.draft is None:
            return (own,)
        return own, (self.settings.draft, self.settings.draft_bytes)

    @property
    def installed(self) -> Installed:
        """As the control plane names it."""
        return Installed(release=self.release, variant=self.variant)


@dataclass(frozen=True, kw_only=True, slots=True)
class Slots:
    """The pointer file: which artefact serves, and which one to go back to."""

    active: Deployment | None = None
    """Serves."""
    previous: Deployment | None = None
    """Kept until the next commit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialPlan:
    """How the new model is to prove itself; from the signed release and assignment."""

    golden: GoldenSet
    """Prompts, and the reference's answers."""
    rules: GoldenPlan
    """Tolerances."""
    budget: Budget
    """Of this device's class."""
    card_logprobs: tuple[float, ...]
    """What the variant's card promises for each prompt's first token."""
    probation_s: float
    """How long to watch live traffic."""
    revert: bool
    """True on the way back to an older release: compared with the card only."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Installation:
    """One installation as journaled; `state` is written before its action is done."""

    assignment: int
    """Sequence number of the assignment it answers."""
    state: State
    """Where it stands."""
    entered_at: float
    """Unix time it entered the state, seconds."""
    entries: Mapping[str, int] = field(default_factory=dict)
    """State → how often it was entered or resumed."""
    target: Deployment | None = None
    """What is being installed; known once the offer was checked."""
    plan: TrialPlan | None = None
    """Its trial; known with the target."""
    reason: str = ""
    """Why it failed or waits."""
    bytes_downloaded: int = 0
    """Body bytes received."""
    spoiled_downloads: int = 0
    """How often what came, offer's documents or artefact, was not what was signed."""
    baseline: tuple[PromptScore, ...] | None = None
    """Golden scores of the replaced model, taken before the switch."""
    trial: TrialResult | None = None
    """Of the golden prompts, then with the soak's result."""
    variant_at_fault: bool = False
    """True when the failure is the variant's own: it is quarantined."""

    def report(self) -> InstallationReport:
        """As the control plane sees it: reasons end where it would refuse them."""
        trial = self.trial
        if trial is not None:
            trial = replace(trial, reason=trial.reason[:MAX_REASON_CHARS])
        return InstallationReport(
            assignment=self.assignment,
            state=self.state,
            entered_at=self.entered_at,
            reason=self.reason[:MAX_REASON_CHARS],
            bytes_downloaded=self.bytes_downloaded,
            trial=trial,
        )


def after(installation: Installation, event: Event, *, now: float) -> Installation:
    """Return the installation after `event`, by the domain's table; count the entry.

    A state that was entered too often fails at once, so every installation ends.

    Raises:
        ConflictError: the event is not possible in this state: a bug.
    """
    state = next_state(installation.state, event)
    kept = event in {Event.FAIL, Event.DEFER} or state is State.ROLLED_BACK
    return _entered(
        replace(installation, reason=installation.reason if kept else ""),
        state,
        now=now,
    )


def resumed(installation: Installation, *, now: float) -> Installation:
    """Return the installation after a restart of the agent: the state counts again."""
    return _entered(installation, installation.state, now=now)


def failed(
    installation: Installation, reason: str, *, variant_at_fault: bool = False
) -> Installation:
    """Note why it fails; to be followed by `Event.FAIL`."""
    return replace(installation, reason=reason, variant_at_fault=variant_at_fault)


def _entered(installation: Installation, state: State, *, now: float) -> Installation:
    entries = dict(installation.entries)
    entries[state] = entries.get(state, 0) + 1
    entered = replace(installation, state=state, entered_at=now, entries=entries)
    most = MAX_ENTRIES.get(state)
    if most is None or entries[state] <= most:
        return entered
    reason = (
        f"state {state} was entered {entries[state]} times, at most {most} is allowed"
    )
    if installation.reason:
        reason = f"{reason}; last: {installation.reason}"
    # Power cuts and kills of the agent say nothing about the variant.
    return after(failed(entered, reason), Event.FAIL, now=now)


def mergeable_pair(reports: Sequence[Report]) -> tuple[Report, Report] | None:
    """Return the newest two windows of one release, older first; None without such.

    Args:
        reports: oldest first. Those of other releases may lie between the two.
    """
    newer: dict[str | None, Report] = {}
    for report in reversed(reports):
        if report.release in newer:
            return report, newer[report.release]
        newer[report.release] = report
    return None


def merged_report(older: Report, newer: Report) -> Report:
    """Add two windows of one release under the newer one's number."""
    return Report(
        sequence=newer.sequence,
        started_at=older.started_at,
        ended_at=newer.ended_at,
        release=newer.release,
        requests=older.requests + newer.requests,
        failures=older.failures + newer.failures,
        output_tokens=older.output_tokens + newer.output_tokens,
        restarts=older.restarts + newer.restarts,
        first_token_ms=merge_counts(older.first_token_ms, newer.first_token_ms),
        decode_tokens_per_s=merge_counts(
            older.decode_tokens_per_s, newer.decode_tokens_per_s
        ),
        peak_rss_mib=max(older.peak_rss_mib, newer.peak_rss_mib),
    )
