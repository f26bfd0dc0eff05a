"""What changes around a device: power, link, heat; read from ``/sys`` and ``/proc``.

Nothing is asked of daemons that a small device lacks. The kernel's own pages say what
the files hold: ``Documentation/ABI/testing/sysfs-class-power``, ``sysfs-class-net`` and
``sysfs-class-thermal``. What cannot be read is None: unknown, never "fine".
"""

from fnmatch import fnmatchcase
from pathlib import Path

_GLOBAL_ROUTE = "00000000"
_ARPHRD_ETHER = "1"
_MILLI = 1000.0
_FOR_INFERENCE = frozenset(
    {
        *("avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni"),
        *("avx512_bf16", "amx_int8", "amx_tile"),
        *("asimd", "neon", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2"),
    }
)


def on_mains(system: Path = Path("/")) -> bool | None:
    """Tell whether a supply from outside is there; None where nothing says so.

    A machine with neither battery nor supply in ``/sys`` says nothing: it has no other
    source than mains.
    """
    found: bool | None = None
    for supply in _folders(system / "sys/class/power_supply"):
        kind = _word(supply / "type")
        if kind == "Battery" or _word(supply / "scope") == "Device":
            continue  # of a mouse or a headset
        online = _word(supply / "online")
        if online is not None:
            found = bool(found) or online != "0"
    return found


def hottest_celsius(system: Path = Path("/")) -> tuple[float, str] | None:
    """Return the highest temperature of all thermal zones and that zone's type."""
    found: list[tuple[float, str]] = []
    for zone in _folders(system / "sys/class/thermal"):
        if not zone.name.startswith("thermal_zone"):
            continue
        text = _word(zone / "temp") or ""
        if text.lstrip("-").isdigit():
            found.append((int(text) / _MILLI, _word(zone / "type") or zone.name))
    return max(found, default=None)


def thermal_zones(system: Path = Path("/")) -> tuple[str, ...]:
    """Return the types of the thermal zones that can be read."""
    zones = sorted(_folders(system / "sys/class/thermal"))
    return tuple(
        _word(zone / "type") or zone.name
        for zone in zones
        if zone.name.startswith("thermal_zone") and _word(zone / "temp") is not None
    )


def default_link(system: Path = Path("/")) -> str | None:
    """Return the interface that the default route with the lowest metric goes through."""
    found: list[tuple[int, str]] = []
    for line in _lines(system / "proc/net/route")[1:]:
        fields = line.split()
        if len(fields) > 7 and fields[1] == fields[7] == _GLOBAL_ROUTE:  # noqa: PLR2004
            found.append((int(fields[6]), fields[0]))
    for line in _lines(system / "proc/net/ipv6_route"):
        fields = line.split()
        if len(fields) > 9 and fields[1] == "00" and fields[9] != "lo":  # noqa: PLR2004
            found.append((int(fields[5], 16), fields[9]))
    return min(found)[1] if found else None


def link_kind(name: str, system: Path = Path("/")) -> str:
    """Say what an interface is: ``wwan``, ``wlan``, ``ethernet`` or ``other``."""
    folder = system / "sys/class/net" / name
    kind = dict(line.partition("=")[::2] for line in _lines(folder / "uevent"))
    declared = kind.get("DEVTYPE")
    if declared in {"wwan", "wlan"}:
        return declared
    if (folder / "wireless").is_dir():
        return "wlan"
    if name.startswith(("wwan", "ppp")):
        return "wwan"
    return "ethernet" if _word(folder / "type") == _ARPHRD_ETHER else "other"


def metered_link(patterns: tuple[str, ...], system: Path = Path("/")) -> str | None:
    """Return the default route's interface when its traffic is paid for, else None.

    Args:
        patterns: names or kinds of such interfaces, ``*`` and ``?`` allowed.
        system: root of ``/proc`` and ``/sys``.
    """
    name = default_link(system)
    if name is None:
        return None
    kind = link_kind(name, system)
    matched = any(fnmatchcase(text, each) for each in patterns for text in (name, kind))
    return name if matched else None


def cpu_quota(system: Path = Path("/")) -> float | None:
    """Return the processors that the tightest cgroup (v2) grants; None for no limit."""
    granted: list[float] = []
    for line in _lines(system / "proc/self/cgroup"):
        if not line.startswith("0::"):
            continue
        base = system / "sys/fs/cgroup"
        folder = base / line[3:].strip("/")
        while folder.is_relative_to(base):
            quota, _, period = (_word(folder / "cpu.max") or "max 1").partition(" ")
            if quota.isdigit() and period.isdigit() and int(period):
                granted.append(int(quota) / int(period))
            folder = folder.parent
    return min(granted, default=None)


def cpu_features(system: Path = Path("/")) -> tuple[str, ...]:
    """Return the instruction sets of `_FOR_INFERENCE` that every processor has."""
    sets = [
        _FOR_INFERENCE.intersection(words.split())
        for line in _lines(system / "proc/cpuinfo")
        for name, _, words in (line.partition(":"),)
        if name.strip() in {"flags", "Features"}
    ]
    return tuple(sorted(frozenset.intersection(*sets))) if sets else ()


def has_battery(system: Path = Path("/")) -> bool:
    """Tell whether the machine, not its mouse, has a battery."""
    return any(
        _word(supply / "type") == "Battery" and _word(supply / "scope") != "Device"
        for supply in _folders(system / "sys/class/power_supply")
    )


def _folders(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _word(path: Path) -> str | None:
    lines = _lines(path)
    return lines[0].strip() if lines else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii", errors="replace").splitlines()
    except (OSError, ValueError):
        return []
