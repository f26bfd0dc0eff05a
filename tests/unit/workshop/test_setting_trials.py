"""A candidate is tried at settings of the runtime: each is measured, once."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from slmops.domain.blueprint import Blueprint, EvaluationPlan
from slmops.domain.device import DeviceClass
from slmops.domain.errors import InvalidInputError
from slmops.domain.ids import Digest
from slmops.domain.runtime_settings import UNCHANGED, RuntimeSettings
from slmops.registry.workspace import Workspace
from slmops.testing.tiny_gguf import write_tiny_llama
from slmops.workshop.artefacts import Artefact, Making
from slmops.workshop.board import Board
from slmops.workshop.build_context import BuildContext
from slmops.workshop.evaluate import Scoring, score_reference
from slmops.workshop.models import import_model
from slmops.workshop.progress import silent
from slmops.workshop.setting_trials import (
    SettingTrial,
    expand_settings,
    try_settings,
)
from slmops.workshop.speed_setting import SpeedSetting
from slmops.workshop.text_sources import evaluation_text
from slmops.workshop.workbench import local_workbench
from slmops.workshop.workers import Workers

PLAN = EvaluationPlan(max_tokens=96, window_tokens=64, speed_runs=3)
DRAFTS = [(Digest("sha256:" + "d" * 64), 5)]


@dataclass(frozen=True, slots=True)
class Trials:
    build: BuildContext
    artefact: Artefact

    def measure(self, *settings: RuntimeSettings) -> tuple[SettingTrial, ...]:
        build = self.build
        scoring = Scoring(
            bench=build.bench,
            runtime="llamacpp",
            plan=PLAN,
            text_digest=build.blobs.put_bytes(
                evaluation_text(PLAN, Path())[:800].encode()
            ),
        )
        return try_settings(
            SpeedSetting(build=build, threads=1, context_tokens=256),
            scoring,
            score_reference(scoring, build.model.id),
            self.artefact,
            settings,
        )


@pytest.fixture
def trials(tmp_path: Path) -> Iterator[Trials]:
    workspace = Workspace(root=tmp_path / "ws")
    tiny = write_tiny_llama(tmp_path / "tiny.gguf", width=128, feed_forward=256)
    model = import_model(str(tiny), workspace, name="tiny")
    with ExitStack() as stack:
        board = stack.enter_context(Board(progress=silent))
        build = BuildContext(
            blueprint=Blueprint(
                name="tiny",
                model="tiny",
                classes=(DeviceClass(name="any", context_tokens=256),),
                evaluation=PLAN,
            ),
            workspace=workspace,
            folder=tmp_path,
            model=model,
            runtime="llamacpp",
            bench=stack.enter_context(local_workbench(workspace, board)),
            workers=stack.enter_context(Workers("llamacpp")),
        )
        making = Making(model=model.id, quantization="Q8_0")
        yield Trials(build, making.quantize(build.bench))


def test_what_changes_nothing_is_tried_first_and_nothing_twice() -> None:
    assert expand_settings() == (UNCHANGED,)
    found = expand_settings(["q8_0", "f16"], DRAFTS, draft_tokens=[2, 4])
    assert [(s.kv_cache, s.draft is not None, s.draft_tokens) for s in found] == [
        ("f16", False, 3),
        ("q8_0", False, 3),
        ("f16", True, 2),
        ("f16", True, 4),
        ("q8_0", True, 2),
        ("q8_0", True, 4),
    ]


@pytest.mark.slow
def test_every_setting_is_measured_and_known_the_second_time(trials: Trials) -> None:
    own = trials.artefact
    settings = expand_settings(["q4_0"], [(own.digest, own.file.bytes)])
    found = trials.measure(*settings)
    assert tuple(trial.settings for trial in found) == settings
    exact, coarse, drafted, both = found
    assert 0 < exact.fidelity.mean_kld.value < coarse.fidelity.mean_kld.value
    assert drafted.fidelity == exact.fidelity
    assert both.fidelity == coarse.fidelity
    # A second model and its cache are in the same process.
    assert drafted.speed.rss_anon_mib > exact.speed.rss_anon_mib
    steps = len(trials.build.runner.timings)
    assert trials.measure(*settings) == found
    assert len(trials.build.runner.timings) == steps


def test_no_settings_are_refused(trials: Trials) -> None:
    with pytest.raises(InvalidInputError, match="at least one"):
        trials.measure()
