"""Maintenance windows in local time, through both changes of the clock."""

from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from slmops.agent.windows import closed_until, parse_window, read_zone
from slmops.domain.errors import InvalidInputError

BERLIN = ZoneInfo("Europe/Berlin")


def utc(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def is_open(windows: str, at: str) -> bool:
    parsed = tuple(map(parse_window, windows.split(";")))
    return closed_until(parsed, BERLIN, now=utc(at)) is None


@pytest.mark.parametrize(
    ("window", "at", "expected"),
    [
        ("01:00-04:00", "2026-07-01T23:30", True),  # 01:30 in Berlin
        ("01:00-04:00", "2026-07-01T22:30", False),
        ("01:00-04:00", "2026-12-01T00:30", True),  # winter: an hour later in UTC
        ("01:00-04:00", "2026-12-01T03:00", False),  # the end does not belong to it
        ("22:00-05:00", "2026-12-01T03:30", True),  # begun yesterday
        ("fri 22:00-05:00", "2026-12-05T03:30", True),  # Saturday, begun on Friday
        ("fri 22:00-05:00", "2026-12-04T03:30", False),  # Friday, begun on Thursday
        ("sat-mon 00:00-24:00", "2026-12-07T12:00", True),
        ("sat-mon 00:00-24:00", "2026-12-08T12:00", False),
        ("01:00-02:00;12:00-13:00", "2026-12-08T11:30", True),
        # 29 March 2026: 02:00 to 03:00 is left out, so 02:15 is 03:15 in summer time.
        ("02:15-02:45", "2026-03-29T01:14", False),
        ("02:15-02:45", "2026-03-29T01:30", True),
        ("02:15-02:45", "2026-03-29T01:46", False),
        # 25 October 2026: 02:00 to 03:00 comes twice; the window once, the first time.
        ("02:15-02:45", "2026-10-25T00:30", True),
        ("02:15-02:45", "2026-10-25T01:30", False),
        # One around it lasts an hour longer.
        ("01:00-04:00", "2026-10-25T02:30", True),
    ],
)
def test_a_window_is_open_by_local_time(window: str, at: str, expected: bool) -> None:
    assert is_open(window, at) is expected


def test_it_is_told_when_the_next_one_opens() -> None:
    windows = (parse_window("sun 02:30-03:30"),)
    opens = closed_until(windows, BERLIN, now=utc("2026-03-23T12:00"))
    assert opens is not None
    assert opens.astimezone(UTC) == datetime(2026, 3, 29, 1, 30, tzinfo=UTC)
    assert closed_until((), BERLIN, now=0.0) is None


@pytest.mark.parametrize(
    "text", ["", "8-9", "25:00-26:00", "10:00-10:00", "xyz 01:00-02:00", "24:00-01:00"]
)
def test_what_is_no_window_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError, match="window"):
        parse_window(text)


def test_the_system_s_own_zone_is_read_and_utc_stands_in(tmp_path: Path) -> None:
    assert str(read_zone(None, system=tmp_path)) == "UTC"
    (tmp_path / "etc").mkdir()
    source = next(
        path
        for root in ("/usr/share/zoneinfo", _packaged())
        if (path := Path(root) / "Asia" / "Tokyo").exists()
    )
    (tmp_path / "etc" / "localtime").write_bytes(source.read_bytes())
    zone = read_zone(None, system=tmp_path)
    assert datetime(2026, 1, 1, tzinfo=zone).utcoffset() is not None
    assert datetime(2026, 1, 1, tzinfo=zone).strftime("%Z") == "JST"
    with pytest.raises(InvalidInputError, match="IANA"):
        read_zone("Mars/Olympus")


def _packaged() -> str:
    return str(files("tzdata") / "zoneinfo")
