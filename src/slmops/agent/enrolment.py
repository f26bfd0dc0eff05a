"""How a device is introduced to its control plane, once."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from slmops.agent import probe
from slmops.agent.link import enrol, http_client
from slmops.agent.machine import KEY, ROOT
from slmops.agent.settings import CONFIG, AgentSettings, save_agent_settings
from slmops.domain.errors import ConflictError, UnavailableError
from slmops.domain.sync import EnrolRequest
from slmops.registry.blobs import write_atomically
from slmops.registry.keys import SigningKey

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, kw_only=True, slots=True)
class Enrolment:
    """What a person gives to enrol a device."""

    server: str
    """Base address of the control plane."""
    token: str
    """One-time token."""
    name: str | None = None
    """Wanted name."""
    labels: "Mapping[str, str]"
    """Set by the owner."""
    memory_mib: int | None = None
    """Memory given to models."""
    test_runtimes: bool = False
    """Offer runtimes without a model, too; see `AgentSettings.test_runtimes`."""


def enrol_device(state: Path, wanted: Enrolment) -> AgentSettings:
    """Make the device's key, introduce it to the control plane, keep what it says.

    A key that an interrupted enrolment left is used again.

    Raises:
        ConflictError: this folder holds an enrolled device.
        UnavailableError: the disk refuses.
        SlmopsError: as `slmops.agent.link.enrol`.
    """
    prepare_state_folder(state)
    if (state / CONFIG).exists():
        raise ConflictError(f"{state} holds an enrolled device; choose another folder")
    path = state / KEY
    key = SigningKey.load(path) if path.exists() else SigningKey.create(path)
    # Checked before the token is used up.
    AgentSettings(
        server=wanted.server, device="", director_key="", memory_mib=wanted.memory_mib
    )
    request = EnrolRequest(
        token=wanted.token,
        public_key=key.public_hex,
        signature=key.sign(f"slmops-enrol:{wanted.token}".encode()),
        facts=probe.device_facts(
            state,
            memory_limit_mib=wanted.memory_mib,
            test_runtimes=wanted.test_runtimes,
        ),
        labels=dict(wanted.labels),
        name=wanted.name,
    )
    with http_client(wanted.server) as client:
        answer = enrol(client, request)
    write_atomically(state / ROOT, answer.root.encode(), mode=0o600)
    settings = AgentSettings(
        server=wanted.server.rstrip("/"),
        device=answer.device,
        director_key=answer.director_key,
        labels=dict(wanted.labels),
        memory_mib=wanted.memory_mib,
        test_runtimes=wanted.test_runtimes,
    )
    save_agent_settings(state, settings)
    return settings


def prepare_state_folder(state: Path) -> None:
    """Make the folder, for its owner only: it holds the device's key.

    Raises:
        UnavailableError: the disk refuses.
    """
    try:
        state.mkdir(parents=True, exist_ok=True)
        state.chmod(0o700)
    except OSError as error:
        raise UnavailableError(f"{state}: {error.strerror}") from None
