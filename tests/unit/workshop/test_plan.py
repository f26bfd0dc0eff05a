"""Planning: exact bytes, believable memory, and blueprints that cannot work."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmops.domain.blueprint import Blueprint
from slmops.domain.device import Budget, DeviceClass
from slmops.domain.errors import InvalidInputError, OverBudgetError
from slmops.domain.levers import PruneDepth, PruneWidth, RecipeStep, TrimVocabulary
from slmops.domain.recipe import Recipe, StructurePlan
from slmops.domain.release import ModelRecord
from slmops.registry.blobs import BlobStore
from slmops.registry.workspace import Workspace
from slmops.runtimes.address import open_client
from slmops.runtimes.base import WorkerSettings
from slmops.runtimes.speed import SpeedPlan, run_once
from slmops.runtimes.worker import start_worker
from slmops.testing.tiny_gguf import write_tiny_llama
from slmops.workshop.forecast import (
    MachinePrior,
    forecast_decode,
    forecast_memory,
    measured_prior,
    probe_prior,
)
from slmops.workshop.gguf_file import read_header
from slmops.workshop.machine import load_prior, save_prior
from slmops.workshop.model_shape import read_shape
from slmops.workshop.models import import_model, reference_path
from slmops.workshop.plan import BuildPlan, plan_build
from slmops.workshop.quantize import predict_quantized, quantize_gguf

PRIOR = MachinePrior(decode_bytes_per_s=6e9, source="test")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(root=tmp_path / "ws")


@pytest.fixture
def record(workspace: Workspace, tmp_path: Path) -> ModelRecord:
    return import_model(str(write_tiny_llama(tmp_path / "tiny.gguf")), workspace)


def blueprint(budget: Budget, *, context_tokens: int = 256) -> Blueprint:
    device_class = DeviceClass(
        name="gateway", budget=budget, context_tokens=context_tokens
    )
    return Blueprint(
        name="assistant",
        model="tiny-llama",
        classes=(device_class,),
        candidates=("Q4_K_M", "Q2_K"),
    )


def planned(wanted: Blueprint, workspace: Workspace, record: ModelRecord) -> BuildPlan:
    return plan_build(wanted, record, reference_path(workspace, record), PRIOR)


def test_every_candidate_is_planned_to_the_byte_with_the_control(
    workspace: Workspace, record: ModelRecord
) -> None:
    plan = planned(blueprint(Budget()), workspace, record)
    names = [candidate.quantization for candidate in plan.candidates]
    assert sorted(names) == ["Q2_K", "Q4_K_M", "Q8_0"]
    for candidate in plan.candidates:
        with BlobStore(workspace.blobs).writer() as writer:
            quantize_gguf(
                reference_path(workspace, record), candidate.quantization, writer
            )
        made = BlobStore(workspace.blobs).path(writer.digest)
        assert candidate.bytes == made.stat().st_size
        assert sum(candidate.tensor_types.values()) == 20
        assert candidate.is_control is (candidate.quantization == "Q8_0")


def test_what_is_built_already_is_marked(
    workspace: Workspace, record: ModelRecord
) -> None:
    path = reference_path(workspace, record)
    plan = plan_build(blueprint(Budget()), record, path, PRIOR, built={"Q8_0"})
    built = {
        candidate.quantization: candidate.is_built for candidate in plan.candidates
    }
    assert built == {"Q8_0": True, "Q4_K_M": False, "Q2_K": False}


def test_a_type_on_the_references_own_grid_is_marked(
    workspace: Workspace, record: ModelRecord
) -> None:
    quantized = replace(record, source_quantization="Q2_K")
    path = reference_path(workspace, record)
    types = {
        tensor.name: tensor.kind
        for tensor in predict_quantized(read_header(path), "Q2_K").tensors
    }
    plan = plan_build(blueprint(Budget()), quantized, path, PRIOR, source_types=types)
    flattered = [c.quantization for c in plan.candidates if c.is_flattered]
    # The control too: the mix had its type for the embedding, a third of the weights.
    assert flattered == ["Q8_0", "Q2_K"]
    assert plan.reference_grid == "Q2_K"


def test_impossible_memory_names_class_need_and_nearest_change(
    workspace: Workspace, record: ModelRecord
) -> None:
    with pytest.raises(OverBudgetError) as caught:
        planned(blueprint(Budget(memory_mib=10)), workspace, record)
    message = str(caught.value)
    assert "class 'gateway'" in message
    assert "raise classes[0].budget.memory_mib from 10 to 4" in message


def test_a_shorter_context_is_offered_where_it_would_help(
    workspace: Workspace, tmp_path: Path
) -> None:
    path = write_tiny_llama(tmp_path / "long.gguf", layers=8, context_tokens=1 << 17)
    record = import_model(str(path), workspace)
    wanted = blueprint(Budget(memory_mib=50), context_tokens=1 << 17)
    with pytest.raises(
        OverBudgetError, match=r"or lower classes\[0\]\.context_tokens to"
    ):
        planned(wanted, workspace, record)


def test_impossible_disk_is_exact(workspace: Workspace, record: ModelRecord) -> None:
    with pytest.raises(
        OverBudgetError, match=re.escape("raise classes[0].budget.disk_mib")
    ):
        planned(blueprint(Budget(disk_mib=0.01)), workspace, record)


def test_impossible_speed_names_what_can_be_had(
    workspace: Workspace, record: ModelRecord
) -> None:
    wanted = blueprint(Budget(decode_tokens_per_s=1e9))
    with pytest.raises(
        OverBudgetError, match=re.escape("lower classes[0].budget.decode")
    ):
        planned(wanted, workspace, record)


def test_a_doubtful_speed_does_not_fail_the_plan(
    workspace: Workspace, record: ModelRecord
) -> None:
    loose = planned(blueprint(Budget()), workspace, record)
    best = max(c.classes[0].decode_tokens_per_s for c in loose.candidates)
    tight = planned(
        blueprint(Budget(decode_tokens_per_s=best * 1.5)), workspace, record
    )
    assert not any(candidate.classes[0].fits for candidate in tight.candidates)


def test_a_context_the_model_was_not_trained_for_is_refused(
    workspace: Workspace, record: ModelRecord
) -> None:
    with pytest.raises(InvalidInputError, match="at most 512"):
        planned(blueprint(Budget(), context_tokens=1024), workspace, record)


def test_a_candidate_that_cannot_be_made_fails_the_plan(
    workspace: Workspace, record: ModelRecord, tmp_path: Path
) -> None:
    path = write_tiny_llama(tmp_path / "wide.gguf", seed=1, width=256, feed_forward=256)
    wide = import_model(str(path), workspace, name="wide")
    wanted = replace(blueprint(Budget()), candidates=("IQ2_M",))
    with pytest.raises(InvalidInputError, match="importance matrix"):
        planned(wanted, workspace, wide)


def test_a_measured_speed_is_remembered(
    workspace: Workspace, record: ModelRecord
) -> None:
    header = read_header(reference_path(workspace, record))
    prior = measured_prior(40.0, header.tensors, "build of today")
    assert forecast_decode(header.tensors, prior, threads=1) == pytest.approx(40)
    save_prior(workspace, prior)
    assert load_prior(workspace) == prior


def test_without_a_build_the_machine_is_probed(workspace: Workspace) -> None:
    prior = load_prior(workspace)
    assert "probe" in prior.source
    assert prior.decode_bytes_per_s > 1e8
    assert probe_prior().source.startswith("memory bandwidth")


@given(one=st.integers(64, 8192), other=st.integers(64, 8192))
def test_more_context_never_takes_less_memory(
    one: int, other: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "plan-tiny.gguf"
    if not path.exists():
        write_tiny_llama(path)
    header = read_header(path)
    short, long = sorted((one, other))
    needs = [
        forecast_memory(
            read_shape(header), header.tensors, context_tokens=tokens
        ).total_mib
        for tokens in (short, long)
    ]
    assert needs[0] <= needs[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "context_tokens"), [("Q8_0", 1024), ("Q4_0", 512), ("Q4_K_M", 2048)]
)
def test_predicted_memory_is_within_5_percent_of_a_full_contexts_peak(
    name: str, context_tokens: int, smollm2_gguf: Path, workspace: Workspace
) -> None:
    record = import_model(str(smollm2_gguf), workspace)
    with BlobStore(workspace.blobs).writer() as writer:
        made = quantize_gguf(reference_path(workspace, record), name, writer)
    path = BlobStore(workspace.blobs).path(writer.digest)
    worker = start_worker(
        "llamacpp", path, WorkerSettings(context_tokens=context_tokens)
    )
    try:
        filling = SpeedPlan(prompt_tokens=context_tokens - 48, answer_tokens=16)
        with open_client(worker.address) as client:
            run_once(client, filling)
        peak = worker.memory().peak_rss_mib
    finally:
        worker.stop(5)
    predicted = forecast_memory(
        read_shape(read_header(path)),
        made.tensors,
        context_tokens=context_tokens,
    )
    assert predicted.total_mib == pytest.approx(peak, rel=0.05)


def test_a_plan_tells_what_structures_will_weigh_and_refuses_none(
    workspace: Workspace, record: ModelRecord
) -> None:
    steps = (
        RecipeStep(prune_depth=PruneDepth(layers=(1, 2))),
        RecipeStep(prune_width=PruneWidth(feed_forward=64)),
        RecipeStep(trim_vocabulary=TrimVocabulary(text="a", tokens=256)),
    )
    plan = StructurePlan(name="flat", steps=steps)
    wanted = replace(
        blueprint(Budget(disk_mib=0.04)), recipe=Recipe(structures=(plan,))
    )
    first, second = planned(wanted, workspace, record).structures
    assert (first.name, second.name) == ("flat-1", "flat-2")
    assert first.bytes < second.bytes
    assert first.parameters < record.parameters
    assert first.obstacle is None
    assert second.obstacle == "prune_depth.layers must be at most 1 here, got 2"
