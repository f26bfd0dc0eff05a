"""CPU time of asking a classification task by ranked labels, here and in another version.

    python bench/task_speed.py --examples intents.jsonl [--limit 40] [--rounds 1]
        [--types Q4_0,Q8_0] [--other FOLDER] [--json FILE]

SmolLM2-135M-Instruct, quantized, is asked the examples of the file as `slmops task ask`
asks: one thread, a child process each time, loads included. The same examples less all but
one are asked too, so that what an example costs is told from what starting costs. With
`--other`, the folder of another version's sources (`git worktree add OTHER COMMIT`), both are asked in
turn, and their answers and confidences are compared.
"""

import json
import os
import subprocess
import sys
import tempfile
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from measure import Column, options, print_table, write_json
from model import import_smollm2, quantized

_HERE = Path(__file__).parents[1]
_SYSTEM = "Classify the message of a bank customer. Answer with one of: {labels}."
_CHILD = """
import json, resource, sys
from pathlib import Path
from slmops.domain.tasks import TaskKind, TaskPlan
from slmops.workshop.tasks.run_here import ask_here

model, examples, limit, system = sys.argv[1:]
plan = TaskPlan(
    name="bench", kind=TaskKind.CLASSIFICATION, examples=str(Path(examples).absolute()),
    limit=int(limit), system=system,
)
found = ask_here(Path(model), plan)
used = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps({
    "cpu_s": sum(each.ru_utime + each.ru_stime for each in used),
    "answers": {each.line: [each.answer, each.confidence] for each in found.answers},
}))
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """One run."""

    cpu_s: float
    """User and system time of the process and its children."""
    answers: dict[str, tuple[str, float]]
    """Line → answer and its confidence."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One type of weights, one version."""

    type: str
    version: str
    cpu_s: float
    """Median over rounds, of all examples."""
    per_example_s: float
    """Without what starting costs."""
    ratio: float
    """Of `cpu_s` to this version's."""
    other_answers: int
    """Examples answered otherwise than by this version."""
    confidence_moved: float
    """Largest difference of a confidence from this version's."""


def main() -> None:
    """Ask, compare, print."""
    parser = options(__doc__, rounds=1)
    parser.add_argument("--examples", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=40)
    parser.add_argument("--types", default="Q4_0,Q8_0")
    parser.add_argument("--other", type=Path)
    parser.add_argument("--system", default=_SYSTEM)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        workspace, record = import_smollm2(Path(folder))
        rows = [
            row
            for kind in chosen.types.split(",")
            for row in compared(kind, quantized(workspace, record, kind), chosen)
        ]
    print_table(
        [
            Column(title="type", width=6),
            Column(title="version", width=8),
            Column(title="CPU s", width=8),
            Column(title="s/example", width=10),
            Column(title="ratio", width=6),
            Column(title="other answers", width=14),
            Column(title="confidence moved", width=17),
        ],
        [
            [
                row.type,
                row.version,
                f"{row.cpu_s:.1f}",
                f"{row.per_example_s:.3f}",
                f"{row.ratio:.2f}",
                str(row.other_answers),
                f"{row.confidence_moved:.4f}",
            ]
            for row in rows
        ],
    )
    write_json(chosen.json, rows)


def compared(kind: str, model: Path, chosen: Namespace) -> list[Row]:
    """Ask one model in all versions, in turn."""
    versions = {"this": _HERE} | ({"other": chosen.other} if chosen.other else {})
    runs: dict[str, list[Asked]] = {name: [] for name in versions}
    starts: dict[str, list[Asked]] = {name: [] for name in versions}
    for turn in range(chosen.rounds):
        names = list(versions)
        for name in names if turn % 2 == 0 else reversed(names):
            starts[name].append(ask(model, chosen, 1, versions[name]))
            runs[name].append(ask(model, chosen, chosen.limit, versions[name]))
    ours = runs["this"]
    return [
        Row(
            type=kind,
            version=name,
            cpu_s=median(run.cpu_s for run in found),
            per_example_s=median(
                (run.cpu_s - start.cpu_s) / (len(run.answers) - 1)
                for run, start in zip(found, starts[name], strict=True)
            ),
            ratio=median(
                run.cpu_s / mine.cpu_s for run, mine in zip(found, ours, strict=True)
            ),
            other_answers=sum(
                answer[0] != ours[0].answers[line][0]
                for line, answer in found[0].answers.items()
            ),
            confidence_moved=max(
                abs(answer[1] - ours[0].answers[line][1])
                for line, answer in found[0].answers.items()
            ),
        )
        for name, found in runs.items()
    ]


def ask(model: Path, chosen: Namespace, limit: int, version: Path) -> Asked:
    """Ask in a process of its own, with a version's sources."""
    words = [str(model), str(chosen.examples), str(limit), chosen.system]
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, *words],
        env={**os.environ, "PYTHONPATH": str((version / "src").absolute())},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    tree = json.loads(done.stdout.splitlines()[-1])
    answers = {line: (text, sure) for line, (text, sure) in tree["answers"].items()}
    return Asked(cpu_s=tree["cpu_s"], answers=answers)


if __name__ == "__main__":
    main()
