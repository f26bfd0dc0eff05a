"""The store on SQLAlchemy Core: SQLite in WAL mode with ``synchronous=FULL``.

Opening brings the schema up to date and keeps a copy of the database from before. A
schema newer than this program is refused. Write transactions begin IMMEDIATE: SQLite
then queues writers instead of failing one of them half-way.
"""

import os
import sqlite3
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import event

from slmops.control.store_devices import SqlDevices
from slmops.control.store_operators import SqlOperators
from slmops.control.store_rollouts import SqlRollouts
from slmops.domain.errors import ConflictError, UnavailableError

_MIGRATIONS = Path(__file__).parent / "migrations"


class SqlStore(SqlDevices, SqlRollouts, SqlOperators):
    """All tables of one database; safe for use from several threads."""

    def close(self) -> None:
        """Release files and connections."""
        self.engine.dispose()


def open_sqlite_store(path: Path) -> SqlStore:
    """Open or make the database at `path`, at the newest schema.

    Raises:
        ConflictError: its schema is newer than this program.
        UnavailableError: it cannot be opened, or is no database.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        # The database holds device keys and fleet facts: owner only, from birth.
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        engine = sa.create_engine(
            f"sqlite:///{path}", connect_args={"check_same_thread": False}
        )
        _prepare_sqlite(engine)
        _upgrade(engine, path)
    except (sa.exc.DatabaseError, OSError) as error:
        cause = getattr(error, "orig", None) or error
        raise UnavailableError(f"database {path} cannot be opened: {cause}") from None
    return SqlStore(engine)


def _prepare_sqlite(engine: sa.Engine) -> None:
    @event.listens_for(engine, "connect")
    def configure(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves, below
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=ON",
            "busy_timeout=10000",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        write = connection.get_execution_options().get("write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _upgrade(engine: sa.Engine, path: Path) -> None:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    script = ScriptDirectory.from_config(config)
    newest = script.get_current_head()
    with engine.connect() as connection:
        current = MigrationContext.configure(connection).get_current_revision()
    if current == newest:
        return
    if current is not None:
        _require_known(current, script, path)
        _back_up(engine, path, current)
    with engine.execution_options(write=True).begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _require_known(current: str, script: ScriptDirectory, path: Path) -> None:
    known = {revision.revision for revision in script.walk_revisions()}
    if current not in known:
        raise ConflictError(
            f"database {path} has schema {current}, newer than this program knows"
            f" (up to {max(known)}): install a newer slmops, or restore a backup"
        )


def _back_up(engine: sa.Engine, path: Path, revision: str) -> None:
    copy = path.with_name(f"{path.name}.before-upgrade-from-{revision}")
    if copy.exists():
        return
    raw: Any = engine.raw_connection()
    try:
        raw.execute("VACUUM INTO ?", (str(copy),))
    finally:
        raw.close()
