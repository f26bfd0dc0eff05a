"""Maintenance windows: when a device may change its model, in its own local time.

Written ``[days ]HH:MM-HH:MM``: ``22:00-05:00`` every night, ``sat,sun 00:00-24:00`` on
weekends, ``mon-fri 01:00-04:00``. One that ends before it begins ends on the next day.
Its two ends are local times of the day it begins, made absolute by the zone's rules
(PEP 495, fold 0). So a window inside the hour that is left out in spring comes as much
later, not never, and one inside the hour that comes twice in autumn comes once.
"""

import re
from dataclasses import dataclass
from datetime import date, datetime, timedelta, tzinfo
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from slmops.domain.errors import InvalidInputError

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_WRITTEN = re.compile(
    r"(?:(?P<days>[a-z,-]+) )?(?P<begin>\d\d:\d\d)-(?P<end>\d\d:\d\d)"
)
_MINUTES_PER_DAY = 24 * 60
_LOCAL = Path("/etc/localtime")


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """One window, on some days of the week."""

    days: frozenset[int]
    """Days on which it begins, Monday is 0."""
    begin_minute: int
    """Of the local day."""
    end_minute: int
    """Of the local day it begins on; above 1,440 on the next."""

    def span(self, day: date, zone: tzinfo) -> tuple[float, float]:
        """Return begin and end on `day`, Unix seconds."""
        midnight = datetime(day.year, day.month, day.day)  # noqa: DTZ001 - zone follows
        begin, end = (
            (midnight + timedelta(minutes=minute)).replace(tzinfo=zone).timestamp()
            for minute in (self.begin_minute, self.end_minute)
        )
        return begin, end


def parse_window(text: str) -> Window:
    """Read one window.

    Raises:
        InvalidInputError: it is none.

    >>> window = parse_window("fri-sun 22:00-05:30")
    >>> sorted(window.days), window.end_minute
    ([4, 5, 6], 1770)
    """
    match = _WRITTEN.fullmatch(text.strip().lower())
    if match is None:
        raise InvalidInputError(
            "a window must look like '22:00-05:00' or 'mon-fri 01:00-04:00', got"
            f" {text[:80]!r}"
        )
    begin, end = _minute(match["begin"], text), _minute(match["end"], text)
    if begin in {_MINUTES_PER_DAY, end}:
        raise InvalidInputError(f"window {text[:80]!r} has no length")
    if end < begin:
        end += _MINUTES_PER_DAY
    days = _days(match["days"], text)
    return Window(days=days, begin_minute=begin, end_minute=end)


def read_zone(name: str | None, *, system: Path = Path("/")) -> tzinfo:
    """Return a time zone by its IANA name, or the system's own; UTC when it has none.

    Raises:
        InvalidInputError: no such zone.
    """
    if name is None:
        try:
            with (system / _LOCAL.relative_to("/")).open("rb") as file:
                return ZoneInfo.from_file(file, key="local")
        except (OSError, ValueError):
            return ZoneInfo("UTC")
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise InvalidInputError(
            f"time_zone must be an IANA name like Europe/Berlin, got {name[:80]!r}"
        ) from None


def closed_until(
    windows: tuple[Window, ...], zone: tzinfo, *, now: float
) -> datetime | None:
    """Return when the next window opens, local time; None when one is open, or none set."""
    if not windows:
        return None
    today = datetime.fromtimestamp(now, zone).date()
    opens: list[float] = []
    # Yesterday's may still be open; in a week each has begun once.
    for offset in range(-1, 9):
        day = today + timedelta(days=offset)
        for window in windows:
            if day.weekday() not in window.days:
                continue
            begin, end = window.span(day, zone)
            if begin <= now < end:
                return None
            if begin > now:
                opens.append(begin)
    return datetime.fromtimestamp(min(opens), zone)


def _minute(text: str, window: str) -> int:
    hours, minutes = int(text[:2]), int(text[3:])
    if minutes >= 60 or hours * 60 + minutes > _MINUTES_PER_DAY:  # noqa: PLR2004 - clock
        raise InvalidInputError(f"window {window[:80]!r}: {text} is no time of the day")
    return hours * 60 + minutes


def _days(text: str | None, window: str) -> frozenset[int]:
    if text is None:
        return frozenset(range(7))
    days: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        if first not in _DAYS or (last or first) not in _DAYS:
            raise InvalidInputError(
                f"window {window[:80]!r}: days are {', '.join(_DAYS)}, got {part!r}"
            )
        begin, end = _DAYS.index(first), _DAYS.index(last or first)
        days |= {day % 7 for day in range(begin, end + (8 if end < begin else 1))}
    return frozenset(days)
