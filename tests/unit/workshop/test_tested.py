"""What is reported was measured on text that nothing was chosen by; goldens come first."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from slmops.domain.blueprint import (
    Blueprint,
    EvaluationPlan,
    GoldenPlan,
    QualityFloor,
)
from slmops.domain.device import DeviceClass, Objective
from slmops.domain.errors import InvalidInputError, OverBudgetError
from slmops.domain.release import Fidelity
from slmops.registry.blobs import BlobStore
from slmops.registry.workspace import Workspace
from slmops.testing.sample_build import sample_build, with_settings
from slmops.testing.tiny_gguf import write_tiny_llama
from slmops.workshop.build_context import BuildContext
from slmops.workshop.build_result import BuildResult, Candidate
from slmops.workshop.evaluate import Scoring
from slmops.workshop.models import import_model
from slmops.workshop.pipeline import BuildOptions, run_build
from slmops.workshop.report.chart import reported_rules
from slmops.workshop.tested import Chosen, ReportBench, hold_settings
from slmops.workshop.text_sources import evaluation_parts
from slmops.workshop.tuned import Tuned

SEED = 4
"""Of a random model that answers the prompts with whole characters."""
PLAN = EvaluationPlan(text="scored.txt", max_tokens=64, window_tokens=64, speed_runs=3)
BLUEPRINT = Blueprint(
    name="tiny",
    model="tiny",
    classes=(DeviceClass(name="any", context_tokens=256, objective=Objective.SIZE),),
    candidates=("Q8_0", "Q4_0"),
    quality=QualityFloor(max_kld_times_8bit=1e6, min_same_top1=0.0),
    evaluation=PLAN,
    golden=GoldenPlan(prompts="prompts.txt", answer_tokens=2),
)
HALVES = (
    "It rained all day and the river rose over the lower fields. " * 8,
    "def area(w, h):  # {3: [1.5, -2]} !? 0x1F => (w * h) / 2; \n" * 8,
)


@dataclass(frozen=True, slots=True)
class Shop:
    folder: Path

    @property
    def workspace(self) -> Workspace:
        return Workspace(root=self.folder / "ws")

    def build(self, blueprint: Blueprint, *, below_floor: bool = False) -> BuildResult:
        options = BuildOptions(below_floor=below_floor)
        return run_build(
            blueprint, self.workspace, folder=self.folder, options=options
        ).result

    def write(self, halves: tuple[str, ...]) -> None:
        (self.folder / "scored.txt").write_text("\n".join(halves))


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    shop = Shop(tmp_path_factory.mktemp("shop"))
    (shop.folder / "prompts.txt").write_text("One?\nTwo?\n")
    model = write_tiny_llama(shop.folder / "tiny.gguf", SEED)
    import_model(str(model), shop.workspace, name="tiny")
    return shop


def promised(built: BuildResult, candidate: Candidate) -> float:
    control = built.control.card.fidelity.mean_kld.value
    return candidate.card.fidelity.mean_kld.high / max(control, 1e-3)


def held(built: BuildResult, candidate: Candidate) -> float:
    control = built.control.reported.fidelity.mean_kld.value
    return candidate.reported.fidelity.mean_kld.high / max(control, 1e-3)


@pytest.fixture(scope="module")
def flattered(shop: Shop) -> BuildResult:
    """A build whose choice promised more than it holds: one order of the halves has it."""
    for halves in (HALVES, HALVES[::-1]):
        shop.write(halves)
        built = shop.build(BLUEPRINT)
        choice = built.candidate("Q4_0")
        if held(built, choice) > promised(built, choice):
            return built
    raise AssertionError("both orders hold more than they promise")


def test_what_is_reported_shares_no_text_with_what_was_chosen_by(
    shop: Shop, flattered: BuildResult
) -> None:
    [variant] = flattered.variants
    chosen = flattered.candidate("Q4_0")
    assert variant.card == chosen.reported
    assert variant.card.fidelity != chosen.card.fidelity
    texts = [
        BlobStore(shop.workspace.blobs).read_bytes(card.fidelity.text_digest).decode()
        for card in (chosen.reported, chosen.card)
    ]
    assert tuple(texts) == evaluation_parts(PLAN, shop.folder)
    assert "".join(texts) == (shop.folder / "scored.txt").read_text()


def test_controls_are_reported_on_the_same_text(flattered: BuildResult) -> None:
    wanted = flattered.variants[0].card.fidelity.text_digest
    assert flattered.control.reported.fidelity.text_digest == wanted
    assert flattered.reference.reported.fidelity.text_digest == wanted
    assert flattered.reference.reported.fidelity.mean_kld.high < 1e-5


def test_a_choice_that_does_not_hold_is_refused_and_the_next_is_taken(
    shop: Shop, flattered: BuildResult
) -> None:
    choice = flattered.candidate("Q4_0")
    between = (promised(flattered, choice) + held(flattered, choice)) / 2
    floor = QualityFloor(max_kld_times_8bit=between, min_same_top1=0.0)
    strict = replace(BLUEPRINT, quality=floor)
    built = shop.build(strict)
    [selection] = built.selection
    assert selection.quantization == "Q8_0"
    assert selection.violations == ()
    [rejected] = selection.rejected
    assert "was chosen, and refused by what nothing is chosen by" in rejected.reason
    assert "KL divergence may be as high as" in rejected.reason
    assert built.candidate("Q4_0").test_fidelity is not None
    only = replace(strict, candidates=("Q4_0",))
    with pytest.raises(OverBudgetError, match="refused by what nothing is chosen by"):
        shop.build(only)
    kept = shop.build(only, below_floor=True).selection[0]
    assert kept.quantization == "Q4_0"
    assert "below the quality floor" in kept.violations[0]


def test_a_share_of_nothing_takes_one_text_for_both(shop: Shop) -> None:
    shop.write(HALVES)
    built = shop.build(replace(BLUEPRINT, evaluation=replace(PLAN, search_share=0.0)))
    chosen = built.candidate("Q4_0")
    assert chosen.reported == chosen.card


def test_a_part_that_is_too_short_says_which_key_cuts_it(shop: Shop) -> None:
    shop.write(("a short text",))
    with pytest.raises(InvalidInputError, match=r"evaluation\.search_share"):
        shop.build(BLUEPRINT)


def held_at(build: BuildContext, kld_times: float) -> tuple[Tuned, Fidelity]:
    """Adopt a cache of few bits whose KL divergence is so many times the allowed one."""
    built = with_settings(sample_build())
    rules = reported_rules(built)
    [variant] = [v for v in built.variants if not v.settings.is_default]
    low, high = kld_times * rules.max_kld * 0.9, kld_times * rules.max_kld
    fidelity = replace(
        variant.card.fidelity,
        mean_kld=replace(variant.card.fidelity.mean_kld, value=low, low=low, high=high),
    )
    bench = ReportBench(
        build=build,
        artefacts={},
        scoring=Scoring(
            bench=build.bench,
            runtime=build.runtime,
            plan=PLAN,
            text_digest=fidelity.text_digest,
        ),
        reference=built.reference.digest,
        known={(variant.digest, variant.settings.kv_cache): fidelity},
    )
    chosen = Chosen(
        candidates=built.candidates,
        reference=built.reference,
        selection=built.selection,
        rules=rules,
        test_rules=rules,
    )
    tuned = Tuned(cards={variant.digest: variant.card}, results=built.setting_results)
    return hold_settings(bench, chosen, tuned), fidelity


def test_an_adopted_setting_is_reported_by_the_other_text(
    make_build: Callable[..., BuildContext],
) -> None:
    tuned, fidelity = held_at(make_build(), 0.5)
    [card] = tuned.cards.values()
    assert card.fidelity == fidelity
    assert [each.adopted for each in tuned.results] == [False, True, False]


def test_a_setting_that_does_not_hold_is_dropped_for_the_defaults(
    make_build: Callable[..., BuildContext],
) -> None:
    tuned, _ = held_at(make_build(), 2.0)
    assert tuned.cards == {}
    assert [each.adopted for each in tuned.results] == [True, False, False]
    assert "does not hold on the test text" in tuned.results[1].reason


def test_a_golden_prompt_without_an_answer_is_refused_before_anything_is_built(
    tmp_path: Path,
) -> None:
    shop = Shop(tmp_path)
    model = write_tiny_llama(tmp_path / "tiny.gguf", SEED)
    import_model(str(model), shop.workspace, name="tiny")
    shop.write(HALVES)
    (tmp_path / "prompts.txt").write_text("One?\n\n" + "too long " * 2000 + "\n")
    with pytest.raises(
        InvalidInputError, match=r"golden\.prompts: .*prompts\.txt:3: refused"
    ):
        shop.build(BLUEPRINT)
    assert not list(shop.workspace.steps.glob("*.json"))
