"""Why a device has its class: every condition of every class, held against its facts."""

from dataclasses import dataclass
from pathlib import Path

from slmops.agent import probe
from slmops.agent.settings import AgentSettings
from slmops.agent.slots import TRUST, SlotStore
from slmops.domain.device import Clause, DeviceFacts
from slmops.domain.errors import NotFoundError
from slmops.domain.release import Release
from slmops.registry.blobs import bytes_digest
from slmops.wire import codec


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassAnswer:
    """One class of the release, in the release's order."""

    device_class: str
    """Its name."""
    chosen: bool
    """The first whose conditions all hold."""
    clauses: tuple[Clause, ...]
    """Its conditions; none means that every device belongs to it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Explanation:
    """What `slmops agent explain` shows."""

    release: str
    """Whose classes: the release that is active here."""
    facts: DeviceFacts
    """Read now."""
    installed_for: str
    """Class that the control plane named when it was installed."""
    classes: tuple[ClassAnswer, ...]
    """All of them."""


def explain_class(
    state: Path, settings: AgentSettings, *, system: Path = Path("/")
) -> Explanation:
    """Hold the active release's classes against this device as it is now.

    Raises:
        NotFoundError: no release is active, or its document is gone.
        InvalidInputError: the slot pointer is damaged.
    """
    active = SlotStore(state).read().active
    if active is None:
        raise NotFoundError(f"{state}: no release is active, so there are no classes")
    facts = probe.device_facts(
        state,
        memory_limit_mib=settings.memory_mib,
        test_runtimes=settings.test_runtimes,
        system=system,
    )
    release = _document(state, active.release, active.release_digest)
    answers: list[ClassAnswer] = []
    for device_class in release.classes:
        clauses = device_class.where.clauses(facts, settings.labels)
        first = not any(answer.chosen for answer in answers)
        answers.append(
            ClassAnswer(
                device_class=device_class.name,
                chosen=first and all(clause.holds for clause in clauses),
                clauses=clauses,
            )
        )
    return Explanation(
        release=active.release,
        facts=facts,
        installed_for=active.device_class,
        classes=tuple(answers),
    )


def _document(state: Path, label: str, digest: str) -> Release:
    """Read the release document that the TUF client kept, checked by its digest."""
    for path in (state / TRUST / "documents").glob("*.json"):
        raw = path.read_bytes()
        if bytes_digest(raw) == digest:
            return codec.decode_json(raw, Release, where=str(path), lenient=True)
    raise NotFoundError(f"{state}: the document of {label} is not kept here")
