"""The store's face: what the control plane asks of its database.

Every method is one transaction. What a method wrote is durable when it returns, so an
answer sent afterwards never promises what a power cut takes back. Implementations live
in `slmops.control.store_sql`; each passes `slmops.testing.contracts.store`.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from slmops.control.records import (
    AuditEntry,
    Commit,
    DeviceRecord,
    Evaluation,
    LeftOut,
    OperatorRecord,
    Placed,
    StoredRollout,
    SyncChange,
    SyncResult,
)
from slmops.domain.rollout import Rollout
from slmops.domain.sync import Assignment, InstallationReport


class DeviceStore(Protocol):
    """Devices, their credentials and what they said."""

    def add_enrolment_token(self, token_hash: str, *, expires_at: float) -> None:
        """Remember the hash of a one-time token."""
        ...

    def enrol(self, device: DeviceRecord, *, token_hash: str, now: float) -> str:
        """Use up the token and add the device; return its id.

        Appends to the audit log. The same key with the same token gets the same id
        again, and no second entry: the first answer may have been lost on the way.

        Raises:
            UntrustedError: token is unknown, used or expired, or the key is one of a
                retired device.
            ConflictError: a device with this id exists, or did.
        """
        ...

    def open_session(
        self, device: str, *, counter: int, token_hash: str, expires_at: float
    ) -> None:
        """Raise the device's counter and add a session; drops its expired ones.

        Raises:
            NotFoundError: no such device.
            UntrustedError: `counter` is not greater than the last: a replay. Or the
                device is retired.
        """
        ...

    def session(self, token_hash: str) -> tuple[str, float] | None:
        """Return the device and expiry of a session, or None."""
        ...

    def device(self, device: str) -> DeviceRecord:
        """Return one device.

        Raises:
            NotFoundError: no such device.
        """
        ...

    def devices(self) -> tuple[DeviceRecord, ...]:
        """Return all devices, by id."""
        ...

    def record_sync(self, change: SyncChange) -> SyncResult:
        """Take in one sync; writes nothing when nothing changed.

        Reports are appended once per sequence; members' outcomes follow from the
        installation report.

        Raises:
            NotFoundError: no such device.
            UntrustedError: it is retired.
        """
        ...

    def retire(self, device: str, *, now: float) -> bool:
        """Take a device out of the fleet for good; its record stays.

        Drops its sessions and appends to the audit log.

        Returns:
            False when it was retired before; nothing is written then.

        Raises:
            NotFoundError: no such device.
        """
        ...

    def touch(self, seen: Mapping[str, float]) -> None:
        """Write when devices were last seen."""
        ...

    def installations(self, device: str) -> tuple[InstallationReport, ...]:
        """Return the history of a device's installations, oldest first.

        A row per change of state, for assignments it was given, at most 256 each.
        """
        ...

    def reports(self, device: str) -> tuple[bytes, ...]:
        """Return a device's reports as stored JSON, oldest first."""
        ...


class RolloutStore(Protocol):
    """Rollouts, assignments and the two append-only histories."""

    def create_rollout(
        self,
        started: StoredRollout,
        members: Sequence[Placed],
        left_out: Sequence[LeftOut],
    ) -> Rollout:
        """Add a rollout under the next free id and return it.

        Raises:
            ConflictError: the product has an active rollout.
        """
        ...

    def rollouts(self) -> tuple[StoredRollout, ...]:
        """Return all rollouts, newest first."""
        ...

    def rollout(self, rollout: str) -> StoredRollout:
        """Return one rollout.

        Raises:
            NotFoundError: no such rollout.
        """
        ...

    def members(self, rollout: str) -> tuple[Placed, ...]:
        """Return a rollout's members, by wave and device."""
        ...

    def left_out(self, rollout: str) -> tuple[LeftOut, ...]:
        """Return the devices a rollout does not reach."""
        ...

    def commit(self, commit: Commit) -> Rollout:
        """Write one pass and return the rollout with its raised revision.

        Raises:
            ConflictError: the rollout changed since it was read; nothing is written.
        """
        ...

    def note_release(self, label: str, digest: str, *, now: float) -> None:
        """Remember a release at first sight.

        Raises:
            ConflictError: it was seen before with another digest.
        """
        ...

    def newest_assignments(self) -> Mapping[str, Assignment]:
        """Return the newest assignment of every device that ever got one, by device."""
        ...

    def assignments(self, device: str) -> tuple[Assignment, ...]:
        """Return a device's assignments, oldest first."""
        ...

    def going_back(self, rollout: str) -> tuple[str, ...]:
        """Return the devices whose newest order is a rollout's to go back, by id."""
        ...

    def moved_on(self, rollout: str) -> tuple[str, ...]:
        """Return a rollout's devices whose newest order is of another one, by id."""
        ...

    def evaluations(self, rollout: str) -> tuple[Evaluation, ...]:
        """Return a rollout's verdicts, oldest first."""
        ...

    def append_audit(self, entry: AuditEntry) -> None:
        """Append to the audit log."""
        ...

    def audit(self, *, limit: int = 200) -> tuple[AuditEntry, ...]:
        """Return the newest audit entries, newest first."""
        ...


class OperatorStore(Protocol):
    """People with a token of their own."""

    def add_operator(self, name: str, token_hash: str, *, now: float) -> None:
        """Add an operator.

        Raises:
            ConflictError: the name is or was in use.
        """
        ...

    def remove_operator(self, name: str, *, now: float) -> None:
        """Make an operator's token worthless.

        Raises:
            NotFoundError: nobody of that name has a good token.
        """
        ...

    def operator_of(self, token_hash: str) -> str | None:
        """Return whose token this is, or None."""
        ...

    def operators(self) -> tuple[OperatorRecord, ...]:
        """Return everybody who was ever added, by name."""
        ...


class Store(DeviceStore, RolloutStore, OperatorStore, Protocol):
    """All of it."""

    def close(self) -> None:
        """Release files and connections."""
        ...
