"""A reason names the figure that decided, and its figures bear it out."""

from dataclasses import replace

from slmops.domain.blueprint import QualityFloor
from slmops.domain.device import DeviceClass, Objective
from slmops.domain.release import Estimate
from slmops.domain.tasks import (
    TaskKind,
    TaskMethod,
    TaskMetric,
    TaskResult,
    TaskSplit,
)
from slmops.testing.sample_build import SampleFigures, sample_candidate
from slmops.workshop.build_result import Candidate, ClassSelection
from slmops.workshop.feasibility import SelectionRules
from slmops.workshop.select import select_variants

FLOOR = QualityFloor(max_kld_times_8bit=1e6, min_same_top1=0.0, max_task_loss=0.9)
RULES = SelectionRules(floor=FLOOR, control_kld=0.004)
FINE, FAST, SMALL = (DeviceClass(name="till", objective=each) for each in Objective)


def made(
    name: str, kld: float, mb: float = 100.0, *, loss: float | None = None
) -> Candidate:
    candidate = sample_candidate(
        SampleFigures(name=name, kld=kld, mb=mb), classes=[FINE]
    )
    if loss is None:
        return candidate
    result = TaskResult(
        name="intents",
        kind=TaskKind.CLASSIFICATION,
        metric=TaskMetric.ACCURACY,
        method=TaskMethod.RANK,
        constrained=False,
        score=Estimate(value=0.8, low=0.75, high=0.85),
        difference=Estimate(value=0.0, low=-loss, high=0.01),
        flips=None,
        examples=200,
        examples_digest=candidate.digest,
        split=TaskSplit.SEARCH,
    )
    return replace(candidate, search_tasks=(result,))


def selected(device_class: DeviceClass, *candidates: Candidate) -> ClassSelection:
    (found,) = select_variants([device_class], candidates, RULES)
    return found


def test_among_the_fastest_the_task_score_decides_and_is_named() -> None:
    found = selected(
        FAST,
        made("CLOSE", 0.05, 90, loss=0.10),
        made("ABLE", 0.20, 100, loss=0.02),
    )
    assert found.quantization == "ABLE"
    assert found.reason.endswith(
        "; of these it has the best task score, at most 0.020 below the reference's"
    )
    assert found.rejected[0].reason.endswith(
        "which has the better task score: at most 0.020 below the reference's,"
        " against 0.100"
    )


def test_where_quality_counts_as_equal_bytes_decide_and_are_named() -> None:
    found = selected(FAST, made("EXACT", 0.0300, 100), made("LIGHT", 0.03005, 90))
    assert found.quantization == "LIGHT"
    assert found.reason.endswith(
        "; next is EXACT, against which it has fewer bytes: 85.8 MiB, against 95.4"
    )
    assert "no worse in quality and bytes by more than 1%" in found.rejected[0].reason


def test_the_quality_that_decides_is_shown_to_enough_digits() -> None:
    found = selected(SMALL, made("A", 0.030001), made("B", 0.030002))
    assert found.quantization == "A"
    assert found.reason == (
        "one of 2 best of 2 that fit, whose size counts as equal (95.4 MiB); next is B,"
        " against which it has less KL divergence: at most 0.033001 nats, against"
        " 0.033002"
    )
    assert found.rejected[0].reason == (
        "size counts as equal to that of A, which has less KL divergence: at most"
        " 0.033001 nats, against 0.033002"
    )


def test_between_twins_the_name_decides_and_nothing_else_is_claimed() -> None:
    found = selected(FINE, made("B", 0.03), made("A", 0.03))
    assert found.quantization == "A"
    assert "the same figures and comes first by name" in found.reason
    assert "the same figures and comes first by name" in found.rejected[0].reason


def test_the_only_class_is_not_told_of_others() -> None:
    found = selected(FINE, made("EXACT", 0.0300, 100), made("LIGHT", 0.03005, 90))
    told = [found.reason, *(each.reason for each in found.rejected)]
    assert not any("other classes" in text or "to ship" in text for text in told)
