"""`slmops build show` and `compare`, and that `build` still takes a blueprint."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from slmops.cli.main import main
from slmops.registry.workspace import Workspace
from slmops.testing.sample_build import with_settings
from slmops.testing.sample_evidence import released_build
from slmops.wire.codec import document_digest
from slmops.workshop.build_result import BuildResult
from slmops.workshop.builds import save_build

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def build(tmp_path: Path) -> BuildResult:
    return released_build(tmp_path)[1]


@pytest.fixture
def run(tmp_path: Path, build: BuildResult, capsys: pytest.CaptureFixture[str]) -> Run:
    assert build.candidates, "in the workspace"

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main(["--workspace", str(tmp_path), "build", *arguments])
        out, err = capsys.readouterr()
        return int(caught.value.code or 0), out, err

    return call


def test_show_prints_every_candidate_figure_and_step(
    run: Run, build: BuildResult
) -> None:
    code, out, err = run("show")
    assert code == 0
    for candidate in (build.reference, *build.candidates):
        assert candidate.card.label in out
        assert candidate.digest in out
    assert "control: reference against itself" in out
    assert "chosen for small" in out
    assert out.count("mean_kld_nats") == 1 + len(build.candidates)
    assert "quantization Q8_0" in out, "the step's parameters"
    assert "1 steps when computed: quantize 1.0 s" in err


def test_show_as_json_holds_bounds_and_natures(run: Run, build: BuildResult) -> None:
    tree = json.loads(run("show", "latest", "--json")[1])
    assert tree["build"] == document_digest(build)
    assert tree["seconds_by_kind"] == {"quantize": 1.0}
    (kld,) = [
        figure
        for figure in tree["candidates"][1]["figures"]
        if figure["name"] == "mean_kld_nats"
    ]
    estimate = build.candidates[0].card.fidelity.mean_kld
    assert kld["estimate"]["low"] == estimate.low
    assert kld["nature"] == "measured"
    assert len(tree["steps"]) == len(build.provenance)


def test_show_tells_runtime_settings_and_why(
    run: Run, build: BuildResult, tmp_path: Path
) -> None:
    assert "adopted" not in run("show")[1]
    tuned = save_build(Workspace(root=tmp_path), with_settings(build))
    code, out, _ = run("show", tuned)
    assert code == 0
    for text in ("kv q8_0", "adopted", "saves memory", "not tried: too small"):
        assert text in out, text
    tree = json.loads(run("show", tuned, "--json")[1])
    assert [each["adopted"] for each in tree["setting_results"]] == [False, True, False]


def test_show_takes_one_candidate(run: Run) -> None:
    code, out, _ = run("show", "latest:Q4_K_M")
    assert code == 0
    assert out.count("mean_kld_nats") == 1
    code, _, err = run("show", "latest:Q9")
    assert code == 3
    assert "Q4_K_M" in err
    assert run("show", "feedfeed")[0] == 3


def test_compare_two_candidates_says_what_is_shown(run: Run) -> None:
    code, out, err = run("compare", "latest:Q8_0", ":Q2_K")
    assert code == 0
    assert "worse" in out
    assert "better" in out, "fewer bytes"
    assert "tensors: an artefact" in err
    tree = json.loads(run("compare", "latest:Q8_0", "latest:Q2_K", "--json")[1])
    (kld,) = [f for f in tree["figures"] if f["name"] == "mean_kld_nats"]
    assert kld["is_overlapping"] is False
    assert kld["verdict"] == "worse"


def test_compare_two_builds_names_keys_choices_and_candidates(
    run: Run, build: BuildResult, tmp_path: Path
) -> None:
    plan = replace(build.blueprint.evaluation, max_tokens=2048)
    other = replace(
        build,
        blueprint=replace(build.blueprint, evaluation=plan),
        candidates=build.candidates[:3],
    )
    after = save_build(Workspace(root=tmp_path), other)
    before = document_digest(build)
    code, out, _ = run("compare", before, after[7:19])
    assert code == 0
    assert "evaluation.max_tokens" in out
    assert "only in A: Q2_K" in out
    assert "steps: 1 shared, 0 only in B" in out
    tree = json.loads(run("compare", before, after, "--json")[1])
    assert tree["blueprint"] == {"evaluation.max_tokens": [768, 2048]}


def test_a_build_is_not_compared_with_a_candidate(run: Run) -> None:
    code, _, err = run("compare", "latest", "latest:Q8_0")
    assert code == 2
    assert "two builds or two candidates" in err


def test_build_still_takes_a_blueprint_with_options_on_both_sides(
    run: Run, tmp_path: Path
) -> None:
    (tmp_path / "blueprint.yaml").write_text("name: [")
    path = str(tmp_path / "blueprint.yaml")
    for words in ((path, "--json"), ("--below-floor", path), (path,)):
        code, _, err = run(*words)
        assert code == 2
        assert "not valid YAML" in err
        assert path in err


def test_a_file_called_as_a_command_is_built_by_its_path(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "show").write_text("name: [")
    assert "not valid YAML" in run("./show")[2]
    assert run("show")[0] == 0


def test_help_and_mistakes_name_the_command_as_it_is_typed(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    assert "slmops build [OPTIONS] BLUEPRINT" in out
    assert "compare" in out
    assert "Usage: slmops build compare [OPTIONS] A B" in run("compare", "--help")[1]
    code, _, err = run()
    assert code == 2
    assert "Missing argument 'BLUEPRINT'" in err
    code, _, err = run("compare", "latest")
    assert code == 2
    assert "Missing argument 'B'" in err
