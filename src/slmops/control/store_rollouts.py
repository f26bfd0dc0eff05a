"""Rollouts in SQL: members, assignments, verdicts, audit."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import sqlalchemy as sa

from slmops.control.records import (
    AuditEntry,
    Commit,
    Evaluation,
    LeftOut,
    Placed,
    StoredRollout,
)
from slmops.control.store_assignments import SqlAssignments, append_assignment
from slmops.control.store_base import append_audit, decode, encode
from slmops.control.store_syncs import member_of
from slmops.control.store_tables import (
    audit,
    devices,
    evaluations,
    left_out,
    members,
    releases,
    rollouts,
)
from slmops.domain.errors import ConflictError, NotFoundError
from slmops.domain.members import Member, Outcome
from slmops.domain.rollout import Rollout, RolloutState
from slmops.domain.sync import Installed

_ENDED = frozenset({RolloutState.HALTED, RolloutState.DONE, RolloutState.ABORTED})
_ACTIVE = (
    RolloutState.DRAFT.value,
    RolloutState.RUNNING.value,
    RolloutState.PAUSED.value,
)


class SqlRollouts(SqlAssignments):
    """`RolloutStore` on SQLAlchemy Core."""

    def create_rollout(
        self,
        started: StoredRollout,
        members: Sequence[Placed],
        left_out: Sequence[LeftOut],
    ) -> Rollout:
        """Add a rollout under the next free id and return it."""
        with self.write() as connection:
            active = connection.execute(
                sa.select(rollouts.c.id, rollouts.c.state).where(
                    rollouts.c.product == started.product,
                    rollouts.c.state.in_(_ACTIVE),
                )
            ).one_or_none()
            if active is not None:
                raise ConflictError(
                    f"rollout {active.id} of {started.product} is {active.state}:"
                    " wait for its end, or abort it"
                )
            last = connection.execute(
                sa.select(sa.func.coalesce(sa.func.max(rollouts.c.number), 0))
            ).scalar_one()
            rollout = replace(started.rollout, id=f"r-{last + 1}")
            _insert_rollout(connection, last + 1, rollout, started)
            _insert_members(connection, rollout.id, members)
            _insert_left_out(connection, rollout.id, left_out)
        return rollout

    def rollouts(self) -> tuple[StoredRollout, ...]:
        """Return all rollouts, newest first."""
        with self.read() as connection:
            rows = connection.execute(
                rollouts.select().order_by(rollouts.c.number.desc())
            )
            return tuple(_stored(row) for row in rows)

    def rollout(self, rollout: str) -> StoredRollout:
        """Return one rollout."""
        with self.read() as connection:
            row = connection.execute(
                rollouts.select().where(rollouts.c.id == rollout)
            ).one_or_none()
        if row is None:
            raise NotFoundError(f"rollout {rollout[:80]} does not exist")
        return _stored(row)

    def members(self, rollout: str) -> tuple[Placed, ...]:
        """Return a rollout's members, by wave and device."""
        with self.read() as connection:
            rows = connection.execute(
                sa.select(members, devices.c.seen_at)
                .outerjoin(devices, devices.c.id == members.c.device)
                .where(members.c.rollout == rollout)
                .order_by(members.c.wave, members.c.device)
            ).mappings()
            return tuple(
                Placed(
                    member=replace(member_of(row), seen_at=row["seen_at"]),
                    before=decode(row["before"], Installed) if row["before"] else None,
                )
                for row in rows
            )

    def left_out(self, rollout: str) -> tuple[LeftOut, ...]:
        """Return the devices a rollout does not reach."""
        with self.read() as connection:
            rows = connection.execute(
                left_out.select()
                .where(left_out.c.rollout == rollout)
                .order_by(left_out.c.device)
            )
            return tuple(LeftOut(device=row.device, reason=row.reason) for row in rows)

    def commit(self, commit: Commit) -> Rollout:
        """Write one pass and return the rollout with its raised revision."""
        raised = replace(commit.rollout, revision=commit.rollout.revision + 1)
        with self.write() as connection:
            written = connection.execute(
                rollouts.update()
                .where(
                    rollouts.c.id == raised.id,
                    rollouts.c.revision == commit.rollout.revision,
                )
                .values(
                    state=raised.state.value,
                    revision=raised.revision,
                    document=encode(raised),
                    ended_at=commit.at if raised.state in _ENDED else None,
                )
            )
            if written.rowcount != 1:
                raise ConflictError(
                    f"rollout {raised.id} changed since revision"
                    f" {commit.rollout.revision}: read it again"
                )
            _write_members(connection, raised.id, commit.members)
            _leave_out(connection, raised.id, commit.left_out)
            for assignment in commit.assignments:
                append_assignment(connection, assignment)
            for evaluation in commit.evaluations:
                _append_evaluation(connection, evaluation)
            for entry in commit.audit:
                append_audit(connection, entry)
        return raised

    def note_release(self, label: str, digest: str, *, now: float) -> None:
        """Remember a release at first sight.

        Raises:
            ConflictError: it was seen before with another digest.
        """
        with self.write() as connection:
            known = connection.execute(
                sa.select(releases.c.digest).where(releases.c.label == label)
            ).scalar_one_or_none()
            if known is None:
                connection.execute(
                    releases.insert().values(
                        label=label, digest=digest, first_seen_at=now
                    )
                )
            elif known != digest:
                raise ConflictError(
                    f"release {label} was {known} when first seen, is {digest} now:"
                    " a release never changes"
                )

    def evaluations(self, rollout: str) -> tuple[Evaluation, ...]:
        """Return a rollout's verdicts, oldest first."""
        with self.read() as connection:
            rows = connection.execute(
                sa.select(evaluations.c.document)
                .where(evaluations.c.rollout == rollout)
                .order_by(evaluations.c.number)
            )
            return tuple(decode(row.document, Evaluation) for row in rows)

    def append_audit(self, entry: AuditEntry) -> None:
        """Append to the audit log."""
        with self.write() as connection:
            append_audit(connection, entry)

    def audit(self, *, limit: int = 200) -> tuple[AuditEntry, ...]:
        """Return the newest audit entries, newest first."""
        with self.read() as connection:
            rows = connection.execute(
                audit.select().order_by(audit.c.number.desc()).limit(limit)
            )
            return tuple(
                AuditEntry(
                    at=row.at,
                    actor=row.actor,
                    action=row.action,
                    subject=row.subject,
                    detail=row.detail,
                )
                for row in rows
            )


def _insert_rollout(
    connection: sa.Connection, number: int, rollout: Rollout, started: StoredRollout
) -> None:
    connection.execute(
        rollouts.insert().values(
            number=number,
            id=rollout.id,
            product=started.product,
            release=rollout.release,
            state=rollout.state.value,
            revision=rollout.revision,
            created_at=started.created_at,
            document=encode(rollout),
        )
    )


def _member_row(rollout: str, placed: Placed) -> dict[str, Any]:
    member = placed.member
    return {
        "rollout": rollout,
        "device": member.device,
        "wave": member.wave,
        "device_class": member.device_class,
        "offered_at": member.offered_at,
        "outcome": member.outcome.value,
        "reason": member.reason,
        "paired_loss": member.paired_loss,
        "live": None if member.live is None else encode(member.live),
        "before": None if placed.before is None else encode(placed.before),
        "site": member.site,
        "emulates": member.emulates,
    }


def _insert_members(
    connection: sa.Connection, rollout: str, placed: Sequence[Placed]
) -> None:
    if placed:
        connection.execute(
            members.insert(), [_member_row(rollout, one) for one in placed]
        )


def _insert_left_out(
    connection: sa.Connection, rollout: str, devices: Sequence[LeftOut]
) -> None:
    if devices:
        connection.execute(
            left_out.insert(),
            [
                {"rollout": rollout, "device": one.device, "reason": one.reason}
                for one in devices
            ],
        )


def _write_members(
    connection: sa.Connection, rollout: str, placed: Sequence[Placed]
) -> None:
    for one in placed:
        if _update_member(connection, rollout, one):
            continue
        connection.execute(members.insert().values(_member_row(rollout, one)))
        # A device that could not be placed before may be now.
        connection.execute(
            left_out.delete().where(
                left_out.c.rollout == rollout, left_out.c.device == one.member.device
            )
        )


def _leave_out(
    connection: sa.Connection, rollout: str, devices: Sequence[LeftOut]
) -> None:
    """Turn members into devices that the rollout does not reach."""
    for one in devices:
        connection.execute(
            members.delete().where(
                members.c.rollout == rollout, members.c.device == one.device
            )
        )
    _insert_left_out(connection, rollout, devices)


def _update_member(connection: sa.Connection, rollout: str, placed: Placed) -> bool:
    """Write what the engine decides, never what a sync may have settled meanwhile."""
    row = _member_row(rollout, placed)
    mine = sa.and_(
        members.c.rollout == rollout, members.c.device == placed.member.device
    )
    engine_columns = {key: row[key] for key in ("wave", "offered_at", "before")}
    found = connection.execute(members.update().where(mine).values(engine_columns))
    before = _may_replace(placed.member)
    if before is not None:
        connection.execute(
            members.update()
            .where(mine, members.c.outcome == before.value)
            .values(outcome=row["outcome"], reason=row["reason"])
        )
    return found.rowcount == 1


def _may_replace(member: Member) -> Outcome | None:
    """Return the one outcome that the engine's replaces; None: it gives no such one."""
    if member.outcome is Outcome.FAILED:
        return Outcome.SUCCEEDED
    if member.outcome is Outcome.SILENT:
        # Whoever has live counts was read as committed.
        return Outcome.PENDING if member.live is None else Outcome.SUCCEEDED
    return None


def _append_evaluation(connection: sa.Connection, evaluation: Evaluation) -> None:
    connection.execute(
        evaluations.insert().values(
            rollout=evaluation.rollout,
            at=evaluation.at,
            gate=evaluation.result.gate,
            verdict=evaluation.result.verdict.value,
            document=encode(evaluation),
        )
    )


def _stored(row: Any) -> StoredRollout:  # noqa: ANN401 - a row
    return StoredRollout(
        rollout=decode(row.document, Rollout),
        product=row.product,
        created_at=row.created_at,
        ended_at=row.ended_at,
    )
