"""Operators in SQL: people with a name and a token of their own."""

import sqlalchemy as sa

from slmops.control.records import AuditEntry, OperatorRecord
from slmops.control.store_base import SqlTables, append_audit
from slmops.control.store_tables import operators
from slmops.domain.errors import ConflictError, NotFoundError


class SqlOperators(SqlTables):
    """`OperatorStore` on SQLAlchemy Core."""

    def add_operator(self, name: str, token_hash: str, *, now: float) -> None:
        """Add an operator; a name is never used again."""
        with self.write() as connection:
            known = sa.select(operators.c.name).where(operators.c.name == name)
            if connection.execute(known).first() is not None:
                raise ConflictError(
                    f"operator {name} exists, or did: names stand in the audit log and"
                    " are not used again"
                )
            row = {"name": name, "token_hash": token_hash, "added_at": now}
            connection.execute(operators.insert().values(**row))
            append_audit(connection, _note("operator.add", name, now))

    def remove_operator(self, name: str, *, now: float) -> None:
        """Make an operator's token worthless."""
        with self.write() as connection:
            removed = connection.execute(
                operators.update()
                .where(operators.c.name == name, operators.c.removed_at.is_(None))
                .values(removed_at=now)
            )
            if removed.rowcount != 1:
                raise NotFoundError(f"operator {name} does not exist")
            append_audit(connection, _note("operator.remove", name, now))

    def operator_of(self, token_hash: str) -> str | None:
        """Return whose token this is, or None."""
        with self.read() as connection:
            return connection.execute(
                sa.select(operators.c.name).where(
                    operators.c.token_hash == token_hash,
                    operators.c.removed_at.is_(None),
                )
            ).scalar_one_or_none()

    def operators(self) -> tuple[OperatorRecord, ...]:
        """Return everybody who was ever added, by name."""
        with self.read() as connection:
            rows = connection.execute(operators.select().order_by(operators.c.name))
            return tuple(
                OperatorRecord(
                    name=row.name, added_at=row.added_at, removed_at=row.removed_at
                )
                for row in rows
            )


def _note(action: str, name: str, now: float) -> AuditEntry:
    return AuditEntry(at=now, actor="operator", action=action, subject=name)
