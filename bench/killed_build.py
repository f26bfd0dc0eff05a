"""A build over the levers on SmolLM2-135M, killed at three of them, against an undisturbed one.

    python bench/killed_build.py [--work FOLDER] [--after 4] [--json FILE]

The recipe trims the vocabulary, prunes blocks, distils, measures sensitivity and makes a
mix, with numbers so small that the whole takes a few minutes of CPU; what comes out is no
good model. The build is a real process; its whole group gets SIGKILL some seconds after it
began each of three long steps. Then it is run to its end, and the same blueprint once more
in a fresh workspace. Fails unless both give the same digests and choose the same, no
record of a finished step was written again, and nothing half-done is left.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

from measure import Column, options, print_table, write_json
from model import import_smollm2

MOMENTS = ("statistics", "distill", "sensitivity")
_BLUEPRINT = """
name: killed
model: {model}
classes: [{{name: any, context_tokens: 256}}]
candidates: [Q4_0]
recipe:
  calibration: {{text: builtin, tokens: 256, rounding: compensated}}
  prepare:
    - trim_vocabulary: {{text: texts.txt, tokens: 4096}}
    - prune_depth: {{layers: 8, method: influence}}
    - distill: {{text: texts.txt, steps: 6}}
  mixed: {{megabytes: [20], tokens: 128}}
quality: {{max_kld_times_8bit: 1000000000, min_same_top1: 0}}
evaluation: {{max_tokens: 128, window_tokens: 64, speed_runs: 3}}
golden: {{prompts: prompts.txt, answer_tokens: 2}}
"""
_DRIVER = """
import json, sys
from pathlib import Path
from slmops.registry.workspace import Workspace
from slmops.workshop.blueprints import load_blueprint
from slmops.workshop.pipeline import run_build

path = Path(sys.argv[1])
run = run_build(
    load_blueprint(path),
    Workspace(root=path.parent),
    folder=path.parent,
    progress=lambda what, done, total: print(f"{done:.2f}/{total:.0f} {what}", flush=True),
)
print(json.dumps({
    "steps": len(run.steps),
    "executed": run.executed,
    "digests": {each.label: str(each.digest) for each in run.result.candidates},
    "chosen": [str(each.quantization) for each in run.result.selection],
}))
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """What a build that came to its end said."""

    steps: int
    executed: int
    """Of them computed by this run, not found."""
    digests: dict[str, str]
    """Candidate → artefact."""
    chosen: list[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One run."""

    what: str
    wall_s: float
    records: int
    """Finished steps on disk behind it."""


class Place:
    """One workspace with its blueprint, and builds in processes of their own."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.records: dict[str, int] = {}
        _, record = import_smollm2(folder)
        (folder / "blueprint.yaml").write_text(_BLUEPRINT.format(model=record.name))
        (folder / "prompts.txt").write_text("Where is my card?\nHow are you?\n")
        (folder / "texts.txt").write_text("The cat sat on a mat and looked. " * 400)

    def start(self) -> subprocess.Popen[str]:
        """Start a build as the leader of a process group."""
        return subprocess.Popen(
            [sys.executable, "-c", _DRIVER, str(self.folder / "blueprint.yaml")],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def kill_in(self, moment: str, after_s: float) -> None:
        """Run a build and kill its group while it does what `moment` names."""
        process = self.start()
        try:
            assert process.stdout is not None
            if not any(moment in line for line in process.stdout):
                raise SystemExit(f"the build ended before {moment}")
            time.sleep(after_s)
            if process.poll() is not None:
                raise SystemExit(
                    f"{moment} was over in {after_s} s: nothing was killed"
                )
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        self.check_records()

    def finish(self) -> Ended:
        """Run a build to its end."""
        process = self.start()
        output, _ = process.communicate()
        if process.returncode != 0:
            raise SystemExit(f"the build failed with {process.returncode}")
        self.check_records()
        return Ended(**json.loads(output.splitlines()[-1]))

    def check_records(self) -> None:
        """Compare finished steps with those known; a step done again is written again."""
        found = {
            path.name: path.stat().st_mtime_ns
            for path in (self.folder / "steps").glob("*.json")
        }
        again = [name for name, at in self.records.items() if found.get(name) != at]
        if again:
            raise SystemExit(f"finished steps were lost or run again: {again}")
        self.records = found


def main() -> None:
    """Kill, go on, compare."""
    parser = options(__doc__, rounds=1)
    parser.add_argument("--work", type=Path, help="where to keep the workspaces")
    parser.add_argument("--after", type=float, default=4.0, help="seconds into a step")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = compared(chosen.work or Path(folder), chosen)
    print_table(
        [
            Column(title="run", width=26),
            Column(title="wall s", width=8),
            Column(title="finished steps", width=14),
        ],
        [[row.what, f"{row.wall_s:.0f}", str(row.records)] for row in rows],
    )
    write_json(chosen.json, rows)


def compared(folder: Path, chosen: Namespace) -> list[Row]:
    """Run all builds and compare the two ends."""
    killed, whole = Place(folder / "killed"), Place(folder / "whole")
    rows = []
    for moment in MOMENTS:
        began = time.perf_counter()
        killed.kill_in(moment, chosen.after)
        rows.append(_row(f"killed in {moment}", began, killed))
        print(rows[-1], flush=True)
    known, began = len(killed.records), time.perf_counter()
    ours = killed.finish()
    rows.append(_row(f"went on: {ours.executed} of {ours.steps} done", began, killed))
    print(rows[-1], flush=True)
    began = time.perf_counter()
    theirs = whole.finish()
    rows.append(_row(f"undisturbed: {theirs.steps} done", began, whole))
    if ours.executed != ours.steps - known:
        raise SystemExit(f"{known} steps were finished, yet {ours} was executed")
    _same("digests", ours.digests, theirs.digests)
    _same("choice", ours.chosen, theirs.chosen)
    left = list((killed.folder / "steps" / ".state").iterdir())
    if left:
        raise SystemExit(f"half-done work was left behind: {left}")
    print(f"equal: {', '.join(ours.digests)}; chosen {', '.join(ours.chosen)}")
    return rows


def _row(what: str, began: float, place: Place) -> Row:
    wall_s = time.perf_counter() - began
    return Row(what=what, wall_s=wall_s, records=len(place.records))


def _same(what: str, ours: object, theirs: object) -> None:
    if ours != theirs:
        raise SystemExit(f"{what} differ: killed {ours}, undisturbed {theirs}")


if __name__ == "__main__":
    main()
