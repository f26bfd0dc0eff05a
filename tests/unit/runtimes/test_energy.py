"""Energy counters, read from a real folder tree that counts like the kernel's."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmops.runtimes.energy import EnergyMeter, Zone, open_meter
from slmops.testing.powercap import CountingZone, write_zone

NOBODY = 65534


@pytest.fixture
def root() -> Iterator[Path]:
    """Lie where every user may look, unlike a test's own folder."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@given(st.integers(1, 10**12), st.data())
def test_what_was_spent_is_what_was_counted_across_a_wrap_too(
    largest: int, data: st.DataObject
) -> None:
    before = data.draw(st.integers(0, largest - 1))
    spent = data.draw(st.integers(0, largest - 1))
    zone = Zone(name="package-0", file=Path(), range_uj=largest)
    assert zone.spent_uj(before, (before + spent) % largest) == spent


def test_packages_and_their_memory_are_counted_and_nothing_twice(root: Path) -> None:
    for name, kind, count in (
        ("intel-rapl:0", "package-0", 1_000_000),
        ("intel-rapl:0:0", "core", 9_000_000),
        ("intel-rapl:0:1", "dram", 500_000),
        ("intel-rapl:1", "package-1", 2_000_000),
        ("intel-rapl:2", "psys", 90_000_000),
        ("intel-rapl-mmio:0", "package-0", 1_000_000),
    ):
        write_zone(root / name, kind, count)
    (root / "intel-rapl").mkdir()
    (root / "dtpm").mkdir()
    meter = open_meter(root)
    assert meter.names == ("package-0", "dram", "package-1")
    before = meter.read()
    write_zone(root / "intel-rapl:0", "package-0", 1_250_000)
    write_zone(root / "intel-rapl:0:0", "core", 9_900_000)
    write_zone(root / "intel-rapl:0:1", "dram", 600_000)
    write_zone(root / "intel-rapl:1", "package-1", 2_050_000)
    spent = meter.between(before, meter.read())
    assert spent is not None
    assert spent.joules == pytest.approx(0.4)
    assert spent.seconds > 0


def test_a_counter_that_runs_and_wraps_gives_the_true_draw(root: Path) -> None:
    with CountingZone(root / "intel-rapl:0", watts=20.0, range_uj=3_000_000) as zone:
        meter = open_meter(root)
        wraps = zone.wraps
        found = []
        while zone.wraps < wraps + 2:
            before = meter.read()
            zone.pass_s(0.1)
            spent = meter.between(before, meter.read())
            assert spent is not None
            found.append(spent.joules)
    # Two rounds of 3 J, in steps of 2 J.
    assert found == [pytest.approx(2.0)] * len(found)
    assert len(found) in {3, 4}


def test_a_counter_that_only_root_may_read_is_said_to_be_so(root: Path) -> None:
    write_zone(root / "intel-rapl:0", "package-0", 5)
    (root / "intel-rapl:0" / "energy_uj").chmod(0o400)
    am_root = os.geteuid() == 0
    if not am_root:
        (root / "intel-rapl:0" / "energy_uj").chmod(0o000)
    else:
        os.seteuid(NOBODY)
    try:
        meter = open_meter(root)
    finally:
        if am_root:
            os.seteuid(0)
    assert meter.names == ()
    assert meter.read() is None
    assert meter.reason == (
        "no energy counter is readable: intel-rapl:0: only root may read it"
    )


def test_one_unreadable_part_makes_no_smaller_sum(root: Path) -> None:
    write_zone(root / "intel-rapl:0", "package-0", 5)
    write_zone(root / "intel-rapl:1", "package-1", 5)
    (root / "intel-rapl:1" / "energy_uj").write_text("many\n")
    meter = open_meter(root)
    assert meter.names == ()
    assert "intel-rapl:1: not a counter" in meter.reason


def test_a_system_without_counters_says_so(root: Path) -> None:
    assert open_meter(root / "absent").reason == (
        "no energy counter is readable: this system has no powercap counters"
    )
    assert "none of a package" in open_meter(root).reason
    write_zone(root / "intel-rapl:0", "psys", 5)
    assert "none of a package" in open_meter(root).reason


def test_a_range_of_nothing_is_no_counter(root: Path) -> None:
    write_zone(root / "intel-rapl:0", "package-0", 5, range_uj=0)
    assert "max_energy_range_uj is 0" in open_meter(root).reason


def test_a_counter_that_vanishes_ends_the_measuring_and_says_why(root: Path) -> None:
    write_zone(root / "intel-rapl:0", "package-0", 5)
    meter = open_meter(root)
    before = meter.read()
    assert before is not None
    shutil.rmtree(root / "intel-rapl:0")
    assert meter.between(before, meter.read()) is None
    assert "intel-rapl:0" in meter.reason
    assert meter.names == ()
    assert meter.read() is None


def test_a_meter_without_counters_spends_nothing() -> None:
    meter = EnergyMeter(reason="none")
    assert meter.between(meter.read(), meter.read()) is None
