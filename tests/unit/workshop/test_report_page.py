"""The build's page: self-contained, complete, escaped, and frank about its figures."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from slmops.domain.errors import InvalidInputError
from slmops.domain.ids import Digest
from slmops.domain.levers import PruneDepth, RecipeStep
from slmops.domain.recipe import StructurePlan
from slmops.registry.blobs import BlobStore
from slmops.testing.sample_build import (
    SAMPLE_FIGURES,
    SampleFigures,
    sample_build,
    with_settings,
)
from slmops.testing.sample_release import digest_of
from slmops.wire.codec import decode_json, document_digest, encode_json
from slmops.workshop.build_result import BuildResult, Candidate, Trial
from slmops.workshop.precision.sensitivity import (
    Option,
    Sensitivity,
    TensorSensitivity,
)
from slmops.workshop.report.chart import ChartFiles, draw_chart, pareto_spec
from slmops.workshop.report.heat import OUTSIDE, heat_spec
from slmops.workshop.report.page import build_page, write_report
from slmops.workshop.report.sensitivity import measured_heat
from slmops.workshop.steps import Step, StepRecord

FLATTERED = SampleFigures(
    name="Q4_1",
    kld=0.0046,
    mb=138.4,
    same_top1=0.95,
    on_reference_grid=True,
)
LOADING = {"src", "href", "srcset", "action", "data", "poster", "xlink:href"}


class Page(HTMLParser):
    """Collects what a browser would load, and the text people see."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.pieces: list[str] = []
        self.feed(html)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.pieces))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "a":  # followed when somebody clicks, not loaded
            self.links += [value or "" for name, value in attrs if name == "href"]
            return
        self.loaded += [
            value
            for name, value in attrs
            if name in LOADING and value and not value.startswith("#")
        ]

    def handle_data(self, data: str) -> None:
        if self.lasttag not in {"script", "style"}:
            self.pieces.append(data)


def page_of(build: BuildResult, chart: ChartFiles) -> Page:
    return Page(build_page(build, chart))


@pytest.fixture(scope="module")
def build() -> BuildResult:
    result = sample_build([*SAMPLE_FIGURES, FLATTERED])
    model = replace(result.model, source_quantization="Q4_1")
    candidates = tuple(
        replace(c, card=replace(c.card, reference_grid="Q4_1"))
        for c in result.candidates
    )
    return replace(result, model=model, candidates=candidates)


@pytest.fixture(scope="module")
def chart(build: BuildResult) -> ChartFiles:
    return draw_chart(build)


@pytest.fixture(scope="module")
def page(build: BuildResult, chart: ChartFiles) -> Page:
    return page_of(build, chart)


def test_the_page_loads_nothing(
    page: Page, build: BuildResult, chart: ChartFiles
) -> None:
    assert page.loaded == []
    assert "link" not in page.tags
    assert "img" not in page.tags
    style = (
        build_page(build, draw_chart(build)).split("<style>")[1].split("</style>")[0]
    )
    assert "url(" not in style
    assert "@import" not in style


def test_every_candidate_and_control_has_its_row(
    page: Page, build: BuildResult
) -> None:
    for candidate in build.candidates:
        assert candidate.quantization in page.text
        assert f"{candidate.card.fidelity.mean_kld.value:.4f}" in page.text
    assert "control: reference against itself" in page.text
    assert "control: 8-bit" in page.text


def test_every_choice_and_every_rejection_is_told(
    page: Page, build: BuildResult
) -> None:
    for selection in build.selection:
        assert selection.reason in page.text
        for rejection in selection.rejected:
            assert re.sub(r"\s+", " ", rejection.reason) in page.text


def test_the_page_says_what_its_figures_are_not(page: Page) -> None:
    assert re.search(r"lower bound of the divergence over the whole", page.text)
    assert "Flattered here: Q4_1" in page.text
    assert "flattered: Q4_1 grid" in page.text
    assert "Measured, not modelled" in page.text
    assert "first quarter only gives context" in page.text


def test_measured_and_extrapolated_memory_never_share_a_column(
    build: BuildResult, chart: ChartFiles
) -> None:
    def extrapolated(candidate: Candidate) -> Candidate:
        speed = replace(
            candidate.card.speed[0],
            context_tokens=8192,
            filled_tokens=1946,
            peak_rss_mib=431.0,
            rss_anon_mib=331.0,
            extrapolated_mib=120.0,
        )
        return replace(candidate, card=replace(candidate.card, speed=(speed,)))

    candidates = tuple(extrapolated(c) for c in build.candidates)
    text = page_of(replace(build, candidates=candidates), chart).text
    assert "peak MiB, extrapolated to all of the context" in text
    for candidate in candidates:
        mapped = f"{candidate.card.speed[0].rss_file_mib:.0f}"
        assert f"{candidate.quantization} 1 8192 1946 311 211 {mapped} ~431" in text


def test_the_tail_of_few_runs_is_called_their_worst(
    page: Page, build: BuildResult
) -> None:
    assert "worst of 5 runs, ms" in page.text
    assert "p95" not in page.text
    for candidate in build.candidates:
        assert f"{candidate.quantization} 1 1024 " in page.text, "timed at context"


def test_a_genuine_reference_has_nothing_flattered(chart: ChartFiles) -> None:
    assert (
        "flattered" not in page_of(sample_build(), replace(chart, svg="")).text.lower()
    )


def test_a_build_below_the_floor_says_so(chart: ChartFiles) -> None:
    bad = (
        replace(SAMPLE_FIGURES[0], eligible=False),
        SampleFigures(name="Q2_K", kld=0.9, mb=80, same_top1=0.4),
    )
    text = page_of(sample_build(bad, below_floor=True), chart).text
    assert "Built below the quality floor" in text
    assert "below the quality floor: KL divergence" in text


def test_names_from_a_model_cannot_run(
    build: BuildResult, page: Page, chart: ChartFiles
) -> None:
    evil = "<script>alert(1)</script>"
    named = replace(build, model=replace(build.model, name=evil, licence=evil))
    found = page_of(named, chart)
    assert found.tags.count("script") == page.tags.count("script") == 1
    assert evil in found.text


def test_the_chart_holds_every_candidate_with_its_bounds(build: BuildResult) -> None:
    rows = [
        row
        for data in re.findall(
            r'"values": (\[\{"name".*?\}\])', json.dumps(pareto_spec(build))
        )
        for row in json.loads(data)
        if "mb" in row
    ]
    assert {row["name"] for row in rows} == {c.quantization for c in build.candidates}
    for row in rows:
        assert row["kld_low"] <= row["kld"] <= row["kld_high"]
    roles = {row["name"]: row["role"] for row in rows}
    assert roles["Q4_1"] == "flattered"
    assert roles["Q8_0"] == "chosen"
    assert roles["Q2_K"] == "not chosen"
    fronts = {row["name"] for row in rows if row["pareto"]}
    assert "Q4_1" not in fronts


def test_the_files_are_whole_and_equal_evidence_gives_equal_files(
    build: BuildResult, tmp_path: Path
) -> None:
    files = [write_report(build, tmp_path / name) for name in ("one", "two")]
    for what, path in files[0].items():
        assert path.read_bytes() == files[1][what].read_bytes()
    assert files[0]["png"].read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    svg = files[0]["svg"].read_text(encoding="utf-8")
    assert ElementTree.fromstring(svg).tag.endswith("svg")  # noqa: S314 - our own
    assert "a lower bound" in svg
    text = files[0]["json"].read_bytes()
    assert decode_json(text, BuildResult, where="build.json") == build
    digest: Digest = document_digest(build)
    assert digest in files[0]["page"].read_text(encoding="utf-8")


def test_each_class_sees_its_figures_beside_its_budget(
    page: Page, build: BuildResult
) -> None:
    small = build.blueprint.classes[0]
    assert small.budget.disk_mib is not None
    assert re.search(
        r"small 1 thread, context 1024 Q3_K_M objective: quality 89\.2 at most 90"
        r" 208 at most 230",
        page.text,
    )
    assert "large 1 thread, context 1024 Q8_0 objective: quality 138.1 no limit" in (
        page.text
    )


def test_structure_and_treatment_are_told_of_every_candidate(
    build: BuildResult, chart: ChartFiles
) -> None:
    (first, second, *rest) = build.candidates
    card = replace(
        second.card,
        structure="d24",
        steps=("prune 6 of 30 blocks",),
        recovered=True,
        parameters=112_000_000,
    )
    changed = replace(build, candidates=(first, replace(second, card=card), *rest))
    text = page_of(changed, chart).text
    assert "d24/Q4_K_M+recovered" in text
    assert "d24: prune 6 of 30 blocks 112.0 million" in text
    assert "recovered by training" in text
    assert "as imported 134.5 million; nearest rounding, uncalibrated" in text


def test_structures_that_were_dropped_are_told_with_the_reason(
    build: BuildResult, chart: ChartFiles
) -> None:
    plan = StructurePlan(
        name="d24", steps=(RecipeStep(prune_depth=PruneDepth(layers=24)),)
    )
    trial = Trial(
        name="d24",
        plan=plan,
        bytes=220_000_000,
        kld=None,
        kept=False,
        reason="too slow",
    )
    text = page_of(replace(build, trials=(trial,)), chart).text
    assert re.search(r"d24 prune_depth layers 24.* 220\.0 – no too slow", text)
    assert "Structures that were tried" not in page_of(build, chart).text


def test_settings_of_the_runtime_are_told_with_the_reason(
    build: BuildResult, chart: ChartFiles
) -> None:
    tuned = with_settings(build)
    text = page_of(tuned, chart).text
    assert "Runtime settings that were tried" in text
    assert re.search(r"Q3_K_M defaults 1, 1024 .* no another setting wins", text)
    assert re.search(r"Q3_K_M kv q8_0 1, 1024 .* 99\.5 yes small: saves memory", text)
    assert re.search(r"draft Q2_K of 3 – – – – no not tried: too small", text)
    # The class's row has what it runs with, and the figures of that.
    assert "objective: quality; runs with kv q8_0" in text
    assert re.search(r"runs with kv q8_0 89\.2 at most 90 100 at most 230", text)
    assert "Runtime settings" not in page_of(build, chart).text


def test_the_page_says_where_everything_comes_from(
    page: Page, build: BuildResult
) -> None:
    assert build.model.source_digest in page.text
    assert build.model.id in page.text
    assert document_digest(build) in page.text
    step = build.provenance[0].step
    assert step.digest[7:19] in page.text
    assert "quantization Q8_0" in page.text
    assert "computed in 1.0 s: quantize 1.0 s" in page.text


def test_links_lead_to_files_that_lie_beside_the_page(
    build: BuildResult, tmp_path: Path
) -> None:
    files = write_report(build, tmp_path)
    linked = Page(files["page"].read_text(encoding="utf-8")).links
    assert {"README.md", "bom.cdx.json", "provenance.intoto.json"} <= set(linked)
    assert all((tmp_path / name).is_file() for name in linked)


HEAT = {(0, "attn_q"): 1e-3, (1, "attn_q"): 2e-2, (OUTSIDE, "token_embd"): -1e-5}


def test_a_heat_map_is_shown_when_sensitivity_was_measured(
    build: BuildResult, page: Page, tmp_path: Path
) -> None:
    files = write_report(build, tmp_path, sensitivity=HEAT)
    html = files["page"].read_text(encoding="utf-8")
    assert "Where a byte saved hurts" in html
    assert "Where a byte saved hurts" not in page.text
    assert Page(html).loaded == []
    svg = files["heat"].read_text(encoding="utf-8")
    assert "token_embd" in svg


def test_a_heat_map_keeps_values_that_a_log_scale_cannot_show() -> None:
    rows = heat_spec(HEAT, "nats")["data"]["values"]
    shown = {(row["layer"], row["part"]): row["shown"] for row in rows}
    drawn = {(row["layer"], row["part"]): row["value"] for row in rows}
    assert shown["–", "token_embd"] == -1e-5, "in the tooltip as it is"
    assert drawn["–", "token_embd"] == 1e-3, "drawn as the least positive"
    assert heat_spec({(0, "a"): 0.0}, "nats"), "nothing positive at all"
    with pytest.raises(InvalidInputError, match="at least one value"):
        heat_spec({}, "nats")


def test_the_heat_map_is_of_the_model_as_it_was_imported(
    build: BuildResult, tmp_path: Path
) -> None:
    blobs = BlobStore(tmp_path)
    options = (
        Option(kind="Q4_0", bytes=1_000_000, kld=0.03, error=0.1),
        Option(kind="Q8_0", bytes=2_000_000, kld=0.01, error=0.01),
    )
    documents = [
        Sensitivity(
            positions=100,
            window_tokens=64,
            header_bytes=1,
            tensors=(TensorSensitivity(name=name, shape=(32, 32), options=options),),
        )
        for name in ("blk.9.attn_k.weight", "blk.0.attn_q.weight")
    ]
    records = tuple(
        StepRecord(
            step=Step(kind="sensitivity", tool="t", inputs={"model": m}, parameters={}),
            outputs={"sensitivity": blobs.put_bytes(encode_json(document))},
            seconds=1.0,
        )
        for m, document in zip(
            (digest_of(b"pruned"), build.model.id), documents, strict=True
        )
    )
    assert measured_heat(build, blobs) is None
    measured = replace(build, provenance=records)
    heat = measured_heat(measured, blobs)
    assert heat is not None
    assert dict(heat) == {(0, "attn_q"): pytest.approx(0.02)}
    blobs.remove(records[1].outputs["sensitivity"])
    assert set(measured_heat(measured, blobs) or {}) == {(9, "attn_k")}
