"""A setting of the runtime is adopted only where it surely wins for everyone served."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest

from slmops.domain.blueprint import QualityFloor
from slmops.domain.device import Budget, DeviceClass, Objective
from slmops.domain.energy import Power
from slmops.domain.ids import Digest
from slmops.domain.memory import PeakMemory
from slmops.domain.release import Estimate
from slmops.domain.runtime_settings import UNCHANGED, RuntimeSettings
from slmops.domain.tasks import TaskKind, TaskMethod, TaskMetric, TaskResult
from slmops.testing.sample_build import SampleFigures, sample_candidate
from slmops.workshop.build_result import Candidate
from slmops.workshop.feasibility import SelectionRules
from slmops.workshop.tuning import TriedSetting, Verdict, judge_settings, tuned_card

FIGURES = SampleFigures(name="Q4_0", kld=0.02, mb=80, decode=40)
RULES = SelectionRules(floor=QualityFloor(), control_kld=0.004)
CACHE = RuntimeSettings(kv_cache="q8_0")
CAREFUL = RuntimeSettings(kv_cache="k-q8_0")
DRAFT = RuntimeSettings(draft=Digest("sha256:" + "d" * 64), draft_bytes=30 << 20)


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What measuring a setting found; every place has the same."""

    settings: RuntimeSettings = UNCHANGED
    decode: float = 40.0
    off: float = 2.0
    peak: float = 200.0
    kld: float = 0.02

    def at(self, candidate: Candidate) -> TriedSetting:
        decode = around(self.decode, self.off)
        return TriedSetting(
            settings=self.settings,
            fidelity=replace(
                candidate.card.fidelity, mean_kld=around(self.kld, 0.1 * self.kld)
            ),
            speed=tuple(
                replace(
                    speed,
                    decode_tokens_per_s=decode,
                    decode_median=decode,
                    peak_rss_mib=self.peak,
                )
                for speed in candidate.card.speed
            ),
        )


def around(value: float, off: float) -> Estimate:
    return Estimate(value=value, low=value - off, high=value + off)


def of(objective: Objective, name: str = "a", **changes: object) -> DeviceClass:
    return DeviceClass(name=name, objective=objective, **changes)  # type: ignore[arg-type]


def judged(
    *found: Found,
    classes: Sequence[DeviceClass],
    rules: SelectionRules = RULES,
    tasks: tuple[TaskResult, ...] = (),
) -> list[Verdict]:
    candidate = sample_candidate(FIGURES, classes=classes)
    candidate = replace(candidate, card=replace(candidate.card, tasks=tasks))
    tried = [each.at(candidate) for each in (Found(), *found)]
    verdicts = judge_settings(candidate, classes, rules, tried)
    assert [each.tried for each in verdicts] == tried
    assert sum(each.adopted for each in verdicts) == 1
    return list(verdicts)


@pytest.mark.parametrize(
    ("objective", "found", "adopted", "reason"),
    [
        (Objective.SPEED, Found(settings=DRAFT, decode=45), True, "surely faster"),
        (Objective.SPEED, Found(settings=DRAFT, decode=43), False, "not surely faster"),
        (Objective.SPEED, Found(settings=CACHE, peak=100), False, "not surely faster"),
        # Speed may cost quality, as far as the floor allows: 40 times 0.004.
        (Objective.SPEED, Found(settings=CACHE, decode=45, kld=0.14), True, "faster"),
        (Objective.SPEED, Found(settings=CACHE, decode=45, kld=0.15), False, "floor"),
        (Objective.SIZE, Found(settings=CACHE, peak=197), True, "saves memory"),
        (Objective.SIZE, Found(settings=CACHE, peak=199), False, "saves no memory"),
        (Objective.SIZE, Found(settings=CACHE, decode=90), False, "saves no memory"),
        (Objective.SIZE, Found(settings=CACHE, peak=100, kld=0.15), False, "floor"),
        (Objective.QUALITY, Found(settings=DRAFT, decode=45), True, "surely faster"),
        (
            Objective.QUALITY,
            Found(settings=CACHE, decode=45, kld=0.0201),
            True,
            "surely faster",
        ),
        (
            Objective.QUALITY,
            Found(settings=CACHE, decode=45, kld=0.021),
            False,
            "costs quality: KL divergence 0.0210 against 0.0200",
        ),
        (Objective.QUALITY, Found(settings=CACHE, peak=100), False, "not surely"),
    ],
)
def test_each_objective_has_its_own_gain(
    objective: Objective, found: Found, adopted: bool, reason: str
) -> None:
    default, verdict = judged(found, classes=[of(objective)])
    assert verdict.adopted is adopted
    assert reason in verdict.reason
    assert default.adopted is not adopted


def test_every_class_served_must_gain() -> None:
    fast, small = of(Objective.SPEED, "fast"), of(Objective.SIZE, "small")
    slower = Found(settings=CACHE, peak=150, decode=30)
    assert judged(slower, classes=[small])[1].adopted
    verdict = judged(slower, classes=[small, fast])[1]
    assert not verdict.adopted
    assert verdict.reason.startswith("fast: not surely faster: decode 30.0 (28.0 to")
    better = Found(settings=CACHE, peak=150, decode=50)
    verdict = judged(better, classes=[small, fast])[1]
    assert verdict.adopted
    assert "small: saves memory" in verdict.reason
    assert "fast: surely faster" in verdict.reason


def test_a_smaller_peak_counts_only_beyond_the_bounds_of_both() -> None:
    def saves(off: float) -> bool:
        peaks = {
            settings: PeakMemory(
                measured=around(peak, off),
                full=around(peak, off),
                processes=3,
                deviation_mib=off / 5,
            )
            for settings, peak in ((UNCHANGED, 200.0), (CACHE, 190.0))
        }
        candidate = sample_candidate(FIGURES, classes=[of(Objective.SIZE)])
        tried = [
            Found(settings=settings, peak=known.full.value).at(candidate)
            for settings, known in peaks.items()
        ]
        tried = [
            replace(
                each,
                speed=tuple(
                    replace(speed, peak_memory=peaks[each.settings])
                    for speed in each.speed
                ),
            )
            for each in tried
        ]
        verdicts = judge_settings(candidate, [of(Objective.SIZE)], RULES, tried)
        return verdicts[1].adopted

    assert saves(1.0)
    assert not saves(5.0)


def test_a_budget_holds_with_the_settings_own_figures() -> None:
    draft = Found(settings=DRAFT, decode=90, peak=350)
    narrow = of(Objective.SPEED, budget=Budget(memory_mib=300))
    verdict = judged(draft, classes=[narrow])[1]
    assert not verdict.adopted
    assert "peak memory 350.0 MiB is above the budget 300" in verdict.reason
    wide = of(Objective.SPEED, budget=Budget(memory_mib=400))
    assert judged(draft, classes=[wide])[1].adopted


def test_a_draft_takes_room_on_disk() -> None:
    draft = Found(settings=DRAFT, decode=90)
    own = FIGURES.mb * 1e6 / 2**20
    narrow = of(Objective.SPEED, budget=Budget(disk_mib=own + 29))
    verdict = judged(draft, classes=[narrow])[1]
    assert not verdict.adopted
    assert "disk" in verdict.reason
    wide = of(Objective.SPEED, budget=Budget(disk_mib=own + 31))
    assert judged(draft, classes=[wide])[1].adopted


def test_the_best_of_several_wins_and_the_first_of_equals() -> None:
    size = of(Objective.SIZE)
    some, more = Found(settings=CAREFUL, peak=180), Found(settings=CACHE, peak=150)
    verdicts = judged(some, more, classes=[size])
    assert [each.adopted for each in verdicts] == [False, False, True]
    assert "another setting is better still" in verdicts[1].reason
    same = replace(more, settings=DRAFT)
    verdicts = judged(more, same, classes=[size])
    assert [each.adopted for each in verdicts] == [False, True, False]


def test_the_floor_holds_even_in_a_build_below_it() -> None:
    rules = replace(RULES, below_floor=True)
    found = Found(settings=CACHE, peak=100, kld=0.3)
    assert not judged(found, classes=[of(Objective.SIZE)], rules=rules)[1].adopted


def test_tasks_speak_only_for_the_cache_they_were_asked_with() -> None:
    task = TaskResult(
        name="intents",
        kind=TaskKind.CLASSIFICATION,
        metric=TaskMetric.ACCURACY,
        method=TaskMethod.GENERATE,
        constrained=False,
        score=around(0.9, 0.01),
        difference=around(0.0, 0.01),
        flips=None,
        examples=10,
        examples_digest=Digest("sha256:" + "e" * 64),
    )
    found = Found(settings=CACHE, peak=100), Found(settings=DRAFT, peak=100)
    verdicts = judged(*found, classes=[of(Objective.SIZE)], tasks=(task,))
    assert [each.adopted for each in verdicts] == [False, False, True]
    assert "not asked with this cache" in verdicts[1].reason


def test_a_card_takes_all_figures_of_its_setting() -> None:
    candidate = sample_candidate(FIGURES, classes=[of(Objective.SIZE)])
    tried = Found(settings=CACHE, kld=0.03, peak=150).at(candidate)
    power = Power(source="meter", busy_watts=6.0)
    card = tuned_card(candidate.card, tried, [of(Objective.SIZE, power=power)])
    # Its own speed counts, 40 tokens/s, and not the candidate's at the defaults.
    (energy,) = card.modelled_energy
    assert energy.decode_joules_per_token.value == pytest.approx(6.0 / 40.0)
    assert card.settings == CACHE
    assert card.fidelity.mean_kld.value == pytest.approx(0.03)
    assert [speed.peak_rss_mib for speed in card.speed] == [150]
    assert card.label == candidate.label
