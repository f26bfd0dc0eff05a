"""A whole build beside Olive making one model: time, memory, bytes and what it is worth.

    python bench/olive_peer.py --olive ENVIRONMENT [--rounds 1] [--candidates Q8_0,…]
        [--json FILE]

SmolLM2-135M-Instruct as a Hugging Face checkpoint, from which both begin. Ours: `slmops
model import` and `slmops build` of the blueprint that `slmops init` writes, with six
candidates: quantized, scored, timed, chosen for three classes, golden prompts asked.
Olive: `olive auto-opt` to 4 bits (its model builder, for onnxruntime-genai). In turn, each
in new processes, a new folder and a new cache; who is first changes.

Olive measures quality by lm-eval, or by perplexity on a data set; both fetch data, and
neither divergence. So its model is scored here, by onnxruntime on the very windows that
the build scored its candidates on, against the same reference: the model in 16 bits, in
llama.cpp. Making and scoring are rows of their own. Budgets of time are loosened, so that
a busy machine refuses nothing.

CPU time includes children that ended; "memory" is the largest sum over all processes of
a tree at one moment (PSS, looked at twice a second).

Olive's environment:

    python3 -m venv /tmp/olive && /tmp/olive/bin/pip install torch==2.13.0
    /tmp/olive/bin/pip install olive-ai==0.13.0 'transformers==4.57.*' \
        onnxruntime==1.32.0 onnxruntime-genai==0.12.2
"""

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from changes import KINDS
from measure import (
    Column,
    children_of,
    memory_of,
    options,
    print_table,
    shown,
    spread,
    write_json,
)
from model import import_smollm2

from slmops.domain.ids import Digest
from slmops.domain.release import Fidelity
from slmops.registry.blobs import BlobStore
from slmops.registry.workspace import Workspace
from slmops.workshop.blueprints import write_blueprint
from slmops.workshop.build_result import BuildResult
from slmops.workshop.builds import load_build
from slmops.workshop.evaluate import fidelity_of
from slmops.workshop.hf_export import export_checkpoint
from slmops.workshop.jobs.job import unheard
from slmops.workshop.models import reference_path
from slmops.workshop.score_file import ReferenceScores, load_scores
from slmops.workshop.score_job import SCORES, candidate_scores

_LOOK_S = 0.5
_SHOWN = 2000
_LOOSE = {
    "first_token_ms: 2000": "first_token_ms: 60000",
    "decode_tokens_per_s: 4 ": "decode_tokens_per_s: 0.1 ",
}
_BUILD, _MAKE, _SCORE = "slmops build", "Olive: make", "Olive: score"
_NAME = "checkpoint"
_NO_TEXT = Digest("sha256:" + "0" * 64)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """Of one or more commands, one after the other."""

    wall_s: float
    """Start to end."""
    cpu_s: float
    """User and system time, children included."""
    peak_mib: float
    """Largest sum of PSS over the tree of processes."""

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            wall_s=self.wall_s + other.wall_s,
            cpu_s=self.cpu_s + other.cpu_s,
            peak_mib=max(self.peak_mib, other.peak_mib),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """One model, by either."""

    name: str
    """What made it, and how."""
    mb: float
    """Weights and graph, 10**6 bytes."""
    fidelity: Fidelity
    """Against the model in 16 bits."""
    classes: tuple[str, ...]
    """It was chosen for."""


@dataclass(kw_only=True, slots=True)
class Scored:
    """A scorer of what another program has computed already."""

    logits_of: Mapping[bytes, npt.NDArray[np.float32]]
    vocabulary: int

    def logits(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """Return (tokens, vocabulary)."""
        return self.logits_of[np.asarray(tokens, np.int32).tobytes()]

    def tokenize(self, text: str) -> list[int]:
        """Not needed."""
        raise NotImplementedError

    def piece(self, token: int) -> bytes:
        """Not needed."""
        raise NotImplementedError

    def close(self) -> None:
        """Nothing is held."""


def build(checkpoint: Path, folder: Path, candidates: str) -> tuple[Cost, BuildResult]:
    """Import and build."""
    workspace = folder / "workspace"
    blueprint, _ = write_blueprint(folder, _NAME)
    # Limits on time would let a busy machine refuse what is to be measured.
    text = blueprint.read_text("utf-8")
    for limit, loose in _LOOSE.items():
        assert limit in text, limit
        text = text.replace(limit, loose)
    blueprint.write_text(text, encoding="utf-8")
    slmops = [sys.executable, "-m", "slmops", "--workspace", str(workspace)]
    cost = _run([*slmops, "model", "import", str(checkpoint), "--name", _NAME], folder)
    command = [*slmops, "build", str(blueprint), "--candidates", candidates]
    cost += _run([*command, "--output", str(folder / "page")], folder)
    return cost, load_build(Workspace(root=workspace))


def make(olive: Path, checkpoint: Path, folder: Path) -> Cost:
    """Let Olive make a model of 4 bits in ``folder/made``."""
    command = [str(olive / "bin" / "olive"), "auto-opt", "-m", str(checkpoint)]
    command += ["--device", "cpu", "--provider", "CPUExecutionProvider"]
    command += ["--use_ort_genai", "--use_model_builder", "--precision", "int4"]
    return _run([*command, "-o", "made", "--disable_telemetry"], folder)


def score(
    olive: Path, folder: Path, reference: ReferenceScores
) -> tuple[Cost, Fidelity]:
    """Score the model in ``folder/made`` on the reference's windows."""
    windows, logits = folder / "windows.npy", folder / "logits.npy"
    np.save(windows, reference.tokens)
    script = Path(__file__).with_name("olive_score.py")
    command = [str(olive / "bin" / "python"), str(script), str(folder / "made")]
    cost = _run([*command, str(windows), str(logits)], folder)
    found = np.load(logits, mmap_mode="r")
    pairs = zip(reference.tokens, found, strict=True)
    scorer = Scored(
        logits_of={np.asarray(w, np.int32).tobytes(): rows for w, rows in pairs},
        vocabulary=found.shape[2],
    )
    scores = candidate_scores(scorer, reference, unheard)
    return cost, fidelity_of(reference, scores, _NO_TEXT)


def reference_of(result: BuildResult, workspace: Path) -> ReferenceScores:
    """Return what the build's candidates were compared with."""
    text = result.candidates[0].card.fidelity.text_digest
    (record,) = (
        record
        for record in result.provenance
        if record.step.kind == "score reference" and text in record.step.inputs.values()
    )
    blobs = BlobStore(Workspace(root=workspace).blobs)
    return load_scores(blobs.path(record.outputs[SCORES]), ReferenceScores)


def compare(
    olive: Path, rounds: int, candidates: str
) -> tuple[dict[str, list[Cost]], list[Made]]:
    """Let both work in turn; models are those of the last round."""
    costs: dict[str, list[Cost]] = {_BUILD: [], _MAKE: [], _SCORE: []}
    models: list[Made] = []
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        workspace, record = import_smollm2(root / "source")
        checkpoint = root / "hf"
        export_checkpoint(reference_path(workspace, record), checkpoint)
        for turn in range(rounds):
            ours, theirs = root / f"ours-{turn}", root / f"olive-{turn}"
            ours.mkdir()
            theirs.mkdir()
            if turn % 2:
                costs[_MAKE].append(make(olive, checkpoint, theirs))
            cost, result = build(checkpoint, ours, candidates)
            costs[_BUILD].append(cost)
            if not turn % 2:
                costs[_MAKE].append(make(olive, checkpoint, theirs))
            reference = reference_of(result, ours / "workspace")
            cost, fidelity = score(olive, theirs, reference)
            costs[_SCORE].append(cost)
            files = (theirs / "made").glob("model.onnx*")
            mb = sum(path.stat().st_size for path in files) / 1e6
            peer = Made(name="Olive int4", mb=mb, fidelity=fidelity, classes=())
            models = [*_made(result), peer]
    return costs, models


def _made(result: BuildResult) -> list[Made]:
    return [
        Made(
            name=candidate.label,
            mb=candidate.card.bytes / 1e6,
            fidelity=candidate.card.fidelity,
            classes=tuple(
                chosen.device_class
                for chosen in result.selection
                if chosen.digest == candidate.digest
            ),
        )
        for candidate in result.candidates
    ]


def _run(command: Sequence[str], folder: Path) -> Cost:
    begun = time.perf_counter()
    log = folder / "log.txt"
    with log.open("ab") as said:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdout=said,
            stderr=said,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
    ended, peaks = threading.Event(), [0.0]
    watcher = threading.Thread(target=_watch, args=(process.pid, ended, peaks))
    watcher.start()
    _, status, used = os.wait4(process.pid, 0)
    wall = time.perf_counter() - begun
    process.returncode = os.waitstatus_to_exitcode(status)
    ended.set()
    watcher.join()
    assert process.returncode == 0, f"{command}: {log.read_text()[-_SHOWN:]}"
    print(*command[1:5], f"{wall:.1f} s", file=sys.stderr, flush=True)
    return Cost(wall_s=wall, cpu_s=used.ru_utime + used.ru_stime, peak_mib=max(peaks))


def _watch(pid: int, ended: threading.Event, peaks: list[float]) -> None:
    while not ended.wait(_LOOK_S):
        peaks.append(_tree_mib(pid))


def _tree_mib(pid: int) -> float:
    try:
        own = memory_of(pid).pss_mib
        return own + sum(_tree_mib(child) for child in children_of(pid))
    except (OSError, KeyError, IndexError):
        return 0.0  # it has just ended


def show(costs: Mapping[str, Sequence[Cost]], models: Sequence[Made]) -> None:
    """Print both tables."""
    print_table(
        [
            Column(title="commands", width=14),
            Column(title="wall s", width=22),
            Column(title="CPU s", width=22),
            Column(title="memory MiB", width=10),
        ],
        [
            [
                name,
                shown(spread([cost.wall_s for cost in found])),
                shown(spread([cost.cpu_s for cost in found])),
                f"{max(cost.peak_mib for cost in found):.0f}",
            ]
            for name, found in costs.items()
        ],
    )
    print()
    print_table(
        [
            Column(title="model", width=12),
            Column(title="MB", width=6),
            Column(title="mean KLD", width=22),
            Column(title="same top-1", width=10),
            Column(title="chosen for", width=24),
        ],
        [
            [
                each.name,
                f"{each.mb:.1f}",
                shown(each.fidelity.mean_kld, 4),
                f"{each.fidelity.same_top1.value:.3f}",
                ", ".join(each.classes),
            ]
            for each in models
        ],
    )


def main() -> None:
    """Measure, print, write."""
    parser = options(__doc__, rounds=1)
    parser.add_argument("--olive", type=Path, required=True, metavar="ENVIRONMENT")
    parser.add_argument("--candidates", default=",".join(KINDS))
    chosen = parser.parse_args()
    olive = chosen.olive.absolute()
    costs, models = compare(olive, chosen.rounds, chosen.candidates)
    show(costs, models)
    write_json(chosen.json, {"costs": costs, "models": models})


if __name__ == "__main__":
    main()
