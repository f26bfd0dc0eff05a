"""What a build takes: wall and CPU time and memory, cold and warm; quantizing beside a peer.

    python bench/build_time.py [--rounds 3] [--part quantize|build|change]
        [--peer PYTHON] [--candidates Q8_0,Q4_K_M,Q4_0] [--bases plain,calibrated]
        [--json FILE]

Quantize: SmolLM2-135M from 16 bit, ours and llama.cpp's `llama_model_quantize` in turn,
each in a new process, one thread. The peer needs an interpreter that has cyllama; without
``--peer`` its rows are missing. Equal tensors are asserted, byte by byte.

Build: `run_build` of the blueprint that `slmops init` writes, in a process of its own: in
a workspace that holds only the imported model (cold), then again (warm, which must
compute nothing). There is no peer for a whole build. CPU time includes all children;
"parent" is the peak memory of the process that runs the build, "largest" that of the
largest child.

Change: six candidates for the three classes of `slmops init`. Cold once a round; then one
key of the blueprint is changed, always from the same blueprint and in the same workspace,
and built again: `changes` says which and how. `of cold` is that build's share of the cold
one's time. Builds without a recipe and with one are two tables: ``--bases``.
"""

import hashlib
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from changes import BASES, Changes
from measure import Column, options, peak_mib, print_table, shown, spread, write_json
from model import import_smollm2

from slmops.domain.blueprint import Blueprint
from slmops.domain.release import Estimate
from slmops.registry.workspace import Workspace
from slmops.wire import codec
from slmops.workshop.blueprints import load_blueprint, write_blueprint
from slmops.workshop.gguf_file import read_header
from slmops.workshop.mixes import find_mix
from slmops.workshop.models import reference_path
from slmops.workshop.pipeline import run_build

KINDS = ("Q8_0", "Q4_K_M", "Q4_0", "Q2_K")
_OURS = """
import sys
from pathlib import Path
from slmops.workshop.quantize import quantize_gguf
reference, target, kind = sys.argv[1:]
with Path(target).open("wb") as sink:
    quantize_gguf(Path(reference), kind, sink)
print(Path("/proc/self/status").read_text())
"""
_KIB_PER_MIB = 1024
_STATUS = Path("/proc/self/status")
_WORKSPACE = "workspace"


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """Of one process and its children."""

    wall_s: float
    """Start to end."""
    cpu_s: float
    """User and system time."""
    peak_mib: float
    """Peak memory of the process."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildCost:
    """Of one build, as its own process tells."""

    wall_s: float
    """Of `run_build`."""
    cpu_s: float
    """User and system time, children included."""
    parent_mib: float
    """Peak memory of the building process."""
    largest_mib: float
    """Peak memory of its largest child; 0 without children."""
    executed: int
    """Steps computed."""
    steps: int
    """Steps in all."""
    stages: dict[str, float]
    """Stage → wall time, s."""
    computed: dict[str, int]
    """Kind of step → how many were computed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizeRow:
    """One quantization by one program."""

    kind: str
    """Quantization."""
    by: str
    """Program."""
    wall_s: Estimate
    """Median with minimum and maximum."""
    cpu_s: Estimate
    """The same, CPU time."""
    peak_mib: float
    """Largest of all runs."""


def compare_quantizers(rounds: int, peer: str | None) -> list[QuantizeRow]:
    """Quantize every kind with both programs in turn."""
    costs: dict[tuple[str, str], list[Cost]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        workspace, record = import_smollm2(folder / "models")
        reference = reference_path(workspace, record)
        for _ in range(rounds):
            for kind in KINDS:
                made = folder / "ours.gguf", folder / "peer.gguf"
                ours = ["-c", _OURS, str(reference), str(made[0]), kind]
                cost = _run([sys.executable, *ours])
                costs.setdefault((kind, "slmops"), []).append(cost)
                if peer is None:
                    continue
                script = str(Path(__file__).parent / "llama_quantize.py")
                file_type = str(find_mix(kind).file_type)
                theirs = [script, str(reference), str(made[1]), file_type]
                cost = _run([peer, *theirs])
                costs.setdefault((kind, "llama.cpp"), []).append(cost)
                assert _tensors(made[0]) == _tensors(made[1]), f"{kind} differs"
    return [
        QuantizeRow(
            kind=kind,
            by=by,
            wall_s=spread([cost.wall_s for cost in found]),
            cpu_s=spread([cost.cpu_s for cost in found]),
            peak_mib=max(cost.peak_mib for cost in found),
        )
        for (kind, by), found in costs.items()
    ]


def _run(command: Sequence[str]) -> Cost:
    begun = time.perf_counter()
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
    )
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    wall = time.perf_counter() - begun
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, command
    return Cost(
        wall_s=wall,
        cpu_s=used.ru_utime + used.ru_stime,
        peak_mib=peak_mib(said),
    )


def _tensors(path: Path) -> dict[str, tuple[str, str]]:
    """Return name → type and digest of every tensor."""
    found = {}
    with path.open("rb") as file:
        for tensor in read_header(path).tensors:
            file.seek(tensor.offset)
            digest = hashlib.sha256(file.read(tensor.bytes)).hexdigest()
            found[tensor.name] = (tensor.kind, digest)
    return found


def time_builds(rounds: int, candidates: str | None) -> dict[str, list[BuildCost]]:
    """Build in fresh workspaces, each time once more when all is known."""
    costs: dict[str, list[BuildCost]] = {"cold": [], "warm": []}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            blueprint = _first_blueprint(folder)
            if candidates is not None:
                kinds = tuple(candidates.split(","))
                blueprint = replace(blueprint, candidates=kinds)
            for run in ("cold", "warm"):
                costs[run].append(_build_apart(folder, blueprint))
    assert not any(cost.executed for cost in costs["warm"]), "a warm build computed"
    return costs


def time_changes(rounds: int, change: Changes) -> dict[str, list[BuildCost]]:
    """Build cold, then after each change of one key, in the same workspace."""
    costs: dict[str, list[BuildCost]] = {}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for run, blueprint in change(_first_blueprint(folder), folder).items():
                cost = _build_apart(folder, blueprint)
                print(run, cost, file=sys.stderr, flush=True)
                costs.setdefault(run, []).append(cost)
    assert not any(cost.executed for cost in costs["nothing"]), "a warm build computed"
    return costs


def _first_blueprint(folder: Path) -> Blueprint:
    """Import the model, and return the blueprint that `slmops init` writes for it."""
    _, record = import_smollm2(folder / _WORKSPACE)
    path, _ = write_blueprint(folder, record.name)
    return load_blueprint(path)


def _build_apart(folder: Path, blueprint: Blueprint) -> BuildCost:
    """Build in a process of its own."""
    path = folder / "blueprint.json"
    path.write_bytes(codec.encode_json(blueprint))
    command = [sys.executable, __file__, "--build", str(path)]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return codec.decode_json(said.stdout, BuildCost, where="build")


def build_once(path: Path) -> BuildCost:
    """Build in this process and tell what it took."""
    blueprint = load_blueprint(path)
    workspace = Workspace(root=path.parent / _WORKSPACE)
    begun = time.perf_counter()
    built = run_build(blueprint, workspace, folder=path.parent)
    wall = time.perf_counter() - begun
    own = resource.getrusage(resource.RUSAGE_SELF)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = (own.ru_utime, own.ru_stime, children.ru_utime, children.ru_stime)
    return BuildCost(
        wall_s=wall,
        cpu_s=sum(used),
        parent_mib=peak_mib(_STATUS.read_text()),
        largest_mib=children.ru_maxrss / _KIB_PER_MIB,
        executed=built.executed,
        steps=len(built.steps),
        stages=built.stages,
        computed=dict(Counter(step.kind for step in built.steps if not step.reused)),
    )


def _show_quantizers(rows: Sequence[QuantizeRow]) -> None:
    print_table(
        (
            Column(title="quantize", width=10),
            Column(title="by", width=10),
            Column(title="wall s", width=18),
            Column(title="CPU s", width=18),
            Column(title="peak MiB", width=8),
        ),
        [
            (
                row.kind,
                row.by,
                shown(row.wall_s, 2),
                shown(row.cpu_s, 2),
                f"{row.peak_mib:.0f}",
            )
            for row in rows
        ],
    )


def _show_builds(costs: dict[str, list[BuildCost]]) -> None:
    cold = next(iter(costs.values()))
    print_table(
        (
            Column(title="build", width=20),
            Column(title="steps", width=9),
            Column(title="wall s", width=22),
            Column(title="CPU s", width=22),
            Column(title="parent MiB", width=10),
            Column(title="largest MiB", width=11),
            Column(title="wall of cold", width=12),
            Column(title="CPU of cold", width=11),
        ),
        [
            (
                name,
                f"{runs[0].executed} of {runs[0].steps}",
                shown(spread([run.wall_s for run in runs])),
                shown(spread([run.cpu_s for run in runs])),
                f"{max(run.parent_mib for run in runs):.0f}",
                f"{max(run.largest_mib for run in runs):.0f}",
                *_of_cold(runs, cold),
            )
            for name, runs in costs.items()
        ],
    )
    for name, runs in costs.items():
        stages = ", ".join(f"{stage} {s:g}" for stage, s in runs[0].stages.items())
        made = ", ".join(f"{n} {kind}" for kind, n in runs[0].computed.items())
        print(f"{name}: computed {made or 'nothing'}; wall s: {stages}")


def _of_cold(runs: Sequence[BuildCost], cold: Sequence[BuildCost]) -> tuple[str, str]:
    """Return medians of the ratios of each round: wall and CPU time."""
    pairs = list(zip(runs, cold, strict=True))
    wall = statistics.median(run.wall_s / whole.wall_s for run, whole in pairs)
    cpu = statistics.median(run.cpu_s / whole.cpu_s for run, whole in pairs)
    return f"{wall:.3f}", f"{cpu:.3f}"


def main() -> None:
    """Measure, print, write; or be the process that is measured."""
    parser = options(__doc__, rounds=3)
    parser.add_argument("--part", choices=("quantize", "build", "change"))
    parser.add_argument("--peer", help="interpreter that has cyllama")
    parser.add_argument("--candidates", help="build these instead (part build)")
    parser.add_argument("--bases", default=",".join(BASES), help="of part change")
    parser.add_argument("--build", type=Path, metavar="BLUEPRINT")
    chosen = parser.parse_args()
    if chosen.build is not None:
        print(codec.encode_json(build_once(chosen.build)).decode())
        return
    parts = ("quantize", "build", "change") if chosen.part is None else (chosen.part,)
    results: dict[str, object] = {}
    builds: dict[str, dict[str, list[BuildCost]]] = {}
    if "quantize" in parts:
        quantizers = compare_quantizers(chosen.rounds, chosen.peer)
        _show_quantizers(quantizers)
        results["quantize"] = quantizers
    if "build" in parts:
        builds["build"] = time_builds(chosen.rounds, chosen.candidates)
    for base in chosen.bases.split(",") if "change" in parts else ():
        builds[f"change {base}"] = time_changes(chosen.rounds, BASES[base])
    for costs in builds.values():
        _show_builds(costs)
    write_json(chosen.json, {**results, **builds})


if __name__ == "__main__":
    main()
