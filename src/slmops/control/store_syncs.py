"""Syncs in SQL: what a device said, its reports, and its outcomes in rollouts."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import sqlalchemy as sa

from slmops.control.outcome import (
    downloaded_since,
    live_after,
    outcome_of_sync,
    telemetry_after,
)
from slmops.control.records import (
    DeviceStatus,
    SyncChange,
    SyncResult,
    Telemetry,
)
from slmops.control.retirement import retired_error
from slmops.control.store_base import SqlTables, decode, encode, newest_assignment
from slmops.control.store_tables import (
    assignments,
    devices,
    installations,
    members,
    reports,
    rollouts,
)
from slmops.domain.errors import NotFoundError
from slmops.domain.installation import ENDED
from slmops.domain.members import Member, Outcome
from slmops.domain.rollout import Rollout
from slmops.domain.soak import LiveCounts
from slmops.domain.sync import Assignment, InstallationReport, Report

_LOOK = sa.select(
    devices.c.facts,
    devices.c.labels,
    devices.c.status,
    devices.c.retired_at,
    sa.select(assignments.c.document)
    .where(assignments.c.device == devices.c.id)
    .order_by(assignments.c.sequence.desc())
    .limit(1)
    .scalar_subquery()
    .label("newest"),
).where(devices.c.id == sa.bindparam("device"))
"""All the common sync reads, in one statement that is built once."""


_MOST_ROWS = 256
"""History of one installation; a device that goes back and forth fills no disk."""
_MOST_ROWS_UNDECIDED = 240
"""Leaves room for the outcome."""


class SqlSyncs(SqlTables):
    """The part of `DeviceStore` that syncs and reports need."""

    def installations(self, device: str) -> tuple[InstallationReport, ...]:
        """Return the history of a device's installations, oldest first."""
        with self.read() as connection:
            rows = connection.execute(
                sa.select(installations.c.document)
                .where(installations.c.device == device)
                .order_by(installations.c.number)
            )
            return tuple(decode(row.document, InstallationReport) for row in rows)

    def record_sync(self, change: SyncChange) -> SyncResult:
        """Take in one sync; the common one, where nothing is new, only reads."""
        with self.read() as connection:
            row = connection.execute(_LOOK, {"device": change.device}).one_or_none()
        if row is None:
            raise NotFoundError(f"device {change.device} is not enrolled")
        if row.retired_at is not None:
            raise retired_error(change.device)
        told = _told(change)
        said = (told["facts"], told["labels"], told["status"])
        if not change.reports and said == (row.facts, row.labels, row.status):
            newest = None if row.newest is None else decode(row.newest, Assignment)
            return SyncResult(newest=newest, changed=False, facts_changed=False)
        with self.write() as connection:
            return _take_in(connection, change)


def _take_in(connection: sa.Connection, change: SyncChange) -> SyncResult:
    row = need_device(connection, change.device)
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
        sequence = newest.sequence if newest is not None else 0
        _append_installation(connection, change, before, sequence)
    if row["status"] != told["status"] or new_reports:
        for assignment in _answered(connection, change, newest):
            _settle(connection, change, assignment, new_reports)
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
    connection: sa.Connection, change: SyncChange, before: DeviceStatus, newest: int
) -> None:
    """Append where an installation stands, once a state and not without end."""
    installation, known = change.status.installation, before.installation
    if installation is None or not 1 <= installation.assignment <= newest:
        return
    if known is not None and (known.assignment, known.state) == (
        installation.assignment,
        installation.state,
    ):
        return
    rows = connection.execute(
        sa.select(sa.func.count()).where(
            installations.c.device == change.device,
            installations.c.assignment == installation.assignment,
        )
    ).scalar_one()
    if rows >= (_MOST_ROWS if installation.state in ENDED else _MOST_ROWS_UNDECIDED):
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
    connection: sa.Connection,
    change: SyncChange,
    assignment: Assignment,
    new_reports: Sequence[Report],
) -> None:
    """Let the member's outcome and live counts follow from what its device said."""
    mine = sa.and_(
        members.c.rollout == assignment.rollout, members.c.device == change.device
    )
    row = connection.execute(members.select().where(mine)).mappings().one_or_none()
    if row is None:
        return
    if assignment.revert and _brings_back(connection, assignment.rollout):
        # There, going back is what the rollout is about.
        assignment = replace(assignment, revert=False)
    member = member_of(row)
    settled = outcome_of_sync(member, assignment, change.status)
    settled = live_after(settled, assignment, change.status, new_reports)
    if settled == member:
        return
    connection.execute(
        members.update()
        .where(mine)
        .values(
            outcome=settled.outcome.value,
            reason=settled.reason,
            paired_loss=settled.paired_loss,
            live=None if settled.live is None else encode(settled.live),
        )
    )


def _brings_back(connection: sa.Connection, rollout: str) -> bool:
    document = connection.execute(
        sa.select(rollouts.c.document).where(rollouts.c.id == rollout)
    ).scalar_one()
    return decode(document, Rollout).reverts is not None


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
        live=decode(row["live"], LiveCounts) if row["live"] else None,
        site=row["site"],
        emulates=row["emulates"],
    )


def find_device(connection: sa.Connection, device: str) -> Any:  # noqa: ANN401 - a row
    """Return a device's row, or None."""
    return (
        connection.execute(devices.select().where(devices.c.id == device))
        .mappings()
        .one_or_none()
    )


def need_device(connection: sa.Connection, device: str) -> Any:  # noqa: ANN401 - a row
    """Return a device's row, or raise NotFoundError."""
    row = find_device(connection, device)
    if row is None:
        raise NotFoundError(f"device {device} is not enrolled")
    return row
