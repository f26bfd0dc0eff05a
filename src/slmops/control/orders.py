"""What operators send, and the answers about operators and tokens: documents of the API."""

from dataclasses import dataclass

from slmops.control.records import OperatorRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenOrder:
    """Ask for a one-time enrolment token."""

    expires_in_s: float = 3600.0
    """Its life, seconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenAnswer:
    """A one-time enrolment token; shown once, stored as a hash."""

    token: str
    """Give it to `slmops agent enrol --token`."""
    expires_in_s: float
    """Its life, seconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutOrder:
    """Start a rollout."""

    release: str
    """Label of a published release: ``assistant-2``."""
    allow_downgrade: bool = False
    """True brings a release that is older than the newest one rolled out."""
    despite_quarantine: bool = False
    """True brings variants that failed in a rollout which halted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReasonOrder:
    """Do something whose reason must be on record."""

    reason: str
    """Why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OperatorOrder:
    """Add an operator."""

    name: str
    """Lower-case letters, digits and hyphens; never used again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OperatorAnswer:
    """A new operator's token; shown once, stored as a hash."""

    name: str
    """As asked."""
    token: str
    """Bearer token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OperatorList:
    """Who may steer the fleet, and who might before."""

    operators: tuple[OperatorRecord, ...]
    """By name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PauseOrder:
    """Pause a rollout."""

    reason: str = ""
    """Why, for the record."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AbortOrder:
    """End a rollout."""

    keep: bool
    """True leaves devices on the release they have; False brings them back."""
