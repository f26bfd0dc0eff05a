"""What stands against starting a download now; a reason in words, never a failure.

Asked in the state WAITING before an installation's first byte, and again whenever a
download was put off. Serving goes on through all of it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from slmops.agent import probe, surroundings
from slmops.agent.settings import AgentSettings
from slmops.agent.windows import closed_until, parse_window, read_zone

_MIB = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Constraints:
    """The owner's conditions, and where they are looked up."""

    settings: AgentSettings
    """What the owner set."""
    state: Path
    """Folder whose file system downloads fill."""
    now: Callable[[], float]
    """Unix time, seconds."""
    system: Path = Path("/")
    """Root of ``/proc``, ``/sys`` and ``/etc``; another folder in tests."""

    def obstacle(self, missing_bytes: int) -> str | None:
        """Say what stands against fetching so many bytes now; None for nothing."""
        for ask in (self._window, self._disk, self._power, self._link, self._heat):
            reason = ask(missing_bytes)
            if reason is not None:
                return reason
        return None

    def _window(self, _: int) -> str | None:
        windows = tuple(map(parse_window, self.settings.windows))
        zone = read_zone(self.settings.time_zone, system=self.system)
        opens = closed_until(windows, zone, now=self.now())
        if opens is None:
            return None
        return f"waiting for a window: the next opens {opens:%a %Y-%m-%d %H:%M %Z}"

    def _disk(self, missing_bytes: int) -> str | None:
        reserve = self.settings.disk_reserve_mib * _MIB
        free = probe.free_disk_bytes(self.state)
        if not missing_bytes or free >= missing_bytes + reserve:
            return None
        return (
            f"waiting for disk: {missing_bytes // _MIB} MiB are missing and"
            f" {self.settings.disk_reserve_mib} stay free, {free // _MIB} are free"
        )

    def _power(self, _: int) -> str | None:
        if self.settings.mains_only and surroundings.on_mains(self.system) is False:
            return "waiting for power: not on mains"
        charge = probe.battery_share(self.system)
        if charge is not None and charge < self.settings.min_battery:
            return f"waiting for power: battery at {charge:.0%}"
        return None

    def _link(self, missing_bytes: int) -> str | None:
        if not missing_bytes or not self.settings.metered_links:
            return None
        name = surroundings.metered_link(self.settings.metered_links, self.system)
        return None if name is None else f"waiting for another link: {name} is metered"

    def _heat(self, _: int) -> str | None:
        most = self.settings.max_celsius
        found = surroundings.hottest_celsius(self.system)
        if most is None or found is None or found[0] <= most:
            return None
        return f"waiting to cool: {found[1]} at {found[0]:.0f} °C, at most {most:g}"
