"""A build over every kind of lever, killed at three of them: it goes on, to the same end."""

import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from slmops.registry.workspace import Workspace
from slmops.testing.tiny_gguf import write_tiny_llama
from slmops.workshop.blueprints import load_blueprint
from slmops.workshop.models import import_model
from slmops.workshop.pipeline import BuildRun, run_build

pytestmark = pytest.mark.slow

BLUEPRINT = """
name: tiny
model: tiny
classes: [{name: any, context_tokens: 256}]
candidates: [Q4_0]
recipe:
  calibration: {text: texts.txt, tokens: 512}
  prepare:
    - finetune: {data: examples.jsonl, method: full, epochs: 1}
  mixed: {megabytes: [0.12], tokens: 128}
  structures:
    - name: slim
      steps:
        - trim_vocabulary: {text: texts.txt, tokens: 320}
        - prune_depth: {layers: 3}
        - distill: {text: texts.txt, steps: 4}
quality: {max_kld_times_8bit: 1000000000, min_same_top1: 0, max_task_loss: 1}
evaluation: {max_tokens: 64, window_tokens: 64, speed_runs: 3}
golden: {prompts: prompts.txt, answer_tokens: 2}
"""
TEXT = "a cat and a hat sat on a mat; the bat had an ant. " * 60
DRIVER = """
import sys
from pathlib import Path
from slmops.registry.workspace import Workspace
from slmops.workshop.blueprints import load_blueprint
from slmops.workshop.pipeline import run_build

path = Path(sys.argv[1])
run_build(
    load_blueprint(path),
    Workspace(root=path.parent / "ws"),
    folder=path.parent,
    progress=lambda what, done, total: print(what, flush=True),
)
"""


@dataclass(frozen=True, slots=True)
class Place:
    folder: Path

    @property
    def workspace(self) -> Workspace:
        return Workspace(root=self.folder / "ws")

    def build(self) -> BuildRun:
        blueprint = load_blueprint(self.folder / "blueprint.yaml")
        return run_build(blueprint, self.workspace, folder=self.folder)

    def records(self) -> set[str]:
        return {path.name for path in self.workspace.steps.glob("*.json")}


def make_place(folder: Path) -> Place:
    folder.mkdir()
    (folder / "blueprint.yaml").write_text(BLUEPRINT)
    (folder / "prompts.txt").write_text("One?\nTwo?\n")
    (folder / "texts.txt").write_text(TEXT)
    lines = [
        f'{{"prompt": "word {number}", "completion": "{"ab"[number % 2]}"}}'
        for number in range(24)
    ]
    (folder / "examples.jsonl").write_text("\n".join(lines) + "\n")
    model = write_tiny_llama(folder / "tiny.gguf", 4, layers=4, vocabulary=384)
    place = Place(folder)
    import_model(str(model), place.workspace, name="tiny")
    return place


def kill_while(place: Place, moment: str) -> None:
    """Run a build and kill it as soon as it does what `moment` names."""
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(place.folder / "blueprint.yaml")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        if not any(moment in line for line in process.stdout):
            pytest.fail(f"the build ended before {moment}: {process.communicate()[1]}")
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.communicate(timeout=60)


def test_killed_at_three_levers_a_build_ends_as_if_it_never_was(
    tmp_path: Path,
) -> None:
    place = make_place(tmp_path / "killed")
    known: set[str] = set()
    for moment in ("fine-tune", "slim: distill", "sensitivity"):
        kill_while(place, moment)
        assert known <= place.records(), f"{moment}: a finished step is gone"
        known = place.records()
    assert known, "nothing was finished before the last kill"
    went_on = place.build()
    assert len(went_on.steps) - went_on.executed >= len(known)

    whole = make_place(tmp_path / "whole").build()
    assert [s.quantization for s in went_on.result.selection] == [
        s.quantization for s in whole.result.selection
    ]
    ours, theirs = (
        {c.label: c.digest for c in run.result.candidates} for run in (went_on, whole)
    )
    assert ours == theirs
    assert {"Q8_0", "Q4_0", "slim/Q4_0"} < set(ours)
    assert any(label.startswith("slim/MIXED-") for label in ours)
    assert not list((place.workspace.steps / ".state").iterdir())
