"""What structures will weigh, and which are hopeless, from a header alone."""

from dataclasses import replace
from pathlib import Path

import pytest

from slmops.domain.blueprint import Blueprint
from slmops.domain.device import Budget, DeviceClass
from slmops.domain.levers import (
    Lever,
    PruneDepth,
    PruneWidth,
    RecipeStep,
    TrimVocabulary,
)
from slmops.domain.recipe import CalibrationPlan, MixedPlan, Recipe, StructurePlan
from slmops.testing.tiny_gguf import write_tiny_llama
from slmops.workshop.forecast import MachinePrior
from slmops.workshop.gguf_file import GgufHeader, read_header
from slmops.workshop.search.analytic import ShapeForecast, forecast_structure

PRIOR = MachinePrior(decode_bytes_per_s=6e9, source="test")
KEYS = {
    PruneDepth: "prune_depth",
    PruneWidth: "prune_width",
    TrimVocabulary: "trim_vocabulary",
}


@pytest.fixture(scope="module")
def header(tmp_path_factory: pytest.TempPathFactory) -> GgufHeader:
    path: Path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    return read_header(write_tiny_llama(path, 4, layers=4))


def blueprint(disk_mib: float | None = None, *, mixed: bool = False) -> Blueprint:
    recipe = Recipe(calibration=CalibrationPlan(), mixed=MixedPlan() if mixed else None)
    device_class = DeviceClass(name="box", budget=Budget(disk_mib=disk_mib))
    return Blueprint(
        name="a",
        model="m",
        classes=(device_class,),
        candidates=("Q4_0", "Q8_0"),
        recipe=recipe,
    )


def forecast(wanted: Blueprint, header: GgufHeader, *levers: Lever) -> ShapeForecast:
    steps = tuple(RecipeStep(**{KEYS[type(lever)]: lever}) for lever in levers)  # type: ignore[arg-type]
    return forecast_structure(
        wanted, header, PRIOR, StructurePlan(name="slim", steps=steps)
    )


@pytest.mark.parametrize(
    ("lever", "message"),
    [
        (PruneDepth(layers=4), "prune_depth.layers must be at most 3 here, got 4"),
        (PruneWidth(kv_heads=3), "prune_width.kv_heads must be at most 2 here, got 3"),
        (PruneWidth(feed_forward=256), "feed_forward must be at most 128 here"),
        (TrimVocabulary(text="a", tokens=9000), "tokens must be at most 300 here"),
    ],
)
def test_more_than_there_is_cannot_be_kept(
    header: GgufHeader, lever: Lever, message: str
) -> None:
    found = forecast(blueprint(), header, lever)
    assert found.obstacle is not None
    assert message in found.obstacle


def test_the_smallest_candidate_is_what_a_hopeless_structure_is_told_by(
    header: GgufHeader,
) -> None:
    obstacle = forecast(blueprint(0.06), header, PruneDepth(layers=3)).obstacle
    assert obstacle is not None
    assert "box: Q4_0 needs 0.0" in obstacle
    assert obstacle.endswith("MiB of disk, the budget is 0.06")


def test_mixes_move_the_limit_and_do_not_lift_it(header: GgufHeader) -> None:
    depth = PruneDepth(layers=3)
    assert forecast(blueprint(0.076), header, depth).obstacle is not None
    assert forecast(blueprint(0.076, mixed=True), header, depth).obstacle is None
    none = forecast(blueprint(0.02, mixed=True), header, depth).obstacle
    assert none is not None
    assert "the smallest mix needs" in none


def test_what_fits_one_class_is_made(header: GgufHeader) -> None:
    tight = blueprint(0.02)
    wide = replace(tight, classes=(*tight.classes, DeviceClass(name="large")))
    assert forecast(wide, header, PruneDepth(layers=3)).obstacle is None
