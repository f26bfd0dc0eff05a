"""Energy that the processor's own counters saw: Linux powercap, RAPL.

Intel processors and AMD's since Zen count the energy of their parts; Linux shows it as
``/sys/class/powercap/intel-rapl:*/energy_uj``, a whole number of microjoules that starts
again at zero after ``max_energy_range_uj`` (kernel documentation,
Documentation/power/powercap/powercap.rst). AMD's counters have the same names. Counters
are of a whole socket: of everything that runs on it, and of its idle draw.

Counted are the packages and the memory beside them (``dram``). Not ``core`` and
``uncore``, which are parts of a package, nor ``psys``, which holds the packages again,
nor ``intel-rapl-mmio``, the same counter by another way.

Since 2020 kernels let only root read them, because they tell secrets of other processes
(CVE-2020-8694). Where they cannot be read, nothing is measured, and the reason is kept.
Nothing here raises: a build does not fail for a counter.
"""

import re
import time
from dataclasses import dataclass, field
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
"""Where Linux shows its counters."""
_ZONE = re.compile(r"intel-rapl:\d+(:\d+)?")
_COUNTED = re.compile(r"package-\d+|dram")
_JOULE = 1e6


@dataclass(frozen=True, kw_only=True, slots=True)
class Zone:
    """One counter."""

    name: str
    """As the kernel names it: ``package-0``."""
    file: Path
    """Holds the count, µJ."""
    range_uj: int
    """Largest count, after which it starts again at 0."""

    def spent_uj(self, before: int, after: int) -> int:
        """Return how much was counted between two readings less than one round apart.

        >>> Zone(name="package-0", file=Path(), range_uj=1000).spent_uj(990, 15)
        25
        """
        spent = after - before
        return spent if spent >= 0 else spent + self.range_uj


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """All counters at one moment."""

    at_s: float
    """Monotonic time."""
    counts_uj: tuple[int, ...]
    """In the order of the meter's zones."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Spent:
    """Energy between two readings."""

    joules: float
    """Of all counters together."""
    seconds: float
    """Time between them."""

    @property
    def watts(self) -> float:
        """Mean draw; 0 of no time."""
        return self.joules / self.seconds if self.seconds > 0 else 0.0


@dataclass(kw_only=True, slots=True)
class EnergyMeter:
    """The counters of this machine that can be read; none when `reason` says why."""

    zones: tuple[Zone, ...] = ()
    """Counters."""
    reason: str = field(default="")
    """Why nothing is measured, or is any more; empty while counters answer."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of what is counted; empty when nothing is."""
        return () if self.reason else tuple(zone.name for zone in self.zones)

    def read(self) -> Reading | None:
        """Read all counters, or return None and keep the reason."""
        if self.reason:
            return None
        counts = []
        for zone in self.zones:
            try:
                counts.append(_number(zone.file))
            except (OSError, ValueError) as error:
                self.reason = _said(zone.file, error)
                return None
        return Reading(at_s=time.perf_counter(), counts_uj=tuple(counts))

    def between(self, before: Reading | None, after: Reading | None) -> Spent | None:
        """Return what was spent between two readings; None where one is missing."""
        if before is None or after is None:
            return None
        pairs = zip(self.zones, before.counts_uj, after.counts_uj, strict=True)
        spent = sum(zone.spent_uj(one, other) for zone, one, other in pairs)
        return Spent(joules=spent / _JOULE, seconds=after.at_s - before.at_s)


def open_meter(root: Path = POWERCAP) -> EnergyMeter:
    """Find the counters below `root` and try each; all must answer, or none is used.

    A sum with a part missing would look like a smaller one.
    """
    try:
        folders = sorted(path for path in root.iterdir() if _ZONE.fullmatch(path.name))
    except OSError as error:
        return EnergyMeter(reason=f"no energy counter is readable: {_cause(error)}")
    zones = []
    for folder in folders:
        try:
            name = (folder / "name").read_text().strip()
            if not _COUNTED.fullmatch(name):
                continue
            zone = _zone(name, folder)
            _number(zone.file)
        except (OSError, ValueError) as error:
            return EnergyMeter(reason=_said(folder / "energy_uj", error))
        zones.append(zone)
    if not any(zone.name.startswith("package") for zone in zones):
        return EnergyMeter(
            reason="no energy counter is readable: the kernel shows none of a package"
        )
    return EnergyMeter(zones=tuple(zones))


def _zone(name: str, folder: Path) -> Zone:
    largest = _number(folder / "max_energy_range_uj")
    if largest <= 0:
        raise ValueError(f"max_energy_range_uj is {largest}")
    return Zone(name=name, file=folder / "energy_uj", range_uj=largest)


def _number(file: Path) -> int:
    return int(file.read_text())


def _said(file: Path, error: Exception) -> str:
    return f"no energy counter is readable: {file.parent.name}: {_cause(error)}"


def _cause(error: Exception) -> str:
    match error:
        case PermissionError():
            return "only root may read it"
        case FileNotFoundError():
            return "this system has no powercap counters"
        case OSError():
            return error.strerror or type(error).__name__
        case _:
            return f"not a counter ({error})"
