"""Dealing devices to waves."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from slmops.domain.blueprint import RolloutPolicy, WavePlan
from slmops.domain.waves import Candidate, build_waves

POLICY = RolloutPolicy(waves=(WavePlan(count=3), WavePlan(share=1.0)))
CLASSES = ("gateway", "till", "workstation")


@given(
    sizes=st.tuples(st.integers(1, 60), st.integers(1, 60), st.integers(1, 60)),
    salt=st.text(max_size=8),
)
def test_every_device_gets_one_wave_and_the_first_wave_sees_every_class(
    sizes: tuple[int, int, int], salt: str
) -> None:
    fleet = [
        Candidate(device=f"{name}-{i}", device_class=name, site=f"s{i % 3}")
        for name, size in zip(CLASSES, sizes, strict=True)
        for i in range(size)
    ]
    waves = build_waves(fleet, POLICY, salt=salt)
    assert set(waves) == {candidate.device for candidate in fleet}
    first = {device.rsplit("-", 1)[0] for device, wave in waves.items() if wave == 0}
    assert first == set(CLASSES)
    assert waves == build_waves(list(reversed(fleet)), POLICY, salt=salt)


def test_another_salt_sends_other_devices_first() -> None:
    fleet = [Candidate(device=f"d{i}", device_class="a") for i in range(100)]
    firsts = {
        tuple(
            sorted(d for d, w in build_waves(fleet, POLICY, salt=s).items() if w == 0)
        )
        for s in ("r-1", "r-2", "r-3")
    }
    assert len(firsts) > 1


def test_a_share_that_floating_point_misses_is_not_rounded_up() -> None:
    policy = replace(POLICY, waves=(WavePlan(share=0.07), WavePlan(share=1.0)))
    fleet = [Candidate(device=f"d{i}", device_class="a") for i in range(100)]
    waves = build_waves(fleet, policy, salt="r-1")
    assert sum(wave == 0 for wave in waves.values()) == 7
