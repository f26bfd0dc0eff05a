"""Model cards: the Hub can read them, and they hold measurements only."""

import re
from dataclasses import replace

import pytest
from huggingface_hub import ModelCard

from slmops.domain.energy import Power
from slmops.domain.estimate import Estimate
from slmops.domain.memory import PeakMemory
from slmops.testing.sample_build import with_settings
from slmops.workshop.build_result import BuildResult
from slmops.workshop.energy import with_modelled_energy
from slmops.workshop.evidence.bom import Product
from slmops.workshop.evidence.figures import Bounds, card_figures
from slmops.workshop.evidence.model_card import release_card, variant_card
from slmops.workshop.report.chart import draw_chart
from slmops.workshop.report.page import build_page

PRODUCT = Product(name="sample", version="2")


def table_of(card: str, heading: str) -> list[list[str]]:
    """Return the rows of the table below a heading."""
    section = card.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines]
    return [[cell.strip().replace("\\", "") for cell in row] for row in cells]


def test_the_hub_reads_metadata_and_results(build: BuildResult) -> None:
    data = ModelCard(release_card(build, PRODUCT)).data
    assert data.base_model == "maker/model"
    assert data.base_model_relation == "quantized"
    assert data.license == "apache-2.0"
    assert data.library_name == "gguf"
    results = data.eval_results
    assert results is not None
    by_name = {result.metric_name: result for result in results}
    for variant in build.variants:
        kld = variant.card.fidelity.mean_kld
        name = f"Mean KL divergence from the 16-bit reference, nats ({variant.card.quantization})"
        assert by_name[name].metric_value == kld.value
        assert by_name[name].metric_args == {"low": kld.low, "high": kld.high}
        task = by_name[f"accuracy ({variant.card.quantization})"]
        assert task.dataset_type == "intents"
        assert not task.verified


def test_a_local_model_names_no_base_on_the_hub(build: BuildResult) -> None:
    local = replace(
        build, model=replace(build.model, source="model.gguf", licence=None)
    )
    card = release_card(local, PRODUCT)
    data = ModelCard(card).data
    assert data.base_model is None
    assert data.license is None
    assert "not stated by its source" in card


def test_a_licence_the_hub_does_not_know_is_named(build: BuildResult) -> None:
    named = replace(build, model=replace(build.model, licence="Gemma Terms"))
    data = ModelCard(release_card(named, PRODUCT)).data
    assert (data.license, data.license_name) == ("other", "Gemma Terms")


def test_every_candidate_is_shown_with_bounds_and_both_controls(
    build: BuildResult,
) -> None:
    rows = table_of(release_card(build, PRODUCT), "Fidelity, measured")
    names = [row[0] for row in rows[2:]]
    assert names == ["F16", *(c.quantization for c in build.candidates)]
    marks = {row[0]: row[-1] for row in rows[2:]}
    assert marks["F16"] == "control: reference against itself"
    assert "control: 8-bit" in marks["Q8_0"]
    assert "chosen for small" in marks["Q3_K_M"]
    kld = build.candidates[1].card.fidelity.mean_kld
    assert rows[3 + 1][3] == f"{kld.value:.4f} ({kld.low:.4f} to {kld.high:.4f})"


def test_a_flattered_candidate_is_marked(build: BuildResult) -> None:
    candidates = tuple(
        replace(c, on_reference_grid=c.quantization == "Q4_K_M")
        for c in build.candidates
    )
    card = release_card(replace(build, candidates=candidates), PRODUCT)
    marks = {row[0]: row[-1] for row in table_of(card, "Fidelity, measured")[2:]}
    assert "flattered" in marks["Q4_K_M"]
    assert "flattered" not in marks["Q2_K"]
    assert "flattered here: Q4\\_K\\_M" in card


def test_modelled_memory_has_a_table_of_its_own(build: BuildResult) -> None:
    plain = release_card(build, PRODUCT)
    assert "modelled" not in plain
    candidates = tuple(
        replace(
            c,
            card=replace(
                c.card,
                speed=tuple(
                    replace(
                        s, extrapolated_mib=100.0, filled_tokens=900, peak_rss_mib=400.0
                    )
                    for s in c.card.speed
                ),
            ),
        )
        for c in build.candidates
    )
    card = release_card(replace(build, candidates=candidates), PRODUCT)
    measured = table_of(card, "Speed and memory, measured")
    modelled = table_of(card, "Memory with a full context, modelled")
    assert all(row[-1] == "300" for row in measured[2:]), "what was observed"
    assert all(row[-1] == "~400" for row in modelled[2:])
    assert modelled[2][2] == "900"


def test_tasks_show_scores_differences_and_flips(build: BuildResult) -> None:
    rows = table_of(release_card(build, PRODUCT), "Tasks, measured")
    reference, first = rows[2], rows[3]
    assert reference[4] == "reference"
    assert first[3:8] == [
        *("0.890 (0.870 to 0.910)", "-0.010 (-0.030 to 0.010)"),
        *("5", "1", "0.219"),
    ]
    assert "macro_f1" in first[-1]


def test_a_variants_card_shows_its_own_row_beside_the_controls(
    build: BuildResult,
) -> None:
    variant = next(v for v in build.variants if v.card.quantization == "Q3_K_M")
    card = variant_card(build, variant, PRODUCT)
    names = [row[0] for row in table_of(card, "Fidelity, measured")[2:]]
    assert names == ["F16", "Q8_0", "Q3_K_M"]
    assert variant.digest in card
    types = dict(table_of(card, "Tensor types")[2:])
    assert types == {kind: str(n) for kind, n in variant.card.tensor_types.items()}


@pytest.mark.parametrize(
    "evil", ["a|b\n---\nlicense: mit", "<script>x</script>", "`; `"]
)
def test_texts_of_a_model_change_neither_metadata_nor_markup(
    evil: str, build: BuildResult
) -> None:
    named = replace(
        build, model=replace(build.model, name=evil, licence=evil, source=evil)
    )
    card = release_card(named, PRODUCT)
    data = ModelCard(card).data
    assert data.license == "other"
    assert data.license_name == evil
    text = re.sub(r"`[^`\n]*`", "", card.split("\n---\n", 1)[1])
    assert not re.search(r"(?<!\\)<script", text), "outside code it is escaped"


def test_equal_evidence_gives_an_equal_card(build: BuildResult) -> None:
    assert release_card(build, PRODUCT) == release_card(build, PRODUCT)


def test_what_a_variant_runs_with_is_shown_with_its_figures(
    build: BuildResult,
) -> None:
    tuned = with_settings(build)
    heading = "Runtime settings, measured"
    rows = table_of(release_card(tuned, PRODUCT), heading)[2:]
    assert [row[1] for row in rows] == ["defaults", "kv q8_0", "draft Q2_K of 3"]
    assert rows[1][5:7] == ["99.5", "yes"]
    assert rows[1][7].endswith("saves memory")
    assert rows[2][2:6] == ["", "", "", ""]
    own, *others = sorted(tuned.variants, key=lambda each: each.settings.is_default)
    card = variant_card(tuned, own, PRODUCT)
    assert len(table_of(card, heading)) == len(rows) + 2
    assert "kv q8\\_0" in card
    assert others
    for other in others:
        assert heading not in variant_card(tuned, other, PRODUCT)
    assert heading not in release_card(build, PRODUCT)


def test_peaks_carry_their_bounds_and_energy_its_nature(build: BuildResult) -> None:
    low_high = Estimate(value=300.0, low=299.0, high=301.5)
    known = PeakMemory(measured=low_high, full=low_high, processes=3, deviation_mib=0.2)
    power = Power(source="meter", busy_watts=5.0)
    classes = tuple(replace(c, power=power) for c in build.blueprint.classes)
    candidates = tuple(
        replace(
            c,
            card=with_modelled_energy(
                replace(
                    c.card,
                    speed=tuple(
                        replace(s, peak_rss_mib=300.0, peak_memory=known)
                        for s in c.card.speed
                    ),
                ),
                classes,
            ),
        )
        for c in build.candidates
    )
    blueprint = replace(build.blueprint, classes=classes)
    changed = replace(
        build, blueprint=blueprint, candidates=candidates, control=candidates[0]
    )
    card = release_card(changed, PRODUCT)
    measured = table_of(card, "Speed and memory, measured")
    assert {row[-1] for row in measured[2:]} == {"300.0 (299.0 to 301.5)"}
    modelled = table_of(card, "Energy per token, modelled")
    assert len(modelled) == 2 + len(candidates) * len(classes)
    assert all("~" in row[2] for row in modelled[2:])
    assert "nobody measured it" in card
    assert "Energy per token, measured" not in card
    plain = release_card(build, PRODUCT)
    assert "class small names no power" in plain
    page = build_page(changed, draw_chart(changed))
    assert "299.0 to 301.5" in page
    assert "<h3>Energy per token, modelled</h3>" in page


def test_who_was_timed_apart_is_named(build: BuildResult) -> None:
    said = "in another group"
    for text in (release_card(build, PRODUCT), build_page(build, draw_chart(build))):
        assert said not in text
    first, *others = build.candidates
    factor = Estimate(value=1.1, low=1.0, high=1.2)
    speed = tuple(replace(each, anchored=factor) for each in first.card.speed)
    apart = replace(first, card=replace(first.card, speed=speed))
    changed = replace(build, candidates=(apart, *others), control=apart)
    card = release_card(changed, PRODUCT)
    assert f"in another group than the others: {first.card.label}." in card.replace(
        "\\", ""
    )
    page = build_page(changed, draw_chart(changed))
    assert f"in another group: {first.card.label};" in page
    natures = {figure.name: figure.bounds for figure in card_figures(apart.card)}
    assert natures["decode_tokens_per_s"] is Bounds.PROPAGATED
