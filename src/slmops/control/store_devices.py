"""Devices in SQL: credentials, syncs, reports."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import sqlalchemy as sa

from slmops.control.auth import require_newer
from slmops.control.records import (
    AuditEntry,
    DeviceRecord,
    DeviceStatus,
    Telemetry,
)
from slmops.control.retirement import retired_error
from slmops.control.store_base import (
    append_audit,
    decode,
    encode,
)
from slmops.control.store_syncs import SqlSyncs, find_device, need_device
from slmops.control.store_tables import (
    devices,
    reports,
    sessions,
    tokens,
)
from slmops.domain.device import DeviceFacts
from slmops.domain.errors import ConflictError, UntrustedError


class SqlDevices(SqlSyncs):
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
                _require_fresh_key(connection, device.public_key)
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
            _require_fresh_key(connection, device.public_key)
            _require_free_name(connection, device.id)
            connection.execute(devices.insert().values(**_row(device)))
            entry = AuditEntry(
                at=now,
                actor=f"device:{device.id}",
                action="device.enrol",
                subject=device.id,
            )
            append_audit(connection, entry)
        return device.id

    def open_session(
        self, device: str, *, counter: int, token_hash: str, expires_at: float
    ) -> None:
        """Raise the device's counter and add a session."""
        with self.write() as connection:
            row = need_device(connection, device)
            if row["retired_at"] is not None:
                raise retired_error(device)
            require_newer(counter, than=row["counter"])
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
            return _record(need_device(connection, device))

    def devices(self) -> tuple[DeviceRecord, ...]:
        """Return all devices, by id."""
        with self.read() as connection:
            rows = connection.execute(devices.select().order_by(devices.c.id))
            return tuple(_record(row) for row in rows)

    def retire(self, device: str, *, now: float) -> bool:
        """Take a device out of the fleet for good; its record stays."""
        with self.write() as connection:
            if need_device(connection, device)["retired_at"] is not None:
                return False
            connection.execute(
                devices.update().where(devices.c.id == device).values(retired_at=now)
            )
            connection.execute(sessions.delete().where(sessions.c.device == device))
            entry = AuditEntry(
                at=now, actor="operator", action="device.retire", subject=device
            )
            append_audit(connection, entry)
        return True

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


def _require_fresh_key(connection: sa.Connection, public_key: str) -> None:
    owner = connection.execute(
        sa.select(devices.c.id)
        .where(devices.c.public_key == public_key, devices.c.retired_at.is_not(None))
        .limit(1)
    ).scalar_one_or_none()
    if owner is not None:
        raise retired_error(owner)


def _require_free_name(connection: sa.Connection, device: str) -> None:
    row = find_device(connection, device)
    if row is None:
        return
    if row["retired_at"] is not None:
        raise ConflictError(
            f"device {device} was retired and its name is kept for the record:"
            " choose another --name"
        )
    raise ConflictError(f"device {device} is enrolled already")


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


def _row(device: DeviceRecord) -> dict[str, Any]:
    return {
        "id": device.id,
        "public_key": device.public_key,
        "enrolled_at": device.enrolled_at,
        "counter": device.counter,
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
        retired_at=row["retired_at"],
        counter=row["counter"],
    )
