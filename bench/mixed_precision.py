"""What choosing every tensor's type by measurement is worth, at equal bytes.

    python bench/mixed_precision.py --text FILE [--folder FOLDER] [--json FILE]
        [--budgets-mb 88,92,98,105] [--rows knapsack,stock,…] [--positions 768]
        [--threads 1]

SmolLM2-135M-Instruct. The text is cut into three parts that share no line and no
twelve words, which is checked: 40 % for the importance matrix, 30 % for sensitivity, 30 %
for what the table shows. Every row but the stock ones is a mix of the same types under the
same budget, rounded with the same importance matrix; every file is scored as it is served,
from full logits, against the 16-bit model. Brackets are 95 % bounds.

The model's source has a Q4_1 grid in every block. Q5_1 with an importance matrix holds
that grid too, and Q4_K and Q5_K nearly: a fifteenth and a quarter of their usual error.
`knapsack` does without every type that a tensor's grid makes free (8-bit ones excepted),
so it is what holds for models without that past. Stock mixes are taken as they are, and
most of them have Q4_K in them; `likewise` is the knapsack with those types allowed again.
Stock mixes may be 0.6 % larger than the budget, so that Q2_K meets 88 MB and Q4_K_M 105.
Each stands at the smallest budget it meets, and counts for larger ones too.

`unmeasured` is the same knapsack over squared errors alone, without a forward pass: what
measuring adds. `compensated` has the types of `knapsack` and rounds with second moments.
With `--folder`, statistics and sensitivity are kept and reused.
"""

import argparse
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations, product
from pathlib import Path

import numpy as np
from measure import Column, print_table, write_json
from model import import_smollm2

from slmops.domain.release import Estimate
from slmops.runtimes.base import Scorer, WorkerSettings, load_runtime
from slmops.workshop.gguf_file import read_header
from slmops.workshop.jobs.job import Job, JobFunction, Value, unheard
from slmops.workshop.leakage.held_out import HeldOut, Source
from slmops.workshop.leakage.spans import Piece
from slmops.workshop.models import reference_path
from slmops.workshop.precision.assignment import (
    Assignment,
    Limits,
    assign,
    assign_greedily,
    assign_randomly,
    without_types,
)
from slmops.workshop.precision.collect import collect_statistics
from slmops.workshop.precision.compensated import Compensation
from slmops.workshop.precision.measure import run as measure_sensitivity
from slmops.workshop.precision.sensitivity import Sensitivity, load_sensitivity
from slmops.workshop.precision.statistics_file import Statistics, load_statistics
from slmops.workshop.quantize import predict_quantized, quantize_gguf
from slmops.workshop.score_file import ReferenceScores, cut_windows
from slmops.workshop.score_job import candidate_scores, reference_scores
from slmops.workshop.statistics import Blocks, make_blocks, mean_estimate

WINDOW_TOKENS = 256
CALIBRATION_TOKENS = 16_384
SENSITIVITY_POSITIONS = 384
TYPES = (
    *("Q2_K", "Q3_K", "Q4_0", "Q4_1", "IQ4_NL", "IQ4_XS"),
    *("Q4_K", "Q5_0", "Q5_1", "Q5_K", "Q6_K", "Q8_0"),
)
"""Without IQ3_S and IQ2_S, which take minutes to quantize and decode slowly."""
STOCK = (
    *("IQ2_M", "Q3_K_S", "IQ3_S", "Q2_K", "IQ3_M", "IQ4_XS", "IQ4_NL", "Q4_0"),
    *("Q3_K_M", "Q3_K_L", "Q4_K_S", "Q5_0", "Q4_K_M"),
)
"""Every mix of llama.cpp's that the workshop makes and 105 MB hold, but for Q4_1: the
source makes it free."""
STOCK_TYPES = frozenset({"Q4_K", "Q5_K"})
"""Nearly free on a Q4_1 grid, and part of stock mixes."""
ALLOWANCE = 1.006
ROWS = (
    "knapsack",
    "likewise",
    "stock",
    "compensated",
    "unmeasured",
    "random",
    "greedy",
)
_PARTS = {"calibration": (0.0, 0.4), "sensitivity": (0.4, 0.7), "evaluation": (0.7, 1)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One file, measured."""

    budget_mb: float
    """What it had to stay under, 10**6 bytes."""
    way: str
    """How its types were chosen."""
    name: str
    """Stock mix, or empty."""
    mb: float
    """What it takes."""
    predicted: float | None
    """Mean KL divergence predicted, nats."""
    kld: Estimate
    """Measured on the evaluation text."""
    top1: Estimate
    """Share of positions with the same most likely token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bench:
    """One model, what is known of it, and the text files are judged by."""

    folder: Path
    budgets_mb: tuple[float, ...]
    threads: int
    model: Path
    statistics: Statistics
    sensitivity: Sensitivity
    reference: ReferenceScores
    blocks: Blocks

    def rows(self, budget_mb: float, way: str) -> Iterator[Row]:
        """Make and score what one cell of the table asks for."""
        if way != "stock":
            fair = _with_types_of_stock if way == "likewise" else without_types
            mix = mix_of(way, fair(self.sensitivity), int(budget_mb * 1e6))
            yield self.scored(budget_mb, way, mix=mix)
            return
        for name in self.stock(budget_mb):
            yield self.scored(budget_mb, way, name=name)

    def stock(self, budget_mb: float) -> list[str]:
        """Return the stock mixes that meet a budget and no smaller one."""
        header = read_header(self.model)
        limit = budget_mb * 1e6 * ALLOWANCE
        below = [each for each in self.budgets_mb if each < budget_mb]
        above = max(below, default=0.0) * 1e6 * ALLOWANCE
        sizes = {
            name: predict_quantized(header, name, has_imatrix=True).bytes
            for name in STOCK
        }
        return [name for name, size in sizes.items() if above < size <= limit]

    def scored(
        self,
        budget_mb: float,
        way: str,
        *,
        name: str = "",
        mix: Assignment | None = None,
    ) -> Row:
        """Quantize one file and score it in the runtime."""
        path = self.folder / "candidate.gguf"
        compensated = way == "compensated"
        with path.open("w+b") as file:
            made = quantize_gguf(
                self.model,
                name or "MIXED",
                file,
                imatrix=self.statistics.importance,
                types=mix.types if mix else None,
                rounder=Compensation(statistics=self.statistics)
                if compensated
                else None,
            )
        assert mix is None or mix.bytes == path.stat().st_size
        scorer = _scorer(path, self.threads)
        scores = candidate_scores(scorer, self.reference, unheard)
        scorer.close()
        return Row(
            budget_mb=budget_mb,
            way=way,
            name=name,
            mb=made.bytes / 1e6,
            predicted=mix.predicted_kld if mix else None,
            kld=mean_estimate(scores.kld.astype(np.float64), self.blocks),
            top1=mean_estimate(scores.same_top1.astype(np.float64), self.blocks),
        )


def _with_types_of_stock(sensitivity: Sensitivity) -> Sensitivity:
    tensors = []
    for tensor in sensitivity.tensors:
        options = [
            replace(option, on_grid=option.on_grid and option.kind not in STOCK_TYPES)
            for option in tensor.options
        ]
        tensors.append(replace(tensor, options=tuple(options)))
    return without_types(replace(sensitivity, tensors=tuple(tensors)))


def mix_of(way: str, sensitivity: Sensitivity, file_bytes: int) -> Assignment:
    """Choose types in one of the ways."""
    if way == "greedy":
        return assign_greedily(sensitivity, file_bytes)
    if way == "random":
        return assign_randomly(sensitivity, file_bytes, seed=1)
    found = assign(
        by_error_alone(sensitivity) if way == "unmeasured" else sensitivity,
        Limits(file_bytes=file_bytes),
    )
    # Errors are no divergences: nothing is predicted from them.
    return replace(found, predicted_kld=0.0) if way == "unmeasured" else found


def by_error_alone(sensitivity: Sensitivity) -> Sensitivity:
    """Let every weight's relative error count alike."""
    tensors = []
    for tensor in sensitivity.tensors:
        weights = tensor.entry("F32").elements
        options = [replace(o, kld=o.error * weights / 1e9) for o in tensor.options]
        tensors.append(replace(tensor, options=tuple(options)))
    return replace(sensitivity, tensors=tuple(tensors))


def prepared(arguments: argparse.Namespace, folder: Path) -> Bench:
    """Import, calibrate, measure sensitivity and score the reference."""
    workspace, record = import_smollm2(folder / "workspace")
    model = reference_path(workspace, record)
    texts = _cut(arguments.text, folder)
    for one, other in combinations(texts, 2):
        _check_apart(texts[one], texts[other])
    moments = "compensated" in arguments.rows
    statistics = folder / ("moments" if moments else "importance") / "statistics.npz"
    if not statistics.exists():
        _run(
            collect_statistics,
            {"model": model, "text": texts["calibration"]},
            {
                "tokens": CALIBRATION_TOKENS,
                "window_tokens": WINDOW_TOKENS,
                "hessians": moments,
            },
            statistics.parent,
        )
    sensitivity = folder / "sensitivity" / "sensitivity.json"
    if not sensitivity.exists():
        _run(
            measure_sensitivity,
            {"model": model, "text": texts["sensitivity"], "statistics": statistics},
            {
                "tokens": SENSITIVITY_POSITIONS,
                "window_tokens": WINDOW_TOKENS,
                "types": TYPES,
            },
            sensitivity.parent,
        )
    scorer = _scorer(model, arguments.threads)
    tokens = scorer.tokenize(texts["evaluation"].read_text(encoding="utf-8"))
    windows = cut_windows(tokens, WINDOW_TOKENS, arguments.positions)
    reference = reference_scores(scorer, windows, unheard)
    scorer.close()
    per_window = len(reference.nll) // len(windows)
    return Bench(
        folder=folder,
        budgets_mb=tuple(arguments.budgets_mb),
        threads=arguments.threads,
        model=model,
        statistics=load_statistics(statistics),
        sensitivity=load_sensitivity(sensitivity),
        reference=reference,
        blocks=make_blocks(len(windows), per_window, seed=0),
    )


def show(rows: list[Row], sensitivity: Sensitivity) -> None:
    """Print the table, and how far predictions were off on their own text."""
    widths = {
        "budget MB": 9,
        "way": 12,
        "stock": 8,
        "MB": 6,
        "predicted": 9,
        "mean KLD": 22,
        "same top-1": 10,
    }
    print_table(
        [Column(title=title, width=width) for title, width in widths.items()],
        [
            [
                *(f"{row.budget_mb:g}", row.way, row.name, f"{row.mb:.1f}"),
                f"{row.predicted:.4f}" if row.predicted else "",
                f"{row.kld.value:.4f} ({row.kld.low:.4f}–{row.kld.high:.4f})",
                f"{row.top1.value:.3f}",
            ]
            for row in rows
        ],
    )
    print(f"\nwhole mixes on the sensitivity text; scale {sensitivity.scale:.3f}")
    for check in sensitivity.checks:
        mb, raw = check.bytes / 1e6, check.predicted
        print(f"  {mb:.1f} MB: summed {raw:.4f}, measured {check.measured:.4f}")


def main() -> None:
    """Run the benchmark."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        bench = prepared(arguments, folder)
        rows: list[Row] = []
        for way, budget in product(arguments.rows, arguments.budgets_mb):
            for row in bench.rows(budget, way):
                rows.append(row)
                print(row, flush=True)
        rows.sort(key=lambda row: (row.budget_mb, ROWS.index(row.way)))
        show(rows, bench.sensitivity)
        results = {"rows": rows, "sensitivity": bench.sensitivity.checks}
        write_json(arguments.json, results)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--positions", type=int, default=768)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--budgets-mb", default="88,92,98,105")
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    arguments.budgets_mb = [float(each) for each in arguments.budgets_mb.split(",")]
    arguments.rows = arguments.rows.split(",")
    unknown = set(arguments.rows) - set(ROWS)
    if unknown:
        parser.error(f"rows must be some of {', '.join(ROWS)}")
    return arguments


def _cut(text: Path, folder: Path) -> Mapping[str, Path]:
    lines = text.read_text(encoding="utf-8").splitlines(keepends=True)
    paths = {}
    for name, (begin, end) in _PARTS.items():
        paths[name] = folder / f"{name}.txt"
        part = lines[int(begin * len(lines)) : int(end * len(lines))]
        paths[name].write_text("".join(part), encoding="utf-8")
    return paths


def _check_apart(one: Path, other: Path) -> None:
    held = HeldOut()
    held.add_text(Source(key="text", path=other), _lines(other))
    held.refuse_shared(Source(key="text", path=one), _lines(one))


def _lines(path: Path) -> Iterator[Piece]:
    lines = path.read_text(encoding="utf-8").splitlines()
    yield from ((number, line) for number, line in enumerate(lines, 1))


def _run(
    function: JobFunction,
    inputs: Mapping[str, Path],
    parameters: Mapping[str, Value],
    output: Path,
) -> None:
    output.mkdir(parents=True, exist_ok=True)
    state = output / "state"
    state.mkdir(exist_ok=True)
    function(Job(inputs=inputs, parameters=parameters, output=output, state=state))


def _scorer(path: Path, threads: int) -> Scorer:
    settings = WorkerSettings(context_tokens=WINDOW_TOKENS, threads=threads)
    return load_runtime("llamacpp").open_scorer(path, settings)


if __name__ == "__main__":
    main()
