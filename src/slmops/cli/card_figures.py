"""A card's figures as tables show them: what was extrapolated carries a sign."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slmops.domain.release import Speed

_SIGN = "~"
_LEAST_SHOWN_MIB = 0.5


def peak_figure(speed: "Speed") -> int | str:
    """Return the peak memory in MiB; with ``~`` when a visible part is extrapolated."""
    rounded = round(speed.peak_rss_mib)
    return f"{_SIGN}{rounded}" if _is_extrapolated(speed) else rounded


def speed_remarks(speeds: Iterable["Speed | None"]) -> list[str]:
    """Say what in the table was not measured exactly at the setting of its row."""
    found = [speed for speed in speeds if speed is not None]
    timed = {s.timed_context_tokens or s.context_tokens for s in found}
    lines = [f"speed: timed at context {_list(timed)}"] if timed else []
    filled = {
        (s.filled_tokens or 0, s.context_tokens) for s in found if _is_extrapolated(s)
    }
    lines += [
        f"{_SIGN} extrapolated: measured with {tokens} tokens in the context of {context}"
        for tokens, context in sorted(filled)
    ]
    return lines


def _is_extrapolated(speed: "Speed") -> bool:
    return speed.extrapolated_mib >= _LEAST_SHOWN_MIB


def _list(numbers: Iterable[int]) -> str:
    return ", ".join(str(number) for number in sorted(numbers))
