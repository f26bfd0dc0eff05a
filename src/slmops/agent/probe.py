"""What this device is: read from the system, never guessed from a name."""

import math
import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from slmops import __version__
from slmops.agent import surroundings
from slmops.domain.device import DeviceFacts
from slmops.runtimes.base import installed_runtimes

_MIB = 1 << 20
_KIB_PER_MIB = 1024
_SAME_MIB = 16


def device_facts(
    state_folder: Path,
    *,
    memory_limit_mib: int | None,
    test_runtimes: bool = False,
    system: Path = Path("/"),
) -> DeviceFacts:
    """Read the device's facts.

    Args:
        state_folder: where slots live; its file system counts.
        memory_limit_mib: the owner's own limit; None for none.
        test_runtimes: offer runtimes without a model, too.
        system: root of ``/proc`` and ``/sys``; another folder in tests.
    """
    link = surroundings.default_link(system)
    return DeviceFacts(
        memory_mib=usable_memory_mib(memory_limit_mib, system=system),
        disk_mib=disk_mib(state_folder),
        cpu_count=_cpu_count(),
        architecture=platform.machine(),
        runtimes=installed_runtimes(test_runtimes=test_runtimes),
        os=platform.system().lower(),
        agent_version=__version__,
        cpu_features=surroundings.cpu_features(system),
        cpu_quota=surroundings.cpu_quota(system),
        battery=surroundings.has_battery(system),
        link=None if link is None else surroundings.link_kind(link, system),
        thermal_zones=surroundings.thermal_zones(system),
    )


def usable_memory_mib(limit_mib: int | None, *, system: Path = Path("/")) -> int:
    """Return the smallest of RAM, cgroup limits (v2 and v1) and the owner's limit, MiB."""
    found = [
        limit
        for limit in (
            float(limit_mib) if limit_mib is not None else None,
            _total_ram_mib(system),
            *_cgroup_limits_mib(system),
        )
        if limit is not None
    ]
    return int(min(found)) if found else 0


def _total_ram_mib(system: Path) -> float | None:
    for line in _lines(system / "proc/meminfo"):
        name, _, rest = line.partition(":")
        if name == "MemTotal":
            return int(rest.split()[0]) / _KIB_PER_MIB
    if system == Path("/"):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / _MIB
    return None


def _cgroup_limits_mib(system: Path) -> list[float | None]:
    """Return the limits of our own group and of all groups around it."""
    limits: list[float | None] = []
    for line in _lines(system / "proc/self/cgroup"):
        hierarchy, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if hierarchy == "0" and not controllers:
            base, name = system / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            base, name = system / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        folder = base / group.strip("/")
        while folder.is_relative_to(base):
            limits.append(_bytes_mib(folder / name))
            folder = folder.parent
    return limits


def _bytes_mib(path: Path) -> float | None:
    """Read a limit; ``max``, and v1's huge number, mean none."""
    lines = _lines(path)
    if not lines or not lines[0].strip().isdigit():
        return None
    limit = int(lines[0])
    return None if limit >= 1 << 60 else limit / _MIB


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []


def disk_mib(folder: Path) -> int:
    """Return what models may take below `folder`: free, or taken by models now, MiB."""
    blobs = folder / "blobs" / "sha256"
    held = 0
    if blobs.is_dir():
        held = sum(path.stat().st_size for path in blobs.iterdir() if path.is_file())
    return int((free_disk_bytes(folder) + held) / _MIB)


def free_disk_bytes(folder: Path) -> int:
    """Return the bytes an unprivileged process may still write below `folder`."""
    return shutil.disk_usage(folder).free


def disk_size_bytes(folder: Path) -> int:
    """Return the size of the file system of `folder`, however full it is."""
    return shutil.disk_usage(folder).total


def with_disk(facts: DeviceFacts, found_mib: int) -> DeviceFacts:
    """Return facts with the disk as it is now, small changes left out.

    A log that grows is no news: the control plane writes down every change.
    """
    if abs(found_mib - facts.disk_mib) <= max(facts.disk_mib / 16, _SAME_MIB):
        return facts
    return replace(facts, disk_mib=found_mib)


def _cpu_count() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        return os.cpu_count() or 1


def battery_share(system: Path = Path("/")) -> float | None:
    """Return the charge of a battery that discharges, 0 to 1; None on mains power."""
    lowest = math.inf
    for supply in (system / "sys/class/power_supply").glob("*"):
        kind: Mapping[str, list[str]] = {
            name: _lines(supply / name) for name in ("type", "status", "capacity")
        }
        discharges = kind["type"] == ["Battery"] and kind["status"] == ["Discharging"]
        if discharges and kind["capacity"] and kind["capacity"][0].isdigit():
            lowest = min(lowest, int(kind["capacity"][0]) / 100)
    return None if lowest == math.inf else lowest
