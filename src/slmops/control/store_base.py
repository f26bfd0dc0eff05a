"""What the SQL parts of the store share: transactions, JSON columns, one query."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import sqlalchemy as sa

from slmops.control.records import AuditEntry
from slmops.control.store_tables import assignments, audit
from slmops.domain.sync import Assignment
from slmops.wire import codec

Document = TypeVar("Document")


class SqlTables:
    """Transactions on one engine."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine
        self._writer = engine.execution_options(write=True)

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """Give a consistent snapshot."""
        with self.engine.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """Give a transaction that is durable when the block ends without an error."""
        with self._writer.begin() as connection:
            yield connection


def encode(document: object) -> str:
    """Return canonical JSON text: equal documents are equal columns."""
    return codec.encode_json(document).decode()


def decode(text: str, kind: type[Document]) -> Document:
    """Read a column; keys of a newer version are ignored."""
    return codec.decode_json(text, kind, where="database", lenient=True)


def append_audit(connection: sa.Connection, entry: AuditEntry) -> None:
    """Append to the audit log, in the transaction of what it is about."""
    connection.execute(
        audit.insert().values(
            at=entry.at,
            actor=entry.actor,
            action=entry.action,
            subject=entry.subject,
            detail=entry.detail,
        )
    )


def newest_assignment(connection: sa.Connection, device: str) -> Assignment | None:
    """Return the newest assignment of a device."""
    text = connection.execute(
        sa.select(assignments.c.document)
        .where(assignments.c.device == device)
        .order_by(assignments.c.sequence.desc())
        .limit(1)
    ).scalar_one_or_none()
    return None if text is None else decode(text, Assignment)
