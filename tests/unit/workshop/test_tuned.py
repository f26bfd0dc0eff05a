"""Whole builds whose recipe asks for settings of the runtime, of a tiny real model."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from slmops.domain.blueprint import (
    Blueprint,
    EvaluationPlan,
    GoldenPlan,
    QualityFloor,
)
from slmops.domain.device import DeviceClass, Objective
from slmops.domain.errors import InvalidInputError
from slmops.domain.levers import RecipeStep, TrimVocabulary
from slmops.domain.recipe import Recipe, RuntimePlan, StructurePlan
from slmops.domain.runtime_settings import UNCHANGED, RuntimeSettings
from slmops.registry.workspace import Workspace
from slmops.testing.tiny_gguf import write_tiny_llama
from slmops.workshop.models import import_model
from slmops.workshop.pipeline import BuildRun, run_build
from slmops.workshop.releases import compose_release

NOW = 1_800_000_000.0
TEXT = "a cat and a hat sat on a mat; the bat had an ant. " * 40
SLIM = StructurePlan(
    name="slim",
    steps=(RecipeStep(trim_vocabulary=TrimVocabulary(text="texts.txt", tokens=320)),),
)
# A long context, so that the cache is a good part of the process's memory.
BLUEPRINT = Blueprint(
    name="tiny",
    model="tiny",
    classes=(DeviceClass(name="any", context_tokens=8192, objective=Objective.SIZE),),
    candidates=("Q8_0", "Q4_0"),
    quality=QualityFloor(max_kld_times_8bit=1e9, min_same_top1=0.0),
    evaluation=EvaluationPlan(max_tokens=64, window_tokens=64, speed_runs=3),
    golden=GoldenPlan(prompts="prompts.txt", answer_tokens=2),
)


@dataclass(frozen=True, slots=True)
class Shop:
    folder: Path
    shown: list[tuple[float, float]] = field(default_factory=list)

    @property
    def workspace(self) -> Workspace:
        return Workspace(root=self.folder / "ws")

    def build(
        self,
        runtime: RuntimePlan | None,
        *structures: StructurePlan,
        model: str = "tiny",
        prompts: str = "prompts.txt",
    ) -> BuildRun:
        recipe = Recipe(structures=structures, runtime=runtime)
        golden = replace(BLUEPRINT.golden, prompts=prompts)
        blueprint = replace(BLUEPRINT, recipe=recipe, model=model, golden=golden)
        self.shown.clear()

        def progress(_: str, done: float, total: float) -> None:
            self.shown.append((done, total))

        return run_build(
            blueprint, self.workspace, folder=self.folder, progress=progress
        )


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    folder = tmp_path_factory.mktemp("tuned")
    (folder / "prompts.txt").write_text("One?\nTwo?\n")
    (folder / "texts.txt").write_text(TEXT)
    shop = Shop(folder)
    tiny = write_tiny_llama(
        folder / "tiny.gguf",
        4,
        layers=4,
        width=128,
        kv_heads=4,
        vocabulary=384,
        context_tokens=8192,
    )
    import_model(str(tiny), shop.workspace, name="tiny")
    narrow = write_tiny_llama(folder / "narrow.gguf", 5, width=64, context_tokens=8192)
    import_model(str(narrow), shop.workspace, name="narrow")
    return shop


@pytest.mark.slow
def test_a_smaller_cache_is_adopted_measured_asked_and_released(shop: Shop) -> None:
    plan = RuntimePlan(kv_cache=("q8_0",), drafts=("Q8_0", "Q4_0"))
    run = shop.build(plan)
    result = run.result
    (variant,) = result.variants
    cache = RuntimeSettings(kv_cache="q8_0")
    assert variant.settings == variant.card.settings == cache
    assert "runtime settings" in run.stages
    # Every step was expected, and no other.
    done, total = shop.shown[-1]
    assert done == total

    tried = {each.settings.label: each for each in result.setting_results}
    assert len(tried) == len(result.setting_results) == 5
    default, adopted = tried[""], tried["kv q8_0"]
    assert [each.adopted for each in result.setting_results].count(True) == 1
    assert adopted.adopted
    assert "saves memory" in adopted.reason
    # Adopted by the text that chooses; the card reports the other one.
    assert adopted.fidelity != default.fidelity
    assert variant.card.fidelity != adopted.fidelity
    assert variant.card.speed == adopted.speed
    assert adopted.speed[0].filled_tokens is not None
    reasons = [each.reason for each in result.setting_results if each.draft == "Q8_0"]
    assert len(reasons) == 2
    assert all("memory" in reason or "another" in reason for reason in reasons)
    own = [each for each in result.setting_results if each.draft == "Q4_0"]
    assert [each.reason for each in own] == ["not tried: it would draft for itself"]

    # The candidate's own row says what it is at the defaults, and golden prompts were
    # asked with the cache.
    assert result.candidate("Q4_0").card.settings == UNCHANGED
    assert result.chosen_card("any") == variant.card
    asked = [r.step for r in result.provenance if r.step.kind == "ask golden"]
    assert [step.parameters.get("kv_cache") for step in asked].count("q8_0") == 1
    plain = shop.build(None).result
    assert plain.setting_results == ()
    assert plain.variants[0].settings == UNCHANGED
    assert plain.variants[0].golden_logprobs != variant.golden_logprobs

    release = compose_release(shop.workspace, result, 1, None, NOW)
    assert release.variant_for("any").settings == cache
    again = shop.build(plan)
    assert again.executed == 0
    assert again.result == result


@pytest.mark.slow
def test_a_draft_with_another_vocabulary_is_not_tried(shop: Shop) -> None:
    plan = RuntimePlan(drafts=("Q8_0", "slim/Q8_0"), draft_tokens=(2,))
    result = shop.build(plan, SLIM).result
    (variant,) = result.variants
    assert variant.card.label == "slim/Q4_0"
    found = {each.draft: each for each in result.setting_results}
    assert found["Q8_0"].reason == "not tried: the draft has another vocabulary"
    assert found["Q8_0"].speed == ()
    assert found["slim/Q8_0"].fidelity == found[None].fidelity
    assert found["slim/Q8_0"].settings.draft_tokens == 2
    assert found[None].adopted
    assert variant.settings == UNCHANGED


def test_a_draft_that_nobody_builds_is_refused(shop: Shop) -> None:
    with pytest.raises(InvalidInputError, match=r"'slim/Q2_K' .* Q8_0, Q4_0$"):
        shop.build(RuntimePlan(drafts=("slim/Q2_K",)))


def test_heads_that_a_small_cache_cannot_hold_are_refused(shop: Shop) -> None:
    plan = RuntimePlan(kv_cache=("q8_0",))
    # The other prompt has no answer of whole characters from it, and goldens come first.
    (shop.folder / "one.txt").write_text("One?\n")
    with pytest.raises(InvalidInputError, match=r"multiple of 32 .* narrow has 16"):
        shop.build(plan, model="narrow", prompts="one.txt")
