"""The build's page: self-contained, complete, escaped, and frank about its figures."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from slmops.domain.ids import Digest
from slmops.testing.sample_build import SAMPLE_FIGURES, SampleFigures, sample_build
from slmops.wire.codec import decode_json, document_digest
from slmops.workshop.build_result import BuildResult, Candidate
from slmops.workshop.report.chart import ChartFiles, draw_chart, pareto_spec
from slmops.workshop.report.page import build_page, write_report

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
        self.pieces: list[str] = []
        self.feed(html)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.pieces))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
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
