"""How a device stands, read beside a running agent: journal, slots, endpoint file."""

from dataclasses import dataclass
from pathlib import Path

from slmops.agent.journal import Quarantined, open_beside, read_facts
from slmops.agent.machine import ENDPOINT, JOURNAL, EndpointPlace
from slmops.agent.settings import AgentSettings
from slmops.agent.slots import SlotStore
from slmops.domain.errors import InvalidInputError, NotFoundError, UnavailableError
from slmops.domain.ids import parse_digest
from slmops.domain.installation import State
from slmops.domain.sync import InstallationReport, Installed
from slmops.wire import codec


@dataclass(frozen=True, kw_only=True, slots=True)
class AgentStatus:
    """What `slmops agent status` shows."""

    device: str
    """Its id."""
    server: str
    """Control plane."""
    endpoint: str | None
    """Base address while the agent runs."""
    active: Installed | None
    """What serves."""
    previous: Installed | None
    """What it can go back to."""
    installation: InstallationReport | None
    """Current or last one."""
    quarantined: tuple[Quarantined, ...]
    """Variants that failed here, and why."""
    trouble: str | None = None
    """Why the journal cannot be read, so that nothing is known of installations."""


def agent_status(state: Path, settings: AgentSettings) -> AgentStatus:
    """Read the status of an enrolled device.

    Raises:
        InvalidInputError: the slot pointer is damaged.
    """
    slots = SlotStore(state).read()
    installation: InstallationReport | None = None
    quarantined: tuple[Quarantined, ...] = ()
    trouble: str | None = None
    try:
        if (state / JOURNAL).exists():
            installation, quarantined = _read_journal(state / JOURNAL)
    except UnavailableError as error:
        trouble = str(error)
    return AgentStatus(
        device=settings.device,
        server=settings.server,
        endpoint=_endpoint(state),
        active=slots.active.installed if slots.active else None,
        previous=slots.previous.installed if slots.previous else None,
        installation=installation,
        quarantined=quarantined,
        trouble=trouble,
    )


def forgive(state: Path, digest: str | None = None) -> tuple[Quarantined, ...]:
    """Lift the quarantine of one variant, or of all; an agent may run meanwhile.

    Returns:
        What was lifted. The next sync tells the control plane; a rollout may then bring
        the variant again.

    Raises:
        InvalidInputError: `digest` is none.
        NotFoundError: nothing of that kind is in quarantine here.
        UnavailableError: the journal cannot be written now.
    """
    variant = None if digest is None else parse_digest(digest)
    lifted: tuple[Quarantined, ...] = ()
    if (state / JOURNAL).exists():
        journal = open_beside(state / JOURNAL)
        try:
            lifted = journal.forgive(variant)
        finally:
            journal.close()
    if not lifted:
        raise NotFoundError(
            f"{state}: {digest or 'nothing'} {'is not' if digest else 'is'} in quarantine"
        )
    return lifted


def _read_journal(
    path: Path,
) -> tuple[InstallationReport | None, tuple[Quarantined, ...]]:
    journal = read_facts(path)
    try:
        current = journal.installation()
        if current is None or current.state is State.IDLE:
            current = journal.last_outcome()
        report = current.report() if current is not None else None
        return report, journal.quarantined()
    finally:
        journal.close()


def _endpoint(state: Path) -> str | None:
    try:
        raw = (state / ENDPOINT).read_bytes()
        place = codec.decode_json(raw, EndpointPlace, where=ENDPOINT)
    except (OSError, InvalidInputError):
        return None
    # A killed agent leaves its file behind.
    return place.url if Path(f"/proc/{place.pid}").exists() else None
