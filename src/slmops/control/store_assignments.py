"""Assignments in SQL: what devices were told, in order."""

from dataclasses import replace
from typing import Any

import sqlalchemy as sa

from slmops.control.store_base import SqlTables, decode, encode
from slmops.control.store_tables import assignments
from slmops.domain.sync import Assignment


class SqlAssignments(SqlTables):
    """The part of `RolloutStore` about assignments."""

    def assignments(self, device: str) -> tuple[Assignment, ...]:
        """Return a device's assignments, oldest first."""
        with self.read() as connection:
            rows = connection.execute(
                sa.select(assignments.c.document)
                .where(assignments.c.device == device)
                .order_by(assignments.c.sequence)
            )
            return tuple(decode(row.document, Assignment) for row in rows)

    def newest_assignments(self) -> dict[str, Assignment]:
        """Return the newest assignment of every device that ever got one, by device."""
        everybody = sa.select(assignments.c.device)
        return {one.device: one for one in self._newest(everybody)}

    def going_back(self, rollout: str) -> tuple[str, ...]:
        """Return the devices whose newest order is a rollout's to go back, by id."""
        newest = self._newest_orders(rollout)
        return tuple(
            one.device for one in newest if one.rollout == rollout and one.revert
        )

    def moved_on(self, rollout: str) -> tuple[str, ...]:
        """Return a rollout's devices whose newest order is of another one, by id."""
        newest = self._newest_orders(rollout)
        return tuple(one.device for one in newest if one.rollout != rollout)

    def _newest_orders(self, rollout: str) -> tuple[Assignment, ...]:
        """Return the newest assignment of each device that a rollout gave one."""
        return self._newest(
            sa.select(assignments.c.device).where(assignments.c.rollout == rollout)
        )

    def _newest(self, given: Any) -> tuple[Assignment, ...]:  # noqa: ANN401 - SQL
        last = (
            sa.select(
                assignments.c.device, sa.func.max(assignments.c.sequence).label("last")
            )
            .where(assignments.c.device.in_(given))
            .group_by(assignments.c.device)
            .subquery()
        )
        newest = (assignments.c.device == last.c.device) & (
            assignments.c.sequence == last.c.last
        )
        with self.read() as connection:
            rows = connection.execute(
                sa.select(assignments.c.document)
                .join(last, newest)
                .order_by(assignments.c.device)
            )
            return tuple(decode(row.document, Assignment) for row in rows)


def append_assignment(connection: sa.Connection, assignment: Assignment) -> None:
    """Append an assignment under its device's next sequence number."""
    last = connection.execute(
        sa.select(sa.func.coalesce(sa.func.max(assignments.c.sequence), 0)).where(
            assignments.c.device == assignment.device
        )
    ).scalar_one()
    numbered = replace(assignment, sequence=last + 1)
    connection.execute(
        assignments.insert().values(
            device=numbered.device,
            sequence=numbered.sequence,
            rollout=numbered.rollout,
            document=encode(numbered),
        )
    )
