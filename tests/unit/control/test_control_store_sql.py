"""The SQLite store: schema versions, durability settings, histories that only grow."""

import sqlite3
import stat
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from slmops.control import store_sql
from slmops.control.records import AuditEntry
from slmops.control.store_sql import open_sqlite_store
from slmops.control.store_tables import APPEND_ONLY, metadata
from slmops.domain.errors import ConflictError, UnavailableError


def test_the_migrations_end_at_the_tables_the_code_uses(tmp_path: Path) -> None:
    store = open_sqlite_store(tmp_path / "control.db")
    with store.engine.connect() as connection:
        differences = compare_metadata(MigrationContext.configure(connection), metadata)
    store.close()
    assert differences == []


def test_every_commit_is_flushed_to_the_disk(tmp_path: Path) -> None:
    store = open_sqlite_store(tmp_path / "control.db")
    with store.engine.connect() as connection:
        pragma = {
            name: connection.execute(sa.text(f"PRAGMA {name}")).scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    store.close()
    assert pragma == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


def test_the_database_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "control" / "control.db"
    open_sqlite_store(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_newer_schema_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "control.db"
    open_sqlite_store(path).close()
    raw = sqlite3.connect(path)
    raw.execute("UPDATE alembic_version SET version_num = '9999'")
    raw.commit()
    raw.close()
    with pytest.raises(ConflictError, match="9999, newer than this program"):
        open_sqlite_store(path)


def test_a_file_that_is_no_database_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "control.db"
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(UnavailableError, match="cannot be opened"):
        open_sqlite_store(path)


@pytest.mark.parametrize("table", APPEND_ONLY)
def test_histories_refuse_changes(tmp_path: Path, table: str) -> None:
    store = open_sqlite_store(tmp_path / "control.db")
    with store.engine.connect() as connection:
        triggers = connection.execute(
            sa.text("SELECT name FROM sqlite_master WHERE type = 'trigger'")
        ).scalars()
        assert {f"{table}_no_update", f"{table}_no_delete"} <= set(triggers)
    if table == "audit":
        store.append_audit(AuditEntry(at=1.0, actor="a", action="b", subject="c"))
        for change in ("UPDATE audit SET actor = 'x'", "DELETE FROM audit"):
            with (
                pytest.raises(sa.exc.IntegrityError, match="append-only"),
                store.write() as connection,
            ):
                connection.execute(sa.text(change))
    store.close()


def test_an_upgrade_keeps_a_copy_from_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "control.db"
    store = open_sqlite_store(path)
    store.append_audit(AuditEntry(at=1.0, actor="a", action="kept", subject="c"))
    store.close()
    versions = tmp_path / "migrations"
    source = Path(store_sql.__file__).parent / "migrations"
    (versions / "versions").mkdir(parents=True)
    for name in ("env.py", "versions/v0001_fleet.py"):
        (versions / name).write_text((source / name).read_text())
    (versions / "versions" / "v0002_next.py").write_text(
        "revision = '0002'\ndown_revision = '0001'\n\n\ndef upgrade():\n    pass\n"
    )
    monkeypatch.setattr(store_sql, "_MIGRATIONS", versions)
    open_sqlite_store(path).close()
    copy = sqlite3.connect(tmp_path / "control.db.before-upgrade-from-0001")
    assert copy.execute("SELECT action FROM audit").fetchall() == [("kept",)]
    assert copy.execute("SELECT * FROM alembic_version").fetchall() == [("0001",)]
    copy.close()
