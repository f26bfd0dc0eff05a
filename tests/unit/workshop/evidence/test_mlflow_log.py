"""Builds in MLflow: its real client and database, every figure, nothing twice."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from slmops.cli.main import main
from slmops.domain.errors import InvalidInputError, UnavailableError
from slmops.testing.sample_evidence import released_build
from slmops.wire.codec import document_digest
from slmops.workshop.build_result import BuildResult
from slmops.workshop.evidence.bom import Product
from slmops.workshop.evidence.figures import Bounds, card_figures
from slmops.workshop.evidence.graph import rows
from slmops.workshop.evidence.mlflow_log import Tracking, log_build, open_tracking

pytestmark = [
    pytest.mark.slow,
    # MLflow's and SQLAlchemy's own; ours are errors all the same.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
PRODUCT = Product(name="sample", version="1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tracking")


@pytest.fixture(scope="module")
def tracking(folder: Path) -> Tracking:
    return open_tracking(f"sqlite:///{folder}/runs.db", "sample")


@pytest.fixture(scope="module")
def parent(tracking: Tracking, build: BuildResult) -> str:
    return log_build(tracking, build, PRODUCT)


def children(tracking: Tracking, parent: str) -> dict[str, Any]:
    found = tracking.client.search_runs(
        [tracking.experiment_id], f"tags.`mlflow.parentRunId` = '{parent}'"
    )
    return {run.info.run_name: run for run in found}


def test_the_parent_run_holds_blueprint_build_and_card(
    tracking: Tracking, parent: str, build: BuildResult, folder: Path
) -> None:
    run = tracking.client.get_run(parent)
    assert run.info.status == "FINISHED"
    assert run.data.tags["slmops.build"] == document_digest(build)
    assert run.data.params["evaluation.max_tokens"] == "768"
    assert run.data.params["classes.0.name"] == "small"
    names = {one.path for one in tracking.client.list_artifacts(parent)}
    assert names == {"build.json", "README.md"}
    path = tracking.client.download_artifacts(parent, "build.json", str(folder))
    content = json.loads(Path(path).read_bytes())
    assert content["machine"] == build.machine


def test_every_candidate_has_a_run_with_every_figure_and_its_bounds(
    tracking: Tracking, parent: str, build: BuildResult
) -> None:
    runs = children(tracking, parent)
    assert set(runs) == {c.card.label for c in rows(build)}
    for candidate in rows(build):
        metrics = runs[candidate.card.label].data.metrics
        figures = card_figures(candidate.card)
        bounded = [f for f in figures if f.bounds is not Bounds.NONE]
        assert len(metrics) == len(figures) + 2 * len(bounded)
        kld = candidate.card.fidelity.mean_kld
        assert metrics["mean_kld_nats"] == kld.value
        assert metrics["mean_kld_nats_high"] == kld.high
    tags = runs["Q3_K_M"].data.tags
    assert tags["slmops.chosen_for"] == "small"
    assert runs["Q8_0"].data.tags["slmops.control"] == "true"
    assert runs["Q8_0"].data.metrics["task intents/accuracy"] == 0.89


def test_the_same_build_is_logged_once(
    tracking: Tracking, parent: str, build: BuildResult
) -> None:
    again = log_build(tracking, build, PRODUCT)
    assert again == parent
    assert len(tracking.client.search_runs([tracking.experiment_id])) == 6


def test_artefacts_lie_beside_the_database(folder: Path, parent: str) -> None:
    assert parent
    assert {path.name for path in folder.iterdir()} >= {"runs.db", "mlartifacts"}
    assert not (Path.cwd() / "mlruns").exists()


def test_the_client_does_not_report_its_use(parent: str) -> None:
    assert parent
    from mlflow.telemetry import get_telemetry_client

    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert get_telemetry_client() is None


def test_an_address_mlflow_does_not_take_is_the_users_mistake() -> None:
    with pytest.raises(InvalidInputError, match="--mlflow nonsense://x"):
        open_tracking("nonsense://x", "sample")


def test_a_server_that_is_not_there_is_found_before_the_build(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UnavailableError, match="--mlflow http"):
        open_tracking("http://127.0.0.1:9", "sample")


def test_report_logs_a_finished_build(
    folder: Path, tracking: Tracking, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, plain = released_build(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(
            [
                *("--workspace", str(tmp_path), "report", "--json"),
                *("--mlflow", f"sqlite:///{folder}/runs.db"),
                *("--output", str(tmp_path / "out")),
            ]
        )
    assert not ended.value.code
    assert "MLflow: run " in capsys.readouterr().err
    (run,) = tracking.client.search_runs(
        [tracking.experiment_id], f"tags.`slmops.build` = '{document_digest(plain)}'"
    )
    assert set(children(tracking, run.info.run_id)) == {
        c.card.label for c in rows(plain)
    }


WITHOUT = """
import sys
sys.modules["mlflow"] = None  # as if it were not installed
from slmops.cli.main import main
main(["--workspace", sys.argv[1], "report", "--mlflow", "sqlite:///x.db", "--output", sys.argv[1]])
"""


def test_without_the_package_the_extra_is_named(tmp_path: Path) -> None:
    released_build(tmp_path)
    ran = subprocess.run(
        [sys.executable, "-c", WITHOUT, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ran.returncode == 2
    assert "pip install '.[mlflow]'" in ran.stderr
