"""A card's figures as tables show them: what was extrapolated carries a sign."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slmops.domain.release import Speed

_SIGN = "~"
_LEAST_SHOWN_MIB = 0.5


def peak_figure(speed: "Speed") -> int | str:
    """Return the peak memory in MiB, with its bounds where the card has some.

    ``~`` marks one of which a visible part is extrapolated.
    """
    sign = _SIGN if _is_extrapolated(speed) else ""
    known = speed.peak_memory
    if known is not None:
        low, high = f"{known.full.low:.1f}", f"{known.full.high:.1f}"
        return f"{sign}{known.full.value:.1f} ({low} to {high})"
    rounded = round(speed.peak_rss_mib)
    return f"{sign}{rounded}" if sign else rounded


def speed_remarks(speeds: Iterable["Speed | None"]) -> list[str]:
    """Say what in the table was not measured exactly at the setting of its row."""
    found = [speed for speed in speeds if speed is not None]
    timed = {s.timed_context_tokens or s.context_tokens for s in found}
    lines = [f"speed: timed at context {_list(timed)}"] if timed else []
    if any(s.anchored for s in found):
        lines.append(
            "speed: some were timed in another group than the others, and brought onto"
            " their scale by the 8-bit control's times in both; bounds are wider for it"
        )
    filled = {
        (s.filled_tokens or 0, s.context_tokens) for s in found if _is_extrapolated(s)
    }
    processes = {s.peak_memory.processes for s in found if s.peak_memory}
    if processes:
        lines.append(
            "peak memory in brackets: where one more process lies, a 95 % prediction"
            f" interval over {_list(processes)} processes"
        )
    lines += [
        f"{_SIGN} extrapolated: measured with {tokens} tokens in the context of {context}"
        for tokens, context in sorted(filled)
    ]
    return lines


def _is_extrapolated(speed: "Speed") -> bool:
    return speed.extrapolated_mib >= _LEAST_SHOWN_MIB


def _list(numbers: Iterable[int]) -> str:
    return ", ".join(str(number) for number in sorted(numbers))
