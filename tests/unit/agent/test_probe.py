"""Facts of a device, read from files as Linux lays them out."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from slmops.agent.probe import (
    battery_share,
    device_facts,
    disk_size_bytes,
    free_disk_bytes,
    usable_memory_mib,
    with_disk,
)

MEMINFO = "MemTotal:        2048000 kB\nMemFree:          100 kB\n"


def system(folder: Path, files: Mapping[str, str]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder


@pytest.mark.parametrize(
    ("files", "owner", "expected"),
    [
        ({}, None, 2000),
        ({}, 512, 512),
        ({}, 4096, 2000),
        # Version 2: the smallest of our group and of those around it.
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/b/memory.max": "max\n",
                "sys/fs/cgroup/a/memory.max": f"{300 << 20}\n",
            },
            None,
            300,
        ),
        (
            {
                "proc/self/cgroup": "0::/a\n",
                "sys/fs/cgroup/a/memory.max": f"{300 << 20}\n",
            },
            256,
            256,
        ),
        # Version 1: beside other controllers; a huge number means none.
        (
            {
                "proc/self/cgroup": "5:cpu,cpuacct:/x\n4:memory:/y\n",
                "sys/fs/cgroup/memory/y/memory.limit_in_bytes": f"{700 << 20}\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            },
            None,
            700,
        ),
        ({"proc/self/cgroup": "garbage\n\n0::\n"}, None, 2000),
        (
            {
                "proc/self/cgroup": "0::/a\n",
                "sys/fs/cgroup/a/memory.max": "half of it\n",
            },
            None,
            2000,
        ),
    ],
)
def test_usable_memory_is_the_smallest_of_all_limits(
    tmp_path: Path, files: dict[str, str], owner: int | None, expected: int
) -> None:
    root = system(tmp_path, {"proc/meminfo": MEMINFO, **files})
    assert usable_memory_mib(owner, system=root) == expected


def test_without_any_source_nothing_is_promised(tmp_path: Path) -> None:
    assert usable_memory_mib(None, system=tmp_path) == 0
    assert usable_memory_mib(100, system=tmp_path) == 100


def test_facts_of_this_machine_make_sense(tmp_path: Path) -> None:
    facts = device_facts(tmp_path, memory_limit_mib=256)
    assert facts.memory_mib == 256
    assert facts.cpu_count >= 1
    assert "echo" not in facts.runtimes
    testing = device_facts(tmp_path, memory_limit_mib=256, test_runtimes=True)
    assert set(testing.runtimes) == {*facts.runtimes, "echo"}
    assert facts.architecture
    assert facts.agent_version


def test_what_slots_hold_counts_as_disk_of_the_device(tmp_path: Path) -> None:
    before = device_facts(tmp_path, memory_limit_mib=None).disk_mib
    blobs = tmp_path / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    (blobs / "ab").write_bytes(bytes(8 << 20))
    after = device_facts(tmp_path, memory_limit_mib=None).disk_mib
    assert after >= before - 2
    assert free_disk_bytes(tmp_path) > 0


def test_a_disk_is_news_once_it_changed_by_much(tmp_path: Path) -> None:
    facts = device_facts(tmp_path, memory_limit_mib=None)
    facts = replace(facts, disk_mib=1600)
    assert with_disk(facts, 1500) is facts
    assert with_disk(facts, 1700) is facts
    assert with_disk(facts, 1499).disk_mib == 1499
    assert with_disk(facts, 0).disk_mib == 0
    assert with_disk(replace(facts, disk_mib=0), 16).disk_mib == 0
    assert with_disk(replace(facts, disk_mib=0), 17).disk_mib == 17
    assert disk_size_bytes(tmp_path) >= free_disk_bytes(tmp_path)


@pytest.mark.parametrize(
    ("supplies", "share"),
    [
        ({}, None),
        ({"AC": ("Mains", "", "")}, None),
        ({"BAT0": ("Battery", "Discharging", "37")}, 0.37),
        ({"BAT0": ("Battery", "Charging", "37")}, None),
        ({"BAT0": ("Battery", "Full", "100")}, None),
        (
            {
                "BAT0": ("Battery", "Discharging", "80"),
                "BAT1": ("Battery", "Discharging", "15"),
            },
            0.15,
        ),
        ({"BAT0": ("Battery", "Discharging", "")}, None),
        ({"BAT0": ("Battery", "Discharging", "unknown")}, None),
    ],
)
def test_only_a_battery_that_discharges_counts(
    tmp_path: Path, supplies: dict[str, tuple[str, str, str]], share: float | None
) -> None:
    for name, (kind, status, capacity) in supplies.items():
        folder = f"sys/class/power_supply/{name}"
        system(
            tmp_path,
            {
                f"{folder}/type": kind + "\n",
                f"{folder}/status": status + "\n",
                f"{folder}/capacity": capacity + "\n",
            },
        )
    assert battery_share(tmp_path) == share
