"""What structural levers cost and save, before any recovery training.

    python bench/structure.py --corpus TEXT [--parts depth,width,vocabulary,sparsity]
        [--positions 576] [--rounds 1] [--model GGUF] [--state FOLDER] [--json FILE]

SmolLM2-135M-Instruct, or another model. KL divergence, top-1 agreement and perplexity
are of the 16-bit model against the whole 16-bit model, on the evaluation text that
builds use. Size and speed are of its Q8_0, the control of every build: bytes are exact,
speed is decoded tokens per CPU second of the worker, one thread, a 44-token answer less
a 4-token one; `--rounds 0` leaves it out. Perplexity is per token of the whole model, so rows compare.

`--corpus` is the text that tokens are counted in and statistics are gathered on. Depth
is measured on the calibration text that builds use. Sparse rows have the size of their
Q8_0 after zstd -3 (or zlib), as a transport would carry it.
"""

import shutil
import subprocess
import tempfile
import zlib
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from measure import Column, cpu_ms, options, print_table, write_json
from model import import_source

from slmops.demo.source_model import fetch_smollm2
from slmops.domain.blueprint import EvaluationPlan
from slmops.domain.recipe import CalibrationPlan
from slmops.runtimes.address import open_client
from slmops.runtimes.base import WorkerSettings
from slmops.runtimes.speed import SpeedPlan, run_once
from slmops.runtimes.worker import start_worker
from slmops.wire.codec import decode_json
from slmops.workshop.gguf_file import read_header
from slmops.workshop.jobs.job import Job, JobFunction, Value
from slmops.workshop.models import reference_path
from slmops.workshop.precision.collect import collect_statistics
from slmops.workshop.quantize import predict_quantized, quantize_gguf
from slmops.workshop.score_file import CandidateScores, load_scores
from slmops.workshop.score_job import score_candidate, score_reference
from slmops.workshop.structure.depth import prune_depth, remove_blocks
from slmops.workshop.structure.measured_depth import Removals
from slmops.workshop.structure.model_edit import read_source
from slmops.workshop.structure.sparsity import METHODS, PATTERNS, sparsify
from slmops.workshop.structure.vocabulary import trim_vocabulary
from slmops.workshop.structure.width import prune_width
from slmops.workshop.text_sources import calibration_text, evaluation_text

PARTS = ("depth", "width", "vocabulary", "sparsity")
_LAYERS = (28, 26, 24, 20)
_WIDTHS = ((1280, 0, 0), (1024, 0, 0), (0, 6, 2))
_TOKENS = (32768, 16384, 8192)
_SHORT, _LONG = 4, 44

Made = Mapping[str, Path]


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One model."""

    name: str
    """What was done."""
    parameters: int
    """Weights, millions, of which zeros are counted too."""
    q8_bytes: int
    """Size of its Q8_0."""
    compressed_bytes: int | None
    """The same file compressed; None where it was not asked."""
    mean_kld: float
    """Nats."""
    same_top1: float
    """Share of positions."""
    perplexity: float
    """Per token of the whole model."""
    decode_per_cpu_s: float | None
    """Tokens; None without rounds."""


class Bench:
    """One model, its reference scores, and jobs run in this process."""

    def __init__(self, folder: Path, chosen: Namespace) -> None:
        self.folder = folder
        self.chosen = chosen
        source = chosen.model or fetch_smollm2()
        workspace, record = import_source(folder / "ws", source)
        self.model = reference_path(workspace, record)
        self.text = folder / "evaluation.txt"
        self.text.write_text(evaluation_text(EvaluationPlan(), folder))
        self.calibration = folder / "calibration.txt"
        self.calibration.write_text(calibration_text(CalibrationPlan(), folder))
        self._count = 0
        sizes: dict[str, Value] = {
            "runtime": "llamacpp",
            "window_tokens": 256,
            "max_tokens": chosen.positions,
        }
        inputs = {"artefact": self.model, "text": self.text}
        self.reference = self.run("reference", score_reference, inputs, **sizes)[
            "scores"
        ]

    def run(
        self, name: str, function: JobFunction, inputs: Made, **parameters: Value
    ) -> Made:
        """Run a job here; its state is kept if a folder for it was given."""
        self._count += 1
        output = self.folder / f"{self._count}"
        output.mkdir()
        state = (self.chosen.state or self.folder / "state") / name
        state.mkdir(parents=True, exist_ok=True)
        return function(
            Job(inputs=inputs, parameters=parameters, output=output, state=state)
        )

    def row(self, name: str, made: Made, *, compress: bool = False) -> Row:
        """Score, quantize and time a model."""
        inputs = {"artefact": made["model"], "reference": self.reference}
        if "token_map" in made:
            inputs["token_map"] = made["token_map"]
        scored = self.run("score", score_candidate, inputs, runtime="llamacpp")
        scores = load_scores(scored["scores"], CandidateScores)
        small = self.folder / "q8.gguf"
        found = predict_quantized(read_header(made["model"]), "Q8_0")
        if compress or self.chosen.rounds:
            with small.open("wb") as sink:
                quantize_gguf(made["model"], "Q8_0", sink)
        row = Row(
            name=name,
            parameters=found.parameters,
            q8_bytes=found.bytes,
            compressed_bytes=_compressed(small) if compress else None,
            mean_kld=float(scores.kld.mean()),
            same_top1=float(scores.same_top1.mean()),
            perplexity=float(np.exp(scores.nll.mean())),
            decode_per_cpu_s=_decode(small, self.chosen.rounds)
            if self.chosen.rounds
            else None,
        )
        if made["model"] != self.model:
            made["model"].unlink()
        return row


def depth(bench: Bench) -> Iterator[Row]:
    """Prune blocks: by measurement, whose shorter models are steps to the shortest."""
    yield bench.row("whole", {"model": bench.model})
    source = read_source(bench.model)
    inputs = {"model": bench.model, "text": bench.calibration}
    fewest = min(_LAYERS)
    made = bench.run("depth", prune_depth, inputs, layers=fewest, method="measured")
    removals = decode_json(made["removal"].read_bytes(), Removals, where="removal")
    print("removed, in order:", *removals.blocks, f"({removals.measurements} scored)")
    for layers in _LAYERS:
        gone = removals.blocks[: source.shape.layers - layers]
        path = remove_blocks(source, gone, bench.folder / f"depth-{layers}.gguf")
        yield bench.row(f"{layers} blocks, measured", {"model": path})
    statistics = _statistics(bench)
    for layers in _LAYERS[::2]:
        inputs = {"model": bench.model, "statistics": statistics}
        pruned = bench.run("influence", prune_depth, inputs, layers=layers)
        removals = decode_json(pruned["removal"].read_bytes(), Removals, where="")
        print(f"{layers} blocks, by influence without", *removals.blocks)
        yield bench.row(f"{layers} blocks, influence", pruned)


def width(bench: Bench) -> Iterator[Row]:
    """Prune channels and heads: by weights, by statistics, and refitted."""
    chosen = {
        "weights only": {"model": bench.model},
        "statistics": {"model": bench.model, "statistics": _statistics(bench)},
        "refitted": {"model": bench.model, "statistics": _statistics(bench)},
    }
    for feed_forward, heads, kv_heads in _WIDTHS:
        size = (
            f"{feed_forward} channels" if feed_forward else f"{heads}/{kv_heads} heads"
        )
        for how, inputs in chosen.items():
            if how == "weights only" and feed_forward != _WIDTHS[0][0]:
                continue
            made = bench.run(
                "width",
                prune_width,
                inputs,
                feed_forward=feed_forward,
                heads=heads,
                kv_heads=kv_heads,
                refit=how == "refitted",
            )
            yield bench.row(f"{size}, {how}", made)


def vocabulary(bench: Bench) -> Iterator[Row]:
    """Trim the vocabulary."""
    yield bench.row("whole", {"model": bench.model})
    for tokens in _TOKENS:
        inputs = {"model": bench.model, "text": bench.chosen.corpus}
        made = bench.run("vocabulary", trim_vocabulary, inputs, tokens=tokens)
        yield bench.row(f"{tokens} tokens", made)


def sparsity(bench: Bench) -> Iterator[Row]:
    """Set half of the weights to zero."""
    yield bench.row("whole", {"model": bench.model}, compress=True)
    statistics = _statistics(bench)
    for pattern in PATTERNS:
        for method in METHODS:
            inputs = {"model": bench.model, "statistics": statistics}
            made = bench.run(
                "sparsity",
                sparsify,
                inputs,
                method=method,
                pattern=pattern,
                sparsity=0.5,
            )
            yield bench.row(f"{pattern} 0.5, {method}", made, compress=True)


def _statistics(bench: Bench) -> Path:
    kept: Path = (bench.chosen.state or bench.folder) / "statistics.npz"
    if not kept.exists():
        made = bench.run(
            "statistics",
            collect_statistics,
            {"model": bench.model, "text": bench.chosen.corpus},
            tokens=bench.chosen.statistics_tokens,
            window_tokens=256,
            hessians=True,
        )
        shutil.move(made["statistics"], kept)
    return kept


def _decode(path: Path, rounds: int) -> float:
    settings = WorkerSettings(threads=1, context_tokens=256)
    speeds = []
    with (
        start_worker("llamacpp", path, settings) as worker,
        open_client(worker.address) as client,
    ):
        for _ in range(rounds):
            spent = [cpu_ms(worker.pid)]
            for tokens in (_SHORT, _LONG):
                run_once(client, SpeedPlan(prompt_tokens=16, answer_tokens=tokens))
                spent.append(cpu_ms(worker.pid))
            more_ms = (spent[2] - spent[1]) - (spent[1] - spent[0])
            speeds.append(1000 * (_LONG - _SHORT) / more_ms)
    return median(speeds)


def _compressed(path: Path) -> int:
    zstd = shutil.which("zstd")
    if zstd is None:
        return len(zlib.compress(path.read_bytes()))
    done = subprocess.run(
        [zstd, "-3", "-c", "-q", str(path)], check=True, capture_output=True
    )
    return len(done.stdout)


def _show(rows: list[Row]) -> None:
    columns = (
        Column(title="model", width=30),
        Column(title="M weights", width=9),
        Column(title="Q8_0 MB", width=7),
        Column(title="packed", width=7),
        Column(title="KL", width=7),
        Column(title="top-1", width=6),
        Column(title="ppl", width=8),
        Column(title="tok/CPU s", width=9),
    )
    cells = [
        (
            row.name,
            f"{row.parameters / 1e6:.1f}",
            f"{row.q8_bytes / 1e6:.1f}",
            f"{row.compressed_bytes / 1e6:.1f}" if row.compressed_bytes else "",
            f"{row.mean_kld:.4f}",
            f"{row.same_top1:.3f}",
            f"{row.perplexity:.1f}",
            f"{row.decode_per_cpu_s:.1f}" if row.decode_per_cpu_s else "",
        )
        for row in rows
    ]
    print_table(columns, cells)


def main() -> None:
    """Measure, print, write."""
    parser = options(__doc__, rounds=1)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--positions", type=int, default=576)
    parser.add_argument("--statistics-tokens", type=int, default=4096)
    parser.add_argument("--model", type=Path, help="GGUF; SmolLM2 by default")
    parser.add_argument("--state", type=Path, help="keep checkpoints here")
    chosen = parser.parse_args()
    makers: dict[str, Callable[[Bench], Iterator[Row]]] = {
        "depth": depth,
        "width": width,
        "vocabulary": vocabulary,
        "sparsity": sparsity,
    }
    results: dict[str, list[Row]] = {}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), chosen)
        for part in chosen.parts.split(","):
            results[part] = []
            for row in makers[part](bench):
                print(f"… {row.name}: KL {row.mean_kld:.4f}", flush=True)
                results[part].append(row)
            _show(results[part])
    write_json(chosen.json, results)


if __name__ == "__main__":
    main()
