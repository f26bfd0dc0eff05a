"""What a build will write is told before, and a disk too full for it refuses it."""

from dataclasses import replace
from pathlib import Path

import pytest

from slmops.domain.blueprint import Blueprint
from slmops.domain.device import DeviceClass
from slmops.domain.errors import UnavailableError
from slmops.domain.levers import Distill, PruneDepth, RecipeStep
from slmops.domain.recipe import CalibrationPlan, MixedPlan, Recipe, StructurePlan
from slmops.registry.workspace import Workspace
from slmops.testing.structure_samples import WORDS, run_here
from slmops.testing.tiny_gguf import write_tiny_llama
from slmops.workshop.already_made import done_before
from slmops.workshop.artefacts import Making
from slmops.workshop.board import Board
from slmops.workshop.build_context import BuildContext
from slmops.workshop.disk_needs import DiskNeeds, Done, disk_needs, require_space
from slmops.workshop.gguf_file import GgufHeader, read_header
from slmops.workshop.machine import load_prior
from slmops.workshop.models import find_model, import_model, reference_path
from slmops.workshop.pipeline import run_build
from slmops.workshop.plan import BuildPlan, plan_build
from slmops.workshop.precision.collect import collect_statistics
from slmops.workshop.progress import silent
from slmops.workshop.workbench import local_workbench
from slmops.workshop.workers import Workers

MIB = 1 << 20
BLUEPRINT = Blueprint(
    name="some",
    model="tiny-llama",
    classes=(DeviceClass(name="any", context_tokens=64),),
    candidates=("Q4_0", "Q2_K"),
)


@pytest.fixture
def model(workspace: Workspace, tmp_path: Path) -> Path:
    source = write_tiny_llama(tmp_path / "tiny.gguf", width=256, feed_forward=512)
    record = import_model(str(source), workspace)
    return reference_path(workspace, record)


def planned(wanted: Blueprint, workspace: Workspace) -> tuple[BuildPlan, GgufHeader]:
    record = find_model(workspace, wanted.model)
    path = reference_path(workspace, record)
    return plan_build(wanted, record, path, load_prior(workspace)), read_header(path)


def needs(
    wanted: Blueprint, workspace: Workspace, done: Done | None = None
) -> dict[str, int]:
    plan, header = planned(wanted, workspace)
    return dict(disk_needs(wanted, plan, header, done or Done()).parts)


def test_plain_candidates_need_their_exact_bytes(
    model: Path, workspace: Workspace
) -> None:
    plan, _ = planned(BLUEPRINT, workspace)
    sizes = {each.quantization: each.bytes for each in plan.candidates}
    assert needs(BLUEPRINT, workspace) == {"candidates": sum(sizes.values())}
    done = Done(candidates=frozenset({"Q8_0", "Q2_K"}))
    assert needs(BLUEPRINT, workspace, done) == {"candidates": sizes["Q4_0"]}
    everything = Done(prepared=True, candidates=frozenset(sizes))
    assert needs(BLUEPRINT, workspace, everything) == {}
    assert DiskNeeds().bytes == 0


def test_statistics_are_as_large_as_was_said(
    model: Path, workspace: Workspace, tmp_path: Path
) -> None:
    wanted = replace(BLUEPRINT, recipe=Recipe(calibration=CalibrationPlan()))
    told = needs(wanted, workspace)["statistics"]
    text = tmp_path / "text.txt"
    text.write_text(WORDS * 20)
    parameters = {"tokens": 64, "window_tokens": 64, "hessians": True}
    inputs = {"model": model, "text": text}
    made = run_here(tmp_path / "job", collect_statistics, inputs, parameters)
    assert told == pytest.approx(made["statistics"].stat().st_size, rel=0.1)


def test_levers_leave_a_model_each_and_training_a_checkpoint_for_a_while(
    model: Path, workspace: Workspace
) -> None:
    steps = (
        RecipeStep(prune_depth=PruneDepth(layers=1)),
        RecipeStep(distill=Distill(steps=5)),
    )
    recipe = Recipe(structures=(StructurePlan(name="slim", steps=steps),))
    wanted = replace(BLUEPRINT, recipe=recipe)
    plan, _ = planned(wanted, workspace)
    found = needs(wanted, workspace)
    reference = plan.reference_bytes
    assert found["structures"] == reference + plan.structures[0].bytes
    assert found["for a while"] == 6 * reference
    plain = needs(BLUEPRINT, workspace)["candidates"]
    assert plain < found["candidates"] < 2 * plain
    done = Done(prepared=True, structures=frozenset({"slim"}))
    assert "structures" not in needs(wanted, workspace, done)


def test_mixes_need_the_sizes_they_are_asked_for(
    model: Path, workspace: Workspace
) -> None:
    mixed = MixedPlan(megabytes=(1.0, 2.0))
    recipe = Recipe(calibration=CalibrationPlan(), mixed=mixed)
    found = needs(replace(BLUEPRINT, recipe=recipe), workspace)
    plain = needs(BLUEPRINT, workspace)["candidates"]
    assert found["candidates"] == plain + 3_000_000


def test_a_disk_that_is_too_full_is_named_with_what_frees_more(tmp_path: Path) -> None:
    require_space(DiskNeeds(parts={"candidates": 1}), tmp_path, lambda: 0)
    with pytest.raises(UnavailableError) as caught:
        require_space(DiskNeeds(parts={"candidates": 1 << 60}), tmp_path, lambda: MIB)
    message = str(caught.value)
    assert f"free at {tmp_path}" in message
    assert "slmops workspace gc --apply frees 1 MiB" in message
    # With nothing to write any disk will do.
    require_space(DiskNeeds(), Path("/proc"), lambda: 0)


def test_a_build_is_refused_at_once_and_what_is_there_is_not_counted(
    model: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("slmops.workshop.disk_needs.free_bytes", lambda folder: MIB)
    with pytest.raises(UnavailableError, match=r"the build needs \d+ MiB \(candidates"):
        run_build(BLUEPRINT, workspace, folder=tmp_path)
    assert not list(workspace.steps.glob("*.json"))
    with local_workbench(workspace, Board(progress=silent)) as bench:
        record = find_model(workspace, "tiny-llama")
        Making(model=record.id, quantization="Q4_0").quantize(bench)
        build = BuildContext(
            blueprint=BLUEPRINT,
            workspace=workspace,
            folder=tmp_path,
            model=record,
            runtime="llamacpp",
            bench=bench,
            workers=Workers("llamacpp"),
        )
        done = done_before(build)
    assert done.candidates == {"Q4_0"}
    assert done.prepared
    assert done.structures == {"base"}
