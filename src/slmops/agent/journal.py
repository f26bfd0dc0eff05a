"""The journal: what a device must not forget, on its disk before it acts.

SQLite, write-ahead log, ``synchronous=FULL``: when a method returns, a power cut does not
undo it. The only SQL of the agent. A journal that cannot be read is moved aside and
begun anew: the slot pointer still says what to serve, and counters that a server
compares start from the clock, so that they stay above what was lost. A disk that refuses
is an UnavailableError of every method: it passes, and says nothing about a model.
"""

import contextlib
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from slmops.agent.records import Installation, Slots, mergeable_pair, merged_report
from slmops.domain.errors import InvalidInputError, UnavailableError
from slmops.domain.ids import Digest, parse_digest
from slmops.domain.sync import Report
from slmops.wire import codec

MAX_REPORTS = 256
"""Unsent reports kept; offline for longer, the newest windows grow instead."""

_VERSION = 1
_SCHEMA = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE quarantine (
    variant TEXT PRIMARY KEY, release TEXT NOT NULL, reason TEXT NOT NULL, at REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE outcomes (
    id INTEGER PRIMARY KEY, assignment INTEGER NOT NULL UNIQUE, document BLOB NOT NULL
);
CREATE TABLE reports (
    sequence INTEGER PRIMARY KEY, document BLOB NOT NULL, sent INTEGER NOT NULL DEFAULT 0
);
"""

Document = TypeVar("Document")


@dataclass(frozen=True, kw_only=True, slots=True)
class JournaledAssignment:
    """The newest assignment that was accepted as genuine."""

    sequence: int
    """Its sequence number: older ones are replays."""
    envelope: str
    """As received: checked again before it is acted on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Quarantined:
    """A variant that failed on this device."""

    variant: Digest
    """Not tried again."""
    release: str
    """Label of the release it came with."""
    reason: str
    """Why."""
    at: float
    """Unix time, seconds."""


class Journal:
    """Facts, installation, quarantine, outcomes and unsent reports of one device."""

    def __init__(self, connection: sqlite3.Connection, *, lost: str | None) -> None:
        self._connection = connection
        self._lock = threading.RLock()
        self.lost = lost
        """Why an earlier journal was moved aside; None when it was fine."""

    @classmethod
    def open(cls, path: Path, *, now: float) -> "Journal":
        """Open or begin the journal.

        Raises:
            UnavailableError: the disk refuses.
        """
        try:
            return cls(_connect(path), lost=None)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError) and not _damaged(error):
                raise UnavailableError(f"journal {path}: {error}") from None
            aside = _move_aside(path, now=now)
            lost = f"journal was damaged ({error}); moved to {aside.name}, begun anew"
            return cls(_connect(path), lost=lost)

    def close(self) -> None:
        """Close it; everything is on disk already."""
        with self._lock:
            self._connection.close()

    # Assignment and installation.

    def assignment(self) -> JournaledAssignment | None:
        """Return the newest genuine assignment."""
        return self._fact("assignment", JournaledAssignment)

    def save_assignment(self, assignment: JournaledAssignment) -> None:
        """Remember a genuine assignment."""
        self._save_fact("assignment", assignment)

    def installation(self) -> Installation | None:
        """Return the current installation, or the last one."""
        return self._fact("installation", Installation)

    def enter(self, installation: Installation) -> None:
        """Write a state, before its action is done."""
        self._save_fact("installation", installation)

    def note(self, installation: Installation) -> None:
        """Write what is new inside a state: bytes received, a reason, a score."""
        self._save_fact("installation", installation)

    def slots_copy(self) -> Slots | None:
        """Return the last slots written by `save_slots_copy`."""
        return self._fact("slots", Slots)

    def save_slots_copy(self, slots: Slots) -> None:
        """Keep a second copy of the slot pointer, should its file become unreadable."""
        self._save_fact("slots", slots)

    # Outcomes and quarantine.

    def close_outcome(self, installation: Installation) -> None:
        """Add an ended installation to the history; harmless to repeat."""
        with self._transaction() as cursor:
            cursor.execute(
                "INSERT OR REPLACE INTO outcomes (assignment, document) VALUES (?, ?)",
                (installation.assignment, codec.encode_json(installation)),
            )

    def outcomes(self) -> tuple[Installation, ...]:
        """Return all ended installations, oldest first."""
        rows = self._rows("SELECT document FROM outcomes ORDER BY assignment")
        return tuple(_document(row[0], Installation) for row in rows)

    def last_outcome(self) -> Installation | None:
        """Return the newest ended installation."""
        rows = self._rows(
            "SELECT document FROM outcomes ORDER BY assignment DESC LIMIT 1"
        )
        return _document(rows[0][0], Installation) if rows else None

    def outcome_of(self, assignment: int) -> Installation | None:
        """Return how the installation of an assignment ended, if it did."""
        rows = self._rows(
            "SELECT document FROM outcomes WHERE assignment = ?", assignment
        )
        return _document(rows[0][0], Installation) if rows else None

    def quarantine(self, entry: Quarantined) -> None:
        """Never try a variant again; harmless to repeat."""
        with self._transaction() as cursor:
            cursor.execute(
                "INSERT OR IGNORE INTO quarantine VALUES (?, ?, ?, ?)",
                (entry.variant, entry.release, entry.reason, entry.at),
            )

    def quarantined(self) -> tuple[Quarantined, ...]:
        """Return the variants that failed here."""
        rows = self._rows("SELECT variant, release, reason, at FROM quarantine")
        return tuple(
            Quarantined(
                variant=parse_digest(variant), release=release, reason=reason, at=at
            )
            for variant, release, reason, at in rows
        )

    def forgive(self, variant: Digest | None = None) -> tuple[Quarantined, ...]:
        """Lift the quarantine of one variant, or of all; return what was lifted."""
        lifted = tuple(
            entry
            for entry in self.quarantined()
            if variant is None or entry.variant == variant
        )
        with self._transaction() as cursor:
            cursor.executemany(
                "DELETE FROM quarantine WHERE variant = ?",
                [(entry.variant,) for entry in lifted],
            )
        return lifted

    # Counters.

    def next_session_counter(self, *, now: float) -> int:
        """Count a session; on disk before it is used."""
        return self._count("session_counter", at_least=int(now))

    def next_report_sequence(self, *, now: float) -> int:
        """Count a report; on disk before it is used."""
        return self._count("report_sequence", at_least=int(now))

    # Reports.

    def add_report(self, report: Report) -> None:
        """Keep a report until it was acknowledged.

        Of more than `MAX_REPORTS` the two newest of one release that were never sent
        become one: counts add, so no count is lost, none is counted twice, and none is
        held against another release. More wait only while no two can be added: as many
        as there were releases.
        """
        with self._transaction() as cursor:
            cursor.execute(
                "INSERT INTO reports (sequence, document) VALUES (?, ?)",
                (report.sequence, codec.encode_json(report)),
            )
            waiting = cursor.execute("SELECT count(*) FROM reports").fetchone()[0]
            if waiting > MAX_REPORTS:
                _merge_two(cursor)

    def reports_to_send(self, *, most: int) -> tuple[Report, ...]:
        """Return the oldest waiting reports and mark them: they may reach the server."""
        with self._transaction() as cursor:
            rows = cursor.execute(
                "SELECT sequence, document FROM reports ORDER BY sequence LIMIT ?",
                (most,),
            ).fetchall()
            cursor.executemany(
                "UPDATE reports SET sent = 1 WHERE sequence = ? AND sent = 0",
                [(row[0],) for row in rows],
            )
        return tuple(_document(row[1], Report) for row in rows)

    def forget_reports(self, reports: Sequence[Report]) -> None:
        """Drop reports that were acknowledged."""
        if not reports:
            return
        with self._transaction() as cursor:
            cursor.executemany(
                "DELETE FROM reports WHERE sequence = ?",
                [(report.sequence,) for report in reports],
            )

    # Plumbing.

    def _fact(self, name: str, kind: type[Document]) -> Document | None:
        rows = self._rows("SELECT value FROM facts WHERE name = ?", name)
        return _document(rows[0][0], kind) if rows else None

    def _save_fact(self, name: str, value: object) -> None:
        with self._transaction() as cursor:
            cursor.execute(
                "INSERT OR REPLACE INTO facts VALUES (?, ?)",
                (name, codec.encode_json(value)),
            )

    def _count(self, name: str, *, at_least: int) -> int:
        with self._lock:
            count = max((self._fact(name, int) or 0) + 1, at_least)
            self._save_fact(name, count)
        return count

    def _rows(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        with self._lock, _plain_errors():
            return self._connection.execute(statement, values).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Cursor]:
        with self._lock, _plain_errors():
            cursor = self._connection.cursor()
            cursor.execute("BEGIN IMMEDIATE")
            try:
                yield cursor
                cursor.execute("COMMIT")
            finally:
                # SQLite itself undoes some failures; an open transaction would stop
                # all later ones.
                if self._connection.in_transaction:
                    cursor.execute("ROLLBACK")


def read_facts(path: Path) -> Journal:
    """Open an existing journal beside a running agent, for reading.

    Raises:
        UnavailableError: it is not there or cannot be read now.
    """
    return _open_beside(path, "ro")


def open_beside(path: Path) -> Journal:
    """Open an existing journal beside a running agent, for small changes.

    A damaged one is left to the agent, which moves it aside.

    Raises:
        UnavailableError: it is not there or cannot be read now.
    """
    return _open_beside(path, "rw")


def _open_beside(path: Path, mode: str) -> Journal:
    try:
        connection = sqlite3.connect(
            f"file:{path}?mode={mode}", uri=True, isolation_level=None, timeout=5
        )
        connection.execute("SELECT count(*) FROM facts")
    except sqlite3.DatabaseError as error:
        raise UnavailableError(f"journal {path}: {error}") from None
    return Journal(connection, lost=None)


@contextmanager
def _plain_errors() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise UnavailableError(f"journal: {error}") from error


def _merge_two(cursor: sqlite3.Cursor) -> None:
    rows = cursor.execute(
        "SELECT document FROM reports WHERE sent = 0 ORDER BY sequence"
    ).fetchall()
    pair = mergeable_pair([_document(row[0], Report) for row in rows])
    if pair is None:
        return
    older, newer = pair
    merged = codec.encode_json(merged_report(older, newer))
    cursor.execute("DELETE FROM reports WHERE sequence = ?", (older.sequence,))
    cursor.execute(
        "UPDATE reports SET document = ? WHERE sequence = ?", (merged, newer.sequence)
    )


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path, isolation_level=None, check_same_thread=False, timeout=10
    )
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        if connection.execute("PRAGMA user_version").fetchone()[0] == 0:
            connection.executescript(
                f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version={_VERSION}; COMMIT;"
            )
        _check(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _check(connection: sqlite3.Connection) -> None:
    """Read everything once: bits flipped inside a value leave the structure intact."""
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version != _VERSION:
        raise sqlite3.DatabaseError(f"version {version} is not {_VERSION}")
    said = connection.execute("PRAGMA quick_check").fetchone()[0]
    if said != "ok":
        raise sqlite3.DatabaseError(str(said).splitlines()[0])
    journal = Journal(connection, lost=None)
    try:
        journal.assignment()
        journal.installation()
        journal.slots_copy()
        journal.outcomes()
        for (raw,) in connection.execute("SELECT document FROM reports").fetchall():
            _document(raw, Report)
    except InvalidInputError as error:
        raise sqlite3.DatabaseError(str(error)) from None
    except UnavailableError as error:
        raise error.__cause__ or error from None


def _damaged(error: sqlite3.OperationalError) -> bool:
    """Tell damage from a full disk or a lock: those pass, and must not lose a journal."""
    return error.sqlite_errorcode & 0xFF in {
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
    }


def _move_aside(path: Path, *, now: float) -> Path:
    aside = path.with_name(f"{path.name}.damaged-{int(now)}")
    for suffix in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + suffix).replace(
                aside.with_name(aside.name + suffix)
            )
    return aside


def _document(raw: object, kind: type[Document]) -> Document:
    if not isinstance(raw, bytes):
        raise InvalidInputError(
            f"journal: expected JSON bytes, got {type(raw).__name__}"
        )
    return codec.decode_json(raw, kind, where="journal", lenient=True)
