"""Devices in SQL: credentials, syncs, reports."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import sqlalchemy as sa

from slmops.control.outcome import (
    downloaded_since,
    outcome_of_sync,
    telemetry_after,
)
from slmops.control.records import (
    DeviceRecord,
    DeviceStatus,
    SyncChange,
    SyncResult,
    Telemetry,
)
from slmops.control.store_base import SqlTables, decode, encode, newest_assignment
from slmops.control.store_tables import (
    assignments,
    devices,
    installations,
    members,
    reports,
    sessions,
    tokens,
)
from slmops.domain.device import DeviceFacts
from slmops.domain.errors import ConflictError, NotFoundError, UntrustedError
from slmops.domain.rollout import Member, Outcome
from slmops.domain.sync import Assignment, Report

_LOOK = sa.select(
    devices.c.facts,
    devices.c.labels,
    devices.c.status,
    sa.select(assignments.c.document)
    .where(assignments.c.device == devices.c.id)
    .order_by(assignments.c.sequence.desc())
    .limit(1)
    .scalar_subquery()
    .label("newest"),
).where(devices.c.id == sa.bindparam("device"))
"""All the common sync reads, in one statement that is built once."""


class SqlDevices(SqlTables):
    """`DeviceStore` on SQLAlchemy Core."""

    def add_enrolment_token(self, token_hash: str, *, expires_at: float) -> None:
        """Remember the hash of a one-time token."""
        with self.write() as connection:
            connection.execute(
                tokens.insert().values(token_hash=token_hash, expires_at=expires_at)
            )

    def enrol(self, device: DeviceRecord, *, token_hash: str, now: float) -> str:
        """Use up the token and add the device; return its id."""
        with self.write() as connection:
            again = _enrolled_with(connection, token_hash, device.public_key)
            if again is not None:
                return again
            taken = connection.execute(
                tokens.update()
                .where(
                    tokens.c.token_hash == token_hash,
                    tokens.c.used_by.is_(None),
                    tokens.c.expires_at > now,
                )
                .values(used_by=device.id, used_at=now)
            )
            if taken.rowcount != 1:
                raise UntrustedError("enrolment token is unknown, used or expired")
            if _find(connection, device.id) is not None:
                raise ConflictError(f"device {device.id} is enrolled already")
            connection.execute(devices.insert().values(counter=0, **_row(device)))
        return device.id

    def open_session(
        self, device: str, *, counter: int, token_hash: str, expires_at: float
    ) -> None:
        """Raise the device's counter and add a session."""
        with self.write() as connection:
            last = connection.execute(
                sa.select(devices.c.counter).where(devices.c.id == device)
            ).scalar_one_or_none()
            if last is None:
                raise NotFoundError(f"device {device} is not enrolled")
            if counter <= last:
                raise UntrustedError(
                    f"session counter must be > {last}, got {counter}: a replay"
                )
            connection.execute(
                devices.update().where(devices.c.id == device).values(counter=counter)
            )
            # A device has one agent: its newest session replaces the others.
            connection.execute(sessions.delete().where(sessions.c.device == device))
            connection.execute(
                sessions.insert().values(
                    token_hash=token_hash, device=device, expires_at=expires_at
                )
            )

    def session(self, token_hash: str) -> tuple[str, float] | None:
        """Return the device and expiry of a session, or None."""
        with self.read() as connection:
            row = connection.execute(
                sa.select(sessions.c.device, sessions.c.expires_at).where(
                    sessions.c.token_hash == token_hash
                )
            ).one_or_none()
        return None if row is None else (row.device, row.expires_at)

    def device(self, device: str) -> DeviceRecord:
        """Return one device."""
        with self.read() as connection:
            return _record(_need(connection, device))

    def devices(self) -> tuple[DeviceRecord, ...]:
        """Return all devices, by id."""
        with self.read() as connection:
            rows = connection.execute(devices.select().order_by(devices.c.id))
            return tuple(_record(row) for row in rows)

    def touch(self, seen: Mapping[str, float]) -> None:
        """Write when devices were last seen."""
        if not seen:
            return
        with self.write() as connection:
            connection.execute(
                devices.update()
                .where(devices.c.id == sa.bindparam("who"))
                .values(seen_at=sa.bindparam("at")),
                [{"who": device, "at": at} for device, at in seen.items()],
            )

    def reports(self, device: str) -> tuple[bytes, ...]:
        """Return a device's reports as stored JSON, oldest first."""
        with self.read() as connection:
            rows = connection.execute(
                sa.select(reports.c.document)
                .where(reports.c.device == device)
                .order_by(reports.c.sequence)
            )
            return tuple(row.document.encode() for row in rows)

    def record_sync(self, change: SyncChange) -> SyncResult:
        """Take in one sync; the common one, where nothing is new, only reads."""
        with self.read() as connection:
            row = connection.execute(_LOOK, {"device": change.device}).one_or_none()
        if row is None:
            raise NotFoundError(f"device {change.device} is not enrolled")
        told = _told(change)
        said = (told["facts"], told["labels"], told["status"])
        if not change.reports and said == (row.facts, row.labels, row.status):
            newest = None if row.newest is None else decode(row.newest, Assignment)
            return SyncResult(newest=newest, changed=False, facts_changed=False)
        with self.write() as connection:
            return _take_in(connection, change)


def _enrolled_with(
    connection: sa.Connection, token_hash: str, public_key: str
) -> str | None:
    """Return the device that used this token with this key: its answer got lost."""
    device: str | None = connection.execute(
        sa.select(devices.c.id)
        .join(tokens, tokens.c.used_by == devices.c.id)
        .where(tokens.c.token_hash == token_hash, devices.c.public_key == public_key)
    ).scalar_one_or_none()
    return device


def _take_in(connection: sa.Connection, change: SyncChange) -> SyncResult:
    row = _need(connection, change.device)
    told = _told(change)
    new_reports = _append_reports(connection, change)
    before = decode(row["status"], DeviceStatus)
    telemetry = telemetry_after(decode(row["telemetry"], Telemetry), new_reports)
    received = downloaded_since(before, change.status)
    telemetry = replace(
        telemetry, bytes_downloaded=telemetry.bytes_downloaded + received
    )
    connection.execute(
        devices.update()
        .where(devices.c.id == change.device)
        .values(
            seen_at=change.at,
            telemetry=encode(telemetry),
            **told,
        )
    )
    newest = newest_assignment(connection, change.device)
    if row["status"] != told["status"]:
        _append_installation(connection, change, before)
        for assignment in _answered(connection, change, newest):
            _settle(connection, change, assignment)
    facts_changed = (row["facts"], row["labels"]) != (told["facts"], told["labels"])
    return SyncResult(newest=newest, changed=True, facts_changed=facts_changed)


def _told(change: SyncChange) -> dict[str, str]:
    return {
        "facts": encode(change.facts),
        "labels": encode(dict(change.labels)),
        "status": encode(change.status),
    }


def _append_reports(
    connection: sa.Connection, change: SyncChange
) -> tuple[Report, ...]:
    if not change.reports:
        return ()
    wanted = [report.sequence for report in change.reports]
    have = set(
        connection.execute(
            sa.select(reports.c.sequence).where(
                reports.c.device == change.device, reports.c.sequence.in_(wanted)
            )
        ).scalars()
    )
    fresh = {
        report.sequence: report
        for report in change.reports
        if report.sequence not in have
    }
    if fresh:
        connection.execute(
            reports.insert(),
            [
                {
                    "device": change.device,
                    "sequence": report.sequence,
                    "received_at": change.at,
                    "document": encode(report),
                }
                for report in fresh.values()
            ],
        )
    return tuple(fresh.values())


def _append_installation(
    connection: sa.Connection, change: SyncChange, before: DeviceStatus
) -> None:
    installation = change.status.installation
    if installation is None or installation == before.installation:
        return
    connection.execute(
        installations.insert().values(
            device=change.device,
            assignment=installation.assignment,
            state=installation.state.value,
            received_at=change.at,
            document=encode(installation),
        )
    )


def _answered(
    connection: sa.Connection, change: SyncChange, newest: Assignment | None
) -> list[Assignment]:
    """Return the assignments a sync may be about: the newest, and the one in work."""
    if newest is None:
        return []
    installation = change.status.installation
    if installation is None or installation.assignment == newest.sequence:
        return [newest]
    text = connection.execute(
        sa.select(assignments.c.document).where(
            assignments.c.device == change.device,
            assignments.c.sequence == installation.assignment,
        )
    ).scalar_one_or_none()
    older = [] if text is None else [decode(text, Assignment)]
    return [*older, newest]


def _settle(
    connection: sa.Connection, change: SyncChange, assignment: Assignment
) -> None:
    """Let the member's outcome follow from what its device said."""
    mine = sa.and_(
        members.c.rollout == assignment.rollout, members.c.device == change.device
    )
    row = connection.execute(members.select().where(mine)).mappings().one_or_none()
    if row is None:
        return
    member = member_of(row)
    settled = outcome_of_sync(member, assignment, change.status)
    if settled == member:
        return
    connection.execute(
        members.update()
        .where(mine)
        .values(
            outcome=settled.outcome.value,
            reason=settled.reason,
            paired_loss=settled.paired_loss,
        )
    )


def member_of(row: Any) -> Member:  # noqa: ANN401 - a row
    """Build the domain's member from a row of `members`."""
    return Member(
        device=row["device"],
        device_class=row["device_class"],
        wave=row["wave"],
        offered_at=row["offered_at"],
        outcome=Outcome(row["outcome"]),
        reason=row["reason"],
        paired_loss=row["paired_loss"],
    )


def _find(connection: sa.Connection, device: str) -> Any:  # noqa: ANN401 - a row
    return (
        connection.execute(devices.select().where(devices.c.id == device))
        .mappings()
        .one_or_none()
    )


def _need(connection: sa.Connection, device: str) -> Any:  # noqa: ANN401 - a row
    row = _find(connection, device)
    if row is None:
        raise NotFoundError(f"device {device} is not enrolled")
    return row


def _row(device: DeviceRecord) -> dict[str, Any]:
    return {
        "id": device.id,
        "public_key": device.public_key,
        "enrolled_at": device.enrolled_at,
        "seen_at": device.seen_at,
        "facts": encode(device.facts),
        "labels": encode(dict(device.labels)),
        "status": encode(device.status),
        "telemetry": encode(device.telemetry),
    }


def _record(row: Any) -> DeviceRecord:  # noqa: ANN401 - a row
    row = getattr(row, "_mapping", row)
    plain = DeviceRecord(
        id=row["id"],
        public_key=row["public_key"],
        enrolled_at=row["enrolled_at"],
        seen_at=row["seen_at"],
        facts=decode(row["facts"], DeviceFacts),
    )
    return replace(
        plain,
        labels=decode(row["labels"], dict[str, str]),
        status=decode(row["status"], DeviceStatus),
        telemetry=decode(row["telemetry"], Telemetry),
    )
