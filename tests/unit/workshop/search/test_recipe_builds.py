"""Whole builds by recipe, of a complete tiny model and through every step."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from slmops.domain.blueprint import (
    Blueprint,
    EvaluationPlan,
    GoldenPlan,
    QualityFloor,
)
from slmops.domain.device import Budget, DeviceClass
from slmops.domain.levers import (
    DepthMethod,
    PruneDepth,
    PruneWidth,
    RecipeStep,
    TrimVocabulary,
)
from slmops.domain.recipe import (
    CalibrationPlan,
    MixedPlan,
    Recipe,
    SearchPlan,
    StructurePlan,
)
from slmops.domain.tasks import TaskKind, TaskPlan
from slmops.registry.workspace import Workspace
from slmops.testing.tiny_gguf import write_tiny_llama
from slmops.workshop.models import import_model
from slmops.workshop.pipeline import BuildRun, run_build

SEED = 4
TEXT = "a cat and a hat sat on a mat; the bat had an ant. " * 40
SLIM = StructurePlan(
    name="slim",
    steps=(
        RecipeStep(trim_vocabulary=TrimVocabulary(text="texts.txt", tokens=320)),
        RecipeStep(prune_depth=PruneDepth(layers=3, method=DepthMethod.INFLUENCE)),
        RecipeStep(prune_width=PruneWidth(feed_forward=64)),
    ),
)
BLUEPRINT = Blueprint(
    name="tiny",
    model="tiny",
    classes=(DeviceClass(name="any", context_tokens=256),),
    candidates=("Q8_0", "Q4_0"),
    recipe=Recipe(calibration=CalibrationPlan(text="texts.txt", tokens=256)),
    quality=QualityFloor(max_kld_times_8bit=1e9, min_same_top1=0.0, max_task_loss=1.0),
    evaluation=EvaluationPlan(max_tokens=64, window_tokens=64, speed_runs=3),
    golden=GoldenPlan(prompts="prompts.txt", answer_tokens=2),
)


@dataclass(frozen=True, slots=True)
class Shop:
    folder: Path
    shown: list[tuple[str, float, float]] = field(default_factory=list)
    """What the last build said of its progress."""

    def build(self, **recipe: object) -> BuildRun:
        changed = replace(BLUEPRINT.recipe, **recipe)  # type: ignore[arg-type]
        return self.run(replace(BLUEPRINT, recipe=changed))

    def run(self, blueprint: Blueprint) -> BuildRun:
        workspace = Workspace(root=self.folder / "ws")
        self.shown.clear()
        return run_build(
            blueprint,
            workspace,
            folder=self.folder,
            progress=lambda *said: self.shown.append(said),
        )


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    folder = tmp_path_factory.mktemp("shop")
    (folder / "prompts.txt").write_text("One?\nTwo?\n")
    (folder / "texts.txt").write_text(TEXT)
    lines = [f'{{"prompt": "word {n}", "answer": "{"ab"[n % 2]}"}}' for n in range(8)]
    (folder / "tasks.jsonl").write_text("\n".join(lines) + "\n")
    model = write_tiny_llama(folder / "tiny.gguf", SEED, layers=4, vocabulary=384)
    import_model(str(model), Workspace(root=folder / "ws"), name="tiny")
    return Shop(folder)


@pytest.mark.slow
def test_a_structure_is_quantized_and_measured_beside_the_base(shop: Shop) -> None:
    result = shop.build(structures=(SLIM,)).result
    labels = {candidate.label for candidate in result.candidates}
    assert labels == {"Q8_0", "Q4_0", "slim/Q8_0", "slim/Q4_0"}
    slim = result.candidate("slim/Q4_0").card
    base = result.candidate("Q4_0").card
    assert slim.parameters < base.parameters
    assert slim.steps == (
        "keep 320 tokens",
        "keep 3 blocks (influence)",
        "keep 64 feed-forward channels",
    )
    assert slim.fidelity.mean_kld.value > base.fidelity.mean_kld.value
    assert slim.calibration is not None
    assert [trial.kept for trial in result.trials] == [True]
    again = shop.build(structures=(SLIM,))
    assert again.executed == 0
    assert again.result == result


@pytest.mark.slow
def test_what_no_class_could_hold_is_dropped_without_being_made(shop: Shop) -> None:
    tight = replace(
        BLUEPRINT,
        classes=(
            DeviceClass(name="any", context_tokens=256, budget=Budget(disk_mib=0.06)),
        ),
        candidates=("Q4_0",),
        recipe=replace(
            BLUEPRINT.recipe,
            structures=(
                StructurePlan(
                    name="deep",
                    steps=(
                        RecipeStep(
                            prune_depth=PruneDepth(
                                layers=(1, 3), method=DepthMethod.INFLUENCE
                            )
                        ),
                    ),
                ),
            ),
        ),
    )
    result = shop.run(tight).result
    reasons = {trial.name: trial.reason for trial in result.trials}
    assert "no class could hold it" in reasons["deep-2"]
    assert [s.quantization for s in result.selection] == ["deep-1/Q4_0"]


@pytest.mark.slow
def test_a_search_tries_some_and_builds_the_best_of_them(shop: Shop) -> None:
    plan = StructurePlan(
        name="deep",
        steps=(
            RecipeStep(
                prune_depth=PruneDepth(layers=(1, 2, 3), method=DepthMethod.INFLUENCE)
            ),
            RecipeStep(prune_width=PruneWidth(feed_forward=(64, 96))),
        ),
    )
    search = SearchPlan(exhaustive=1, trials=4, keep=2, probe_tokens=128)
    run = shop.build(structures=(plan,), search=search)
    tried = [trial for trial in run.result.trials if trial.kld is not None]
    assert len(tried) == 4
    untried = [trial for trial in run.result.trials if trial.kld is None]
    assert {t.reason for t in untried} == {"not tried: the search made its 4 trials"}
    assert len(run.result.trials) == len(plan.variations())
    texts = {
        record.step.kind: record.step.inputs["text"]
        for record in run.result.provenance
        if "text" in record.step.inputs and record.step.kind != "score reference"
    }
    judged_on = {
        record.step.inputs["text"]
        for record in run.result.provenance
        if record.step.kind == "score reference"
    }
    assert texts, "no lever has read a text"
    assert not judged_on & set(texts.values())
    assert 1 <= sum(trial.kept for trial in tried) <= 2
    assert all("dominated by" in t.reason or "front" in t.reason for t in tried)
    first, *_, last = [
        done / total
        for what, done, total in shop.shown
        if "deep-" in what and "base" not in what and "/" not in what
    ]
    assert first < 0.3 < last, "a search that has hardly begun shows a nearly full bar"
    made = {candidate.card.structure for candidate in run.result.candidates}
    assert made == {"base", *(trial.name for trial in tried if trial.kept)}
    assert shop.build(structures=(plan,), search=search).executed == 0


@pytest.mark.slow
def test_mixes_keep_their_size_and_are_named_by_it(shop: Shop) -> None:
    plain = shop.build().result
    size = plain.candidate("Q4_0").card.bytes
    result = shop.build(mixed=MixedPlan(megabytes=(size / 1e6,), tokens=128)).result
    mixed = [c for c in result.candidates if c.quantization.startswith("MIXED")]
    assert len(mixed) == 1
    assert mixed[0].card.bytes <= size
    assert mixed[0].quantization == f"MIXED-{mixed[0].card.bytes / 1e6:.1f}"


@pytest.mark.slow
def test_tasks_are_asked_of_everyone_and_decide(shop: Shop) -> None:
    task = TaskPlan(
        name="letters", kind=TaskKind.CLASSIFICATION, examples="tasks.jsonl"
    )
    result = shop.run(replace(BLUEPRINT, tasks=(task,))).result
    for row in (result.reference, *result.candidates):
        assert [each.name for each in row.card.tasks] == ["letters"]
        assert [each.name for each in row.search_tasks] == ["letters"]
        asked = row.card.tasks[0].examples + row.search_tasks[0].examples
        assert asked == 8
    assert result.reference.card.tasks[0].difference is None
    assert "task score at most" in result.selection[0].reason
