"""The SQLite store: schema versions, durability settings, histories that only grow."""

import sqlite3
import stat
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from slmops.control import store_sql
from slmops.control.records import AuditEntry
from slmops.control.store_sql import open_sqlite_store
from slmops.control.store_tables import APPEND_ONLY, metadata
from slmops.domain.errors import ConflictError, UnavailableError

_OLD_ROLLOUT = (
    '{"classes":["small"],"id":"r-1","policy":{},"release":"sample-1","waves":4}'
)
_OLD_ROWS = (
    (
        "INSERT INTO devices VALUES ('till-1', 'k', 1, 1, 0, '{}', '{}', '{}', '{}', NULL)",
    ),
    (
        "INSERT INTO rollouts VALUES (1, 'r-1', 'sample', 'sample-1', 'done', 3, 1, 2, ?)",
        (_OLD_ROLLOUT,),
    ),
    (
        "INSERT INTO members VALUES ('r-1', 'till-1', 0, 'small', 1, 'succeeded', '',"
        " NULL, NULL, NULL)",
    ),
)
"""As a control plane of the first schema left them."""


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
    for file in (source / "env.py", *(source / "versions").glob("v*.py")):
        copied = versions / file.relative_to(source)
        copied.write_text(file.read_text())
    newest = ScriptDirectory(str(source)).get_current_head()
    (versions / "versions" / "v9999_next.py").write_text(
        f"revision = '9999'\ndown_revision = {newest!r}\n\n\ndef upgrade():\n    pass\n"
    )
    monkeypatch.setattr(store_sql, "_MIGRATIONS", versions)
    open_sqlite_store(path).close()
    copy = sqlite3.connect(tmp_path / f"control.db.before-upgrade-from-{newest}")
    assert copy.execute("SELECT action FROM audit").fetchall() == [("kept",)]
    assert copy.execute("SELECT * FROM alembic_version").fetchall() == [(newest,)]
    copy.close()


def test_a_database_of_the_first_schema_keeps_its_rollouts(tmp_path: Path) -> None:
    path = tmp_path / "control.db"
    config = Config()
    folder = Path(store_sql.__file__).parent / "migrations"
    config.set_main_option("script_location", str(folder))
    with sa.create_engine(f"sqlite:///{path}").begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        for statement in _OLD_ROWS:
            connection.exec_driver_sql(*statement)
    store = open_sqlite_store(path)
    assert store.rollout("r-1").rollout.started_by == ""
    (placed,) = store.members("r-1")
    assert (placed.member.device, placed.member.site) == ("till-1", "")
    store.add_operator("ada", "0" * 64, now=1.0)
    assert store.operator_of("0" * 64) == "ada"
    store.close()
