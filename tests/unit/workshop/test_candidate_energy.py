"""Energy per token: measured by counters with real workers, else modelled and marked."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmops.domain.device import Budget, DeviceClass
from slmops.domain.energy import MeasuredEnergy, Power
from slmops.domain.errors import InvalidInputError
from slmops.domain.release import Card, Estimate, Speed
from slmops.runtimes.energy import EnergyMeter, Spent
from slmops.runtimes.speed import RunEnergy, SpeedRun
from slmops.testing.powercap import CountingZone, write_zone
from slmops.testing.sample_build import SAMPLE_FIGURES, sample_build, sample_candidate
from slmops.wire.codec import decode_json, encode_json, to_plain
from slmops.workshop.artefacts import Artefact
from slmops.workshop.build_context import BuildContext
from slmops.workshop.energy import (
    EnergyWatch,
    check_energy_budgets,
    energy_absence,
    with_modelled_energy,
)
from slmops.workshop.evidence.energy_tables import energy_lines, energy_tables
from slmops.workshop.feasibility import SelectionRules, excesses_of
from slmops.workshop.speeds import measure_speeds

WATTS = 10.0
POWER = Power(source="meter at the socket", busy_watts=5.0, idle_watts=2.0)
CLASS = DeviceClass(name="gateway", power=POWER)


@pytest.fixture
def counting(
    make_build: Callable[..., BuildContext], tmp_path: Path
) -> Callable[..., BuildContext]:
    def make() -> BuildContext:
        return replace(make_build(), powercap=tmp_path / "powercap")

    return make


def test_counters_give_joules_per_token_with_the_idle_draw_apart(
    counting: Callable[..., BuildContext],
    echo_artefact: Callable[..., Artefact],
    tmp_path: Path,
) -> None:
    build, artefact = counting(), echo_artefact(delay_ms=15)
    folder = tmp_path / "powercap" / "intel-rapl:0"
    with CountingZone(folder, watts=WATTS, range_uj=8_000_000) as zone:
        zone.run()
        (speed,) = measure_speeds(build, [artefact])[artefact.digest]
        assert zone.wraps > 0
    energy = speed.measured_energy
    assert energy is not None
    assert speed.energy_unmeasured == ""
    assert energy.counters == ("package-0",)
    assert energy.runs == speed.runs == 3
    assert energy.idle_watts.value == pytest.approx(WATTS, rel=0.2)
    # A draw of 10 W, whatever is asked: joules per token are watts by tokens per second,
    # and nothing is left above the idle draw.
    expected = WATTS / speed.decode_tokens_per_s.value
    assert energy.decode_joules_per_token.value == pytest.approx(expected, rel=0.3)
    above = energy.decode_above_idle_joules_per_token
    assert abs(above.value) < 0.3 * expected
    assert above.low < 0.3 * expected
    again = counting()
    assert measure_speeds(again, [artefact])[artefact.digest] == (speed,)


def test_without_counters_the_card_says_why_and_with_them_it_is_measured_anew(
    counting: Callable[..., BuildContext],
    echo_artefact: Callable[..., Artefact],
    tmp_path: Path,
) -> None:
    artefact = echo_artefact()
    (speed,) = measure_speeds(counting(), [artefact])[artefact.digest]
    assert speed.measured_energy is None
    assert "no powercap counters" in speed.energy_unmeasured
    write_zone(tmp_path / "powercap" / "intel-rapl:0", "package-0", 7)
    (speed,) = measure_speeds(counting(), [artefact])[artefact.digest]
    assert speed.measured_energy is not None
    assert speed.measured_energy.decode_joules_per_token.value == 0.0


def run_of(joules: float) -> SpeedRun:
    return SpeedRun(
        first_token_ms=100.0,
        prompt_tokens=64,
        prefill_tokens_per_s=640.0,
        decode_tokens_per_s=20.0,
        energy=RunEnergy(
            prefill=Spent(joules=3.2, seconds=0.1),
            prefill_tokens=64,
            decode=Spent(joules=joules, seconds=1.0),
            decode_tokens=20,
        ),
    )


@given(st.lists(st.floats(0, 100), min_size=3, max_size=6), st.floats(0, 5))
def test_bounds_are_the_range_of_runs_and_of_the_idle_draw(
    joules: list[float], off: float
) -> None:
    idle = Estimate(value=5.0, low=5.0 - off, high=5.0 + off)
    watch = EnergyWatch(meter=EnergyMeter(), idle_watts=idle)
    found = watch.measured([run_of(each) for each in joules])
    assert found is not None
    decode = found.decode_joules_per_token
    assert decode.low == pytest.approx(min(joules) / 20)
    assert decode.high == pytest.approx(max(joules) / 20)
    above = found.decode_above_idle_joules_per_token
    assert above.low == pytest.approx((min(joules) - 5 - off) / 20)
    assert above.high == pytest.approx((max(joules) - 5 + off) / 20)
    assert found.prefill_joules_per_token.value == pytest.approx(0.05)


def test_one_run_without_a_count_measures_nothing() -> None:
    idle = Estimate(value=5.0, low=5.0, high=5.0)
    watch = EnergyWatch(meter=EnergyMeter(reason="it went away"), idle_watts=idle)
    found = watch.measured([run_of(1.0), replace(run_of(1.0), energy=None)])
    assert found is None
    assert watch.missing(found) == "it went away"


def card_of(*classes: DeviceClass) -> Card:
    candidate = sample_candidate(SAMPLE_FIGURES[0], classes=classes)
    return with_modelled_energy(candidate.card, classes)


@given(st.floats(0.5, 100), st.floats(0, 0.9), st.integers(1, 8), st.floats(0.1, 20))
def test_modelled_energy_carries_the_bounds_of_speed_and_power(
    per_thread: float, uncertainty: float, threads: int, idle: float
) -> None:
    power = Power(
        source="data sheet",
        busy_watts=idle,
        watts_per_thread=per_thread,
        idle_watts=idle,
        uncertainty=uncertainty,
    )
    card = card_of(DeviceClass(name="a", threads=threads, power=power))
    (found,) = card.modelled_energy
    watts = idle + threads * per_thread
    rate = card.speed[0].decode_tokens_per_s
    decode = found.decode_joules_per_token
    assert decode.value == pytest.approx(watts / rate.value)
    assert decode.low == pytest.approx(watts * (1 - uncertainty) / rate.high)
    assert decode.high == pytest.approx(watts * (1 + uncertainty) / rate.low)


def test_each_class_that_names_its_power_has_its_own_figure() -> None:
    strong = replace(POWER, busy_watts=20.0)
    classes = (
        CLASS,
        DeviceClass(name="tower", power=strong),
        DeviceClass(name="dark"),
    )
    card = card_of(*classes)
    assert [each.device_class for each in card.modelled_energy] == ["gateway", "tower"]
    one, other = (each.decode_joules_per_token.value for each in card.modelled_energy)
    assert other == pytest.approx(4 * one)
    assert energy_absence(card, classes[2]) == (
        "energy: not measured (this build did not try), and class dark names no power"
    )


def measured(card: Card, joules: float) -> Card:
    one = Estimate(value=joules, low=joules * 0.9, high=joules * 1.1)
    energy = MeasuredEnergy(
        prefill_joules_per_token=one,
        decode_joules_per_token=one,
        decode_above_idle_joules_per_token=one,
        idle_watts=one,
        counters=("package-0",),
        runs=5,
    )
    speed: tuple[Speed, ...] = tuple(
        replace(each, measured_energy=energy) for each in card.speed
    )
    return replace(card, speed=speed)


def test_measured_and_modelled_never_share_a_field_or_a_column() -> None:
    card = measured(card_of(CLASS), 0.3)
    tables = energy_tables([card])
    assert [table.title for table in tables] == [
        "Energy per token, measured",
        "Energy per token, modelled",
    ]
    for table in tables:
        nature, other = ("measured", "modelled")
        if table.title.endswith("modelled"):
            nature, other = other, nature
        units = [name for name in table.head if "J/token" in name]
        assert units
        assert all(name.endswith(nature) for name in units)
        assert not any(name.endswith(other) for name in table.head)
    lines = energy_lines(card, CLASS)
    assert lines[0].startswith("energy measured: decode 0.3 (0.27 to 0.33) J/token")
    assert lines[1].startswith("energy modelled, not measured: decode")
    plain = to_plain(card)
    names = {"measured_energy"} & set(plain["speed"][0])
    assert names
    assert plain["modelled_energy"][0]["source"] == "meter at the socket"


RULES = SelectionRules(floor=sample_build().blueprint.quality, control_kld=0.004)


def against(card: Card, limit: float, power: Power | None) -> str:
    device_class = replace(
        CLASS, power=power, budget=Budget(decode_joules_per_token=limit)
    )
    candidate = sample_candidate(SAMPLE_FIGURES[0], classes=[CLASS])
    found = excesses_of(replace(candidate, card=card), device_class, RULES)
    return "; ".join(each.text for each in found)


def test_a_budget_of_energy_is_held_by_the_upper_bound_of_what_is_known() -> None:
    modelled = card_of(CLASS)
    high = modelled.modelled_energy[0].decode_joules_per_token.high
    assert against(modelled, high, POWER) == ""
    said = against(modelled, high * 0.99, POWER)
    assert said.startswith("modelled energy may be as high as 0.126 J a decoded token")
    # What was measured comes before what was modelled.
    both = measured(modelled, 0.3)
    assert against(both, 0.33001, POWER) == ""
    assert against(both, 0.32, POWER).startswith("measured energy may be as high as")
    nothing = replace(modelled, modelled_energy=())
    assert "class gateway names no power" in against(nothing, 9.0, None)


def test_a_budget_that_nothing_can_be_known_for_is_refused_before_a_build() -> None:
    limited = replace(CLASS, budget=Budget(decode_joules_per_token=1.0))
    dark = EnergyMeter(reason="only root may read it")
    base = sample_build().blueprint
    check_energy_budgets(replace(base, classes=(limited,)), dark)
    blind = replace(base, classes=(replace(limited, power=None),))
    with pytest.raises(InvalidInputError, match=r"classes\[0\].*only root may read it"):
        check_energy_budgets(blind, dark)


def test_cards_from_before_energy_and_bounds_still_read() -> None:
    card = sample_candidate(SAMPLE_FIGURES[0]).card
    plain = to_plain(card)
    del plain["modelled_energy"]
    for speed in plain["speed"]:
        for name in ("peak_memory", "measured_energy", "energy_unmeasured"):
            del speed[name]
    again = decode_json(encode_json(plain), Card, where="card")
    assert again == card
    assert again.speed[0].most_peak_mib == again.speed[0].peak_rss_mib
    assert energy_tables([again]) == ()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"source": " "}, "source must say"),
        ({"watts_per_thread": -1.0}, "watts_per_thread must be >= 0"),
        ({"busy_watts": 0.0}, "busy_watts must be > 0"),
        ({"idle_watts": -1.0}, "idle_watts must be >= 0"),
        ({"idle_watts": 6.0}, "at least idle_watts"),
        ({"uncertainty": 1.0}, r"uncertainty must be in \[0, 1\)"),
    ],
)
def test_a_power_that_makes_no_sense_is_refused(
    change: dict[str, object], words: str
) -> None:
    with pytest.raises(InvalidInputError, match=words):
        replace(POWER, **change)  # type: ignore[arg-type]
