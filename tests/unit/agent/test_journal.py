"""The journal: durable, honest about damage, and never loses or repeats a count."""

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slmops.agent.journal import (
    MAX_REPORTS,
    Journal,
    JournaledAssignment,
    Quarantined,
    read_facts,
)
from slmops.agent.records import Installation, Slots
from slmops.domain.errors import UnavailableError
from slmops.domain.ids import Digest
from slmops.domain.installation import State
from slmops.domain.sync import Report

NOW = 1_760_000_000.0
DIGEST = Digest("sha256:" + "ab" * 32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    journal = Journal.open(path, now=NOW)
    yield journal
    journal.close()


def installation(state: State = State.OFFERED, assignment: int = 1) -> Installation:
    return Installation(assignment=assignment, state=state, entered_at=NOW)


def report(
    sequence: int,
    requests: int = 1,
    *,
    release: str | None = "sample-1",
    restarts: int = 0,
) -> Report:
    return Report(
        sequence=sequence,
        started_at=float(sequence),
        ended_at=sequence + 1.0,
        release=release,
        requests=requests,
        restarts=restarts,
        first_token_ms=tuple([requests] + [0] * 47),
    )


def test_a_new_journal_knows_nothing(journal: Journal) -> None:
    assert journal.lost is None
    assert journal.assignment() is None
    assert journal.installation() is None
    assert journal.last_outcome() is None
    assert journal.quarantined() == ()


def test_what_was_written_is_there_after_a_restart(path: Path) -> None:
    journal = Journal.open(path, now=NOW)
    journal.save_assignment(JournaledAssignment(sequence=3, envelope="{}"))
    journal.enter(installation())
    journal.save_slots_copy(Slots())
    journal.quarantine(Quarantined(variant=DIGEST, release="r-1", reason="x", at=NOW))
    journal.close()
    again = Journal.open(path, now=NOW)
    assert again.assignment() == JournaledAssignment(sequence=3, envelope="{}")
    assert again.installation() == installation()
    assert again.slots_copy() == Slots()
    assert [entry.variant for entry in again.quarantined()] == [DIGEST]
    again.close()


def test_every_write_reaches_the_disk_before_it_returns(
    journal: Journal, path: Path
) -> None:
    with sqlite3.connect(path) as other:
        (mode,) = other.execute("PRAGMA journal_mode").fetchone()
    other.close()
    assert mode == "wal"
    (level,) = journal._connection.execute("PRAGMA synchronous").fetchone()
    assert level == 2  # FULL


def test_a_reader_beside_a_running_agent_sees_it(journal: Journal, path: Path) -> None:
    journal.enter(installation(State.PROBATION))
    reader = read_facts(path)
    found = reader.installation()
    assert found is not None
    assert found.state is State.PROBATION
    reader.close()


def test_reading_a_journal_that_is_not_there_says_so(path: Path) -> None:
    with pytest.raises(UnavailableError):
        read_facts(path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: b"x" * len(raw),
        lambda raw: b"",
        lambda raw: raw[: len(raw) // 2],
        lambda raw: raw[:100] + bytes(300) + raw[400:],
        lambda raw: raw.replace(b'"state":"offered"', b'"state":"0ffered"'),
        lambda raw: raw.replace(b'"sequence":3', b'"sequence":"'),
    ],
    ids=["garbage", "empty", "cut", "zeroed", "value", "json"],
)
def test_a_damaged_journal_is_moved_aside_and_begun_anew(
    path: Path, damage: object
) -> None:
    journal = Journal.open(path, now=NOW)
    journal.save_assignment(JournaledAssignment(sequence=3, envelope="{}"))
    journal.enter(installation())
    journal._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    journal.close()
    assert callable(damage)
    path.write_bytes(damage(path.read_bytes()))

    again = Journal.open(path, now=NOW + 1)
    moved = list(path.parent.glob("journal.db.damaged-*"))
    if path.read_bytes() and again.lost is None:
        # An empty file is a valid, empty database.
        assert again.installation() is None
    else:
        assert moved
        assert again.lost is not None
        assert moved[0].name in again.lost
    again.enter(installation())
    again.close()


def test_a_busy_disk_does_not_cost_the_journal(path: Path) -> None:
    path.mkdir()
    with pytest.raises(UnavailableError):
        Journal.open(path, now=NOW)
    assert path.is_dir()


def test_counters_only_rise_even_when_the_journal_is_lost(path: Path) -> None:
    journal = Journal.open(path, now=NOW)
    counts = [journal.next_session_counter(now=NOW) for _ in range(5)]
    # A clock set back does not bring a number back.
    counts.append(journal.next_session_counter(now=10.0))
    assert counts == sorted(set(counts))
    journal.close()
    path.unlink()
    fresh = Journal.open(path, now=NOW)
    assert fresh.next_session_counter(now=NOW + 10) > counts[-1]
    fresh.close()


def test_an_outcome_recorded_twice_is_one_outcome(journal: Journal) -> None:
    for _ in range(2):
        journal.close_outcome(installation(State.COMMITTED, assignment=1))
    journal.close_outcome(installation(State.ROLLED_BACK, assignment=2))
    assert [found.assignment for found in journal.outcomes()] == [1, 2]
    last = journal.last_outcome()
    assert last is not None
    assert last.state is State.ROLLED_BACK
    first = journal.outcome_of(1)
    assert first is not None
    assert first.state is State.COMMITTED
    assert journal.outcome_of(9) is None


def test_the_first_reason_for_a_quarantine_stays(journal: Journal) -> None:
    for reason in ("first", "second"):
        journal.quarantine(
            Quarantined(variant=DIGEST, release="r-1", reason=reason, at=NOW)
        )
    assert [entry.reason for entry in journal.quarantined()] == ["first"]


def test_reports_wait_oldest_first_until_they_are_acknowledged(
    journal: Journal,
) -> None:
    for sequence in (1, 2, 3):
        journal.add_report(report(sequence))
    sent = journal.reports_to_send(most=2)
    assert [one.sequence for one in sent] == [1, 2]
    # Not acknowledged: sent again.
    assert journal.reports_to_send(most=2) == sent
    journal.forget_reports(sent)
    assert [one.sequence for one in journal.reports_to_send(most=9)] == [3]
    journal.forget_reports(())


def test_offline_for_long_no_count_is_lost_and_none_is_sent_twice(
    journal: Journal,
) -> None:
    for sequence in range(1, 51):
        journal.add_report(report(sequence))
    attempted = journal.reports_to_send(most=50)
    for sequence in range(51, MAX_REPORTS + 101):
        journal.add_report(report(sequence))
    waiting = journal.reports_to_send(most=10_000)
    assert len(waiting) == MAX_REPORTS
    assert waiting[:50] == attempted
    assert sum(one.requests for one in waiting) == MAX_REPORTS + 100
    assert sum(one.first_token_ms[0] for one in waiting) == MAX_REPORTS + 100
    numbers = [one.sequence for one in waiting]
    assert numbers == sorted(set(numbers))


def test_a_full_journal_blames_no_release_for_another_ones_restarts(
    journal: Journal,
) -> None:
    for sequence in range(1, MAX_REPORTS + 1):
        journal.add_report(report(sequence, release="sample-1"))
    # It dies again and again: while it is restarted, no release serves.
    for sequence in range(MAX_REPORTS + 1, MAX_REPORTS + 41, 2):
        journal.add_report(report(sequence, release="sample-2", restarts=1))
        journal.add_report(report(sequence + 1, release=None))
    waiting = journal.reports_to_send(most=10_000)
    assert len(waiting) == MAX_REPORTS
    counts = {
        release: (
            sum(one.requests for one in waiting if one.release == release),
            sum(one.restarts for one in waiting if one.release == release),
        )
        for release in ("sample-1", "sample-2", None)
    }
    assert counts == {"sample-1": (MAX_REPORTS, 0), "sample-2": (20, 20), None: (20, 0)}
    numbers = [one.sequence for one in waiting]
    assert numbers == sorted(set(numbers))


def test_a_full_journal_adds_up_only_what_was_never_sent(
    journal: Journal,
) -> None:
    for sequence in range(1, MAX_REPORTS + 1):
        journal.add_report(report(sequence))
    attempted = journal.reports_to_send(most=MAX_REPORTS)
    for sequence, release in enumerate((None, "sample-2", None), MAX_REPORTS + 1):
        journal.add_report(report(sequence, release=release))
    waiting = journal.reports_to_send(most=10_000)
    assert waiting[:MAX_REPORTS] == attempted
    assert [(one.release, one.requests) for one in waiting[MAX_REPORTS:]] == [
        ("sample-2", 1),
        (None, 2),
    ]


def test_a_disk_that_refuses_is_unavailable_and_passes(journal: Journal) -> None:
    journal.enter(installation())
    journal._connection.execute("PRAGMA query_only=ON")
    writes: tuple[Callable[[], object], ...] = (
        lambda: journal.enter(installation(State.WAITING)),
        lambda: journal.add_report(report(1)),
        lambda: journal.reports_to_send(most=1),
        lambda: journal.next_session_counter(now=NOW),
        lambda: journal.close_outcome(installation(State.COMMITTED)),
    )
    for write in writes:
        with pytest.raises(UnavailableError, match="journal: attempt to write"):
            write()
    assert journal.installation() == installation()
    journal._connection.execute("PRAGMA query_only=OFF")
    for write in writes:
        write()
    assert journal.last_outcome() is not None


def test_a_full_disk_is_unavailable_and_leaves_no_open_transaction(
    journal: Journal,
) -> None:
    (pages,) = journal._connection.execute("PRAGMA page_count").fetchone()
    journal._connection.execute(f"PRAGMA max_page_count={pages}")
    long = Installation(
        assignment=1, state=State.OFFERED, entered_at=NOW, reason="x" * 100_000
    )
    for _ in range(2):
        with pytest.raises(UnavailableError, match="full"):
            journal.enter(long)
    journal._connection.execute("PRAGMA max_page_count=10000")
    journal.enter(long)
    assert journal.installation() == long
