"""Power, link, heat and windows put an update off, each with its reason."""

from dataclasses import replace
from pathlib import Path

import pytest

from slmops.agent import surroundings
from slmops.agent.constraints import Constraints
from slmops.agent.probe import device_facts
from slmops.agent.settings import AgentSettings
from slmops.domain.errors import InvalidInputError

SUNDAY_NOON = 1_774_785_600.0  # 2026-03-29 12:00 UTC
ROUTES = """Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT
eth0\t00000000\t0102A8C0\t0003\t0\t0\t{eth}\t00000000\t0\t0\t0
wwan0\t00000000\t00000000\t0001\t0\t0\t{wwan}\t00000000\t0\t0\t0
eth0\t0002A8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0
"""


def constraints(system: Path, **settings: object) -> Constraints:
    plain = AgentSettings(
        server="http://x", device="d", director_key="k", disk_reserve_mib=0
    )
    chosen: AgentSettings = replace(plain, **settings)  # type: ignore[arg-type]
    return Constraints(
        settings=chosen, state=system, now=lambda: SUNDAY_NOON, system=system
    )


def tree(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def supply(root: Path, name: str, **files: str) -> Path:
    return tree(root / "sys/class/power_supply" / name, **files)


def test_nothing_stands_against_an_update_where_nothing_is_known(
    tmp_path: Path,
) -> None:
    waits = constraints(
        tmp_path, mains_only=True, metered_links=("wwan",), max_celsius=50.0
    )
    assert waits.obstacle(1000) is None


def test_a_disk_without_room_stands_against_a_download(tmp_path: Path) -> None:
    waits = constraints(tmp_path, disk_reserve_mib=64)
    assert waits.obstacle(0) is None
    assert waits.obstacle(1) is None
    said = waits.obstacle(1 << 60)
    assert said is not None
    assert "waiting for disk: 1099511627776 MiB are missing and 64 stay" in said


def test_a_closed_window_says_when_the_next_one_opens(tmp_path: Path) -> None:
    night = constraints(tmp_path, windows=("22:00-05:00",), time_zone="Europe/Berlin")
    assert night.obstacle(0) == (
        "waiting for a window: the next opens Sun 2026-03-29 22:00 CEST"
    )
    noon = constraints(
        tmp_path, windows=("sun 14:00-15:00",), time_zone="Europe/Berlin"
    )
    assert noon.obstacle(0) is None


def test_a_device_off_the_mains_waits_when_told_to(tmp_path: Path) -> None:
    supply(tmp_path, "AC", type="Mains", online="0")
    supply(tmp_path, "BAT0", type="Battery", status="Discharging", capacity="80")
    assert constraints(tmp_path).obstacle(1) is None
    waits = constraints(tmp_path, mains_only=True)
    assert waits.obstacle(1) == "waiting for power: not on mains"
    supply(tmp_path, "AC", online="1")
    assert waits.obstacle(1) is None
    supply(tmp_path, "BAT0", capacity="15")
    assert waits.obstacle(1) == "waiting for power: battery at 15%"


def test_a_mouse_s_battery_and_usb_power_are_told_apart(tmp_path: Path) -> None:
    supply(tmp_path, "mouse", type="Battery", scope="Device", online="0")
    assert surroundings.on_mains(tmp_path) is None
    supply(tmp_path, "usb", type="USB", online="1")
    assert surroundings.on_mains(tmp_path) is True


def test_a_paid_link_carries_no_download_while_the_default_route_leads_there(
    tmp_path: Path,
) -> None:
    tree(tmp_path / "sys/class/net/wwan0", uevent="DEVTYPE=wwan", type="65534")
    tree(tmp_path / "sys/class/net/eth0", uevent="INTERFACE=eth0", type="1")
    tree(tmp_path / "proc/net", route=ROUTES.format(eth=100, wwan=700))
    waits = constraints(tmp_path, metered_links=("wwan",))
    assert waits.obstacle(1) is None
    tree(tmp_path / "proc/net", route=ROUTES.format(eth=900, wwan=700))
    assert waits.obstacle(1) == "waiting for another link: wwan0 is metered"
    assert waits.obstacle(0) is None  # all bytes are here
    named = constraints(tmp_path, metered_links=("ppp*", "wwan?"))
    assert named.obstacle(1) is not None
    assert constraints(tmp_path).obstacle(1) is None
    assert surroundings.link_kind("eth0", tmp_path) == "ethernet"


def test_a_hot_device_waits_to_cool(tmp_path: Path) -> None:
    tree(tmp_path / "sys/class/thermal/thermal_zone0", temp="48000", type="cpu-thermal")
    tree(tmp_path / "sys/class/thermal/thermal_zone1", temp="91500", type="gpu-thermal")
    tree(tmp_path / "sys/class/thermal/cooling_device0", type="fan")
    waits = constraints(tmp_path, max_celsius=85.0)
    assert waits.obstacle(1) == "waiting to cool: gpu-thermal at 92 °C, at most 85"
    assert surroundings.thermal_zones(tmp_path) == ("cpu-thermal", "gpu-thermal")
    tree(tmp_path / "sys/class/thermal/thermal_zone1", temp="80000")
    assert waits.obstacle(1) is None


def test_the_tightest_processor_quota_of_all_groups_counts(tmp_path: Path) -> None:
    assert surroundings.cpu_quota(tmp_path) is None
    tree(tmp_path / "proc/self", cgroup="0::/system.slice/slmops.service")
    group = tmp_path / "sys/fs/cgroup/system.slice"
    tree(group / "slmops.service", **{"cpu.max": "max 100000"})
    assert surroundings.cpu_quota(tmp_path) is None
    tree(group, **{"cpu.max": "150000 100000"})
    assert surroundings.cpu_quota(tmp_path) == 1.5


def test_settings_that_cannot_be_meant_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="window"):
        constraints(tmp_path, windows=("night",))
    with pytest.raises(InvalidInputError, match="IANA"):
        constraints(tmp_path, time_zone="Mars/Olympus")
    with pytest.raises(InvalidInputError, match="download_bytes_per_s"):
        constraints(tmp_path, download_bytes_per_s=10)


def test_facts_about_the_machine_are_read_from_the_system(tmp_path: Path) -> None:
    tree(tmp_path / "proc/net", route=ROUTES.format(eth=900, wwan=700))
    tree(tmp_path / "sys/class/net/wwan0", uevent="DEVTYPE=wwan")
    tree(
        tmp_path / "proc",
        cpuinfo="processor : 0\nFeatures : fp asimd asimddp sve\n"
        "processor : 1\nFeatures : fp asimd asimddp",
    )
    supply(tmp_path, "BAT0", type="Battery")
    tree(tmp_path / "sys/class/thermal/thermal_zone0", temp="48000", type="cpu")
    facts = device_facts(tmp_path, memory_limit_mib=64, system=tmp_path)
    assert facts.cpu_features == ("asimd", "asimddp")
    assert (facts.link, facts.battery, facts.thermal_zones) == ("wwan", True, ("cpu",))
    assert facts.cpu_quota is None
