"""A document that makes no sense cannot be made, and the message says what is wrong."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from slmops.domain.blueprint import (
    Blueprint,
    EvaluationPlan,
    GoldenPlan,
    QualityFloor,
    RolloutPolicy,
    WavePlan,
)
from slmops.domain.device import Budget, DeviceClass, DeviceFacts, Range
from slmops.domain.errors import InvalidInputError, NotFoundError
from slmops.domain.release import Estimate, ForcedRelease
from slmops.domain.report import GRID_MS, grid_cell, grid_quantile
from slmops.testing.sample_release import sample_release

CLASSES = (DeviceClass(name="till"),)

WRONG: dict[str, tuple[Callable[[], object], str]] = {
    "floor at the control": (
        lambda: QualityFloor(max_kld_times_8bit=1),
        "max_kld_times_8bit must be > 1, got 1",
    ),
    "share above one": (lambda: QualityFloor(min_same_top1=1.1), "in 0..1, got 1.1"),
    "short windows": (lambda: EvaluationPlan(window_tokens=31), ">= 32, got 31"),
    "less than a window": (
        lambda: EvaluationPlan(window_tokens=256, max_tokens=255),
        r">= evaluation.window_tokens \(256\), got 255",
    ),
    "two speed runs": (lambda: EvaluationPlan(speed_runs=2), ">= 3, got 2"),
    "no answer": (lambda: GoldenPlan(answer_tokens=0), "answer_tokens must be > 0"),
    "no tolerance": (lambda: GoldenPlan(max_card_delta=0), "card_delta must be > 0"),
    "negative speed": (
        lambda: GoldenPlan(min_decode_ratio=-0.1),
        "min_decode_ratio must be >= 0, got -0.1",
    ),
    "empty wave": (lambda: WavePlan(count=0), "count must be >= 1, got 0"),
    "two sizes": (lambda: WavePlan(count=1, share=0.5), "exactly one of count, share"),
    "no size": (WavePlan, "exactly one of count, share"),
    "too large a share": (lambda: WavePlan(share=1.5), r"in \(0, 1\], got 1.5"),
    "no waves": (lambda: RolloutPolicy(waves=()), "at least one wave"),
    "all may fail": (
        lambda: RolloutPolicy(tolerated_failure_rate=1),
        r"tolerated_failure_rate must be in \(0, 1\), got 1",
    ),
    "no alpha": (lambda: RolloutPolicy(alpha=0), r"alpha must be in \(0, 1\)"),
    "negative soak": (lambda: RolloutPolicy(soak_s=-1), "soak_s must be >= 0, got -1"),
    "no deadline": (
        lambda: RolloutPolicy(deadline_s=0, probation_s=0),
        "deadline_s must be > 0",
    ),
    "a deadline that no probation meets": (
        lambda: RolloutPolicy(deadline_s=119, probation_s=60),
        "at least twice rollout.probation_s: .* of 60 s ends, got 119",
    ),
    "no model": (
        lambda: Blueprint(name="a", model="", classes=CLASSES),
        "model must name an imported model",
    ),
    "no classes": (
        lambda: Blueprint(name="a", model="m", classes=()),
        "at least one device class",
    ),
    "one name twice": (
        lambda: Blueprint(name="a", model="m", classes=CLASSES * 2),
        "name 'till' is used twice",
    ),
    "no candidates": (
        lambda: Blueprint(name="a", model="m", classes=CLASSES, candidates=()),
        "at least one quantization",
    ),
    "range upside down": (lambda: Range(min=2, max=1), "min must be <= max"),
    "free budget": (lambda: Budget(memory_mib=0), "memory_mib must be > 0, got 0"),
    "negative memory": (
        lambda: DeviceFacts(
            memory_mib=-1, disk_mib=1, cpu_count=1, architecture="x86_64"
        ),
        "facts.memory_mib must be >= 0, got -1",
    ),
    "no threads": (lambda: DeviceClass(name="a", threads=0), "threads must be >= 1"),
    "no room for a turn": (
        lambda: DeviceClass(name="a", context_tokens=63),
        "context_tokens must be >= 64, got 63",
    ),
    "bounds that miss the value": (
        lambda: Estimate(value=1.0, low=1.1, high=1.2),
        "low <= value <= high",
    ),
    "forced for no reason": (
        lambda: ForcedRelease(reason="  ", violations=()),
        "needs a reason",
    ),
    "version zero": (lambda: replace(sample_release(), version=0), ">= 1, got 0"),
    "nothing in it": (lambda: replace(sample_release(), variants=()), "one variant"),
    "a name with a path": (
        lambda: replace(sample_release(), name="../up"),
        "release name",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_document_is_valid_from_birth(case: str) -> None:
    make, message = WRONG[case]
    with pytest.raises(InvalidInputError, match=message):
        make()


def test_a_release_names_what_it_has_no_variant_for() -> None:
    with pytest.raises(NotFoundError, match="no variant for class 'toaster'"):
        sample_release().variant_for("toaster")


def test_a_speed_is_found_by_a_class_s_own_settings_only() -> None:
    release = sample_release()
    card = release.variants[0].card
    assert card.speed_for(DeviceClass(name="other", threads=64)) is None


def test_an_empty_histogram_has_no_quantile_and_a_full_one_its_last_border() -> None:
    assert grid_quantile(GRID_MS, (), 0.5) is None
    counts = [0] * (len(GRID_MS) + 1)
    counts[grid_cell(GRID_MS, 1e9)] = 1
    assert grid_quantile(GRID_MS, tuple(counts), 1.0) == pytest.approx(GRID_MS[-1])
