"""Whole builds of a complete tiny model: refusals, reuse, repair, and taking turns."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from slmops.domain.blueprint import (
    Blueprint,
    EvaluationPlan,
    GoldenPlan,
    QualityFloor,
)
from slmops.domain.device import Budget, DeviceClass
from slmops.domain.errors import (
    InvalidInputError,
    NotFoundError,
    OverBudgetError,
    UnavailableError,
    UntrustedError,
)
from slmops.registry.blobs import BlobStore
from slmops.registry.workspace import Workspace
from slmops.testing.tiny_gguf import write_tiny_llama
from slmops.workshop.artefacts import built_quantizations
from slmops.workshop.board import REUSED
from slmops.workshop.machine import load_prior
from slmops.workshop.models import import_model
from slmops.workshop.pipeline import BuildOptions, BuildRun, run_build

SEED = 4
"""Of a random model that answers the prompts with whole characters."""
BLUEPRINT = Blueprint(
    name="tiny",
    model="tiny",
    classes=(DeviceClass(name="any", context_tokens=256),),
    candidates=("Q4_0",),
    quality=QualityFloor(max_kld_times_8bit=1e6, min_same_top1=0.0),
    evaluation=EvaluationPlan(max_tokens=64, window_tokens=64, speed_runs=3),
    golden=GoldenPlan(prompts="prompts.txt", answer_tokens=2),
)


@dataclass(frozen=True, slots=True)
class Shop:
    """A folder with prompts and a workspace that holds a tiny model."""

    folder: Path

    @property
    def workspace(self) -> Workspace:
        return Workspace(root=self.folder / "ws")

    @property
    def blobs(self) -> BlobStore:
        return BlobStore(self.workspace.blobs)

    def build(
        self, blueprint: Blueprint = BLUEPRINT, options: BuildOptions | None = None
    ) -> BuildRun:
        return run_build(blueprint, self.workspace, folder=self.folder, options=options)

    def progress(self) -> list[tuple[str, float, float]]:
        """Build as before and return what was shown."""
        shown: list[tuple[str, float, float]] = []
        run_build(
            BLUEPRINT,
            self.workspace,
            folder=self.folder,
            progress=lambda *said: shown.append(said),
        )
        return shown

    def records(self) -> list[Path]:
        return list(self.workspace.steps.glob("*.json"))


def make_shop(folder: Path) -> Shop:
    (folder / "prompts.txt").write_text("One?\nTwo?\n")
    model = write_tiny_llama(folder / "tiny.gguf", SEED)
    shop = Shop(folder)
    import_model(str(model), shop.workspace, name="tiny")
    return shop


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return make_shop(tmp_path)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """A shop that several tests build in."""
    return make_shop(tmp_path_factory.mktemp("kept"))


@pytest.fixture(scope="module")
def first(kept: Shop) -> BuildRun:
    return kept.build()


def test_a_build_measures_the_control_beside_what_was_asked(
    kept: Shop, first: BuildRun
) -> None:
    result = first.result
    assert [c.quantization for c in result.candidates] == ["Q8_0", "Q4_0"]
    assert not result.control.eligible
    assert result.reference.card.fidelity.mean_kld.high < 1e-5
    assert [s.quantization for s in result.selection] == ["Q4_0"]
    assert "a control" in result.selection[0].rejected[0].reason
    assert len(result.variants[0].golden_logprobs) == 2
    assert "Q8_0 of tiny" in load_prior(kept.workspace).source
    model = result.model.id
    assert built_quantizations(kept.workspace, model, ("Q8_0", "Q4_0", "Q2_K")) == {
        "Q8_0",
        "Q4_0",
    }


def test_provenance_ties_every_figure_to_the_model(first: BuildRun) -> None:
    made: set[str] = {
        first.result.model.id,
        first.result.reference.card.fidelity.text_digest,
        first.result.reference.reported.fidelity.text_digest,
    }
    waiting = list(first.result.provenance)
    for _ in first.result.provenance:
        ready = [r for r in waiting if set(r.step.inputs.values()) <= made]
        made |= {digest for record in ready for digest in record.outputs.values()}
        waiting = [record for record in waiting if record not in ready]
    assert not waiting
    assert {v.digest for v in first.result.variants} <= made


def test_the_same_again_computes_nothing(kept: Shop, first: BuildRun) -> None:
    again = kept.build()
    assert (again.executed, again.id) == (0, first.id)
    assert first.executed == len(first.steps) == len(first.result.provenance)


def test_progress_reaches_its_total_whatever_is_reused(
    kept: Shop, first: BuildRun
) -> None:
    untouched = kept.progress()
    assert untouched[-1][1] == untouched[-1][2] > 0
    assert {what for what, _, _ in untouched} == {REUSED}
    kept.blobs.remove(first.result.variants[0].digest)
    again = kept.progress()
    assert again[-1][1] == again[-1][2] == untouched[-1][2]


def test_a_lost_artefact_is_made_again_and_nothing_else(
    kept: Shop, first: BuildRun
) -> None:
    kept.blobs.remove(first.result.variants[0].digest)
    again = kept.build()
    assert [s.name for s in again.steps if not s.reused] == ["quantize Q4_0"]
    assert again.result.variants == first.result.variants


def test_a_new_candidate_leaves_the_old_ones_alone(kept: Shop, first: BuildRun) -> None:
    run = kept.build(options=BuildOptions(candidates=("Q4_0", "Q5_0")))
    computed = {s.name for s in run.steps if not s.reused}
    assert {"quantize Q5_0", "score Q5_0"} <= computed
    assert not {"quantize Q4_0", "score Q4_0", "score reference"} & computed
    assert run.result.blueprint.candidates == ("Q4_0", "Q5_0")
    assert run.id != first.id


def test_two_builds_at_once_take_turns_and_find_the_same(shop: Shop) -> None:
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(shop.build) for _ in range(2)]
        runs = [future.result() for future in waiting]
    assert runs[0].id == runs[1].id
    assert sorted(run.executed == 0 for run in runs) == [False, True]


def test_an_unknown_model_is_not_found(shop: Shop) -> None:
    with pytest.raises(NotFoundError, match="'other' is not imported"):
        shop.build(replace(BLUEPRINT, model="other"))


def test_an_unknown_candidate_is_refused(shop: Shop) -> None:
    with pytest.raises(InvalidInputError, match="Q9_9"):
        shop.build(options=BuildOptions(candidates=("Q9_9",)))
    assert not shop.records()


def test_classes_of_different_runtimes_are_refused(shop: Shop) -> None:
    classes = (DeviceClass(name="a"), DeviceClass(name="b", runtime="echo"))
    with pytest.raises(InvalidInputError, match=r"same runtime.*got echo, llamacpp"):
        shop.build(replace(BLUEPRINT, classes=classes))


def test_a_budget_nothing_can_meet_is_refused_before_any_work(shop: Shop) -> None:
    classes = (DeviceClass(name="a", budget=Budget(disk_mib=0.001)),)
    with pytest.raises(OverBudgetError, match="Nearest change: raise"):
        shop.build(
            replace(BLUEPRINT, classes=(replace(classes[0], context_tokens=256),))
        )
    assert not shop.records()


def test_a_runtime_without_logits_cannot_be_built_for(shop: Shop) -> None:
    classes = (DeviceClass(name="a", runtime="echo", context_tokens=256),)
    with pytest.raises((UnavailableError, InvalidInputError)):
        shop.build(replace(BLUEPRINT, classes=classes))
    assert not list(shop.workspace.builds.glob("*"))


def test_missing_prompts_are_named(shop: Shop) -> None:
    (shop.folder / "prompts.txt").unlink()
    with pytest.raises(NotFoundError, match=r"golden\.prompts: .*prompts\.txt"):
        shop.build()


def test_a_changed_reference_is_not_built_from(shop: Shop) -> None:
    (record,) = shop.workspace.models.glob("*.json")
    path = shop.blobs.folder / record.stem
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.unlink()
    path.write_bytes(content)
    with pytest.raises(UntrustedError, match="is damaged"):
        shop.build()
    assert not shop.records()
