"""What quantization-aware recovery takes off a quantized model's KL divergence.

    python bench/recovery.py --text TEXT [--types Q4_0,Q2_K] [--steps 60] [--rate 1e-5]
        [--batch-tokens 512] [--characters 60000] [--positions 384] [--model GGUF]
        [--state FOLDER] [--json FILE]

SmolLM2-135M-Instruct, or another model, is trained on `--text` with the types a plain
quantization gives its tensors, then quantized to them, without importance on both sides. KL
divergence is from the 16-bit model, on the evaluation text that builds use, which training
never sees; in brackets its 95 % bounds. Needs the extra `train`.
"""

import resource
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from measure import Column, options, print_table, write_json
from structure import Bench

from slmops.domain.release import Estimate
from slmops.wire.codec import encode_json
from slmops.workshop.gguf_file import read_header
from slmops.workshop.jobs.kinds import find_kind
from slmops.workshop.precision.assignment import Assignment
from slmops.workshop.quantize import predict_quantized, quantize_gguf
from slmops.workshop.score_file import CandidateScores, load_scores
from slmops.workshop.score_job import score_candidate
from slmops.workshop.statistics import make_blocks, mean_estimate


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One file."""

    type: str
    steps: int
    """Of training; 0 for none."""
    bytes: int
    kld: Estimate
    """Mean, nats."""
    same_top1: float
    """Share of positions."""
    cpu_s: float
    """Of training."""


def main() -> None:
    """Train, quantize, score."""
    parser = options(__doc__, rounds=1)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--types", default="Q4_0,Q2_K")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rate", type=float, default=1e-5)
    parser.add_argument("--batch-tokens", type=int, default=512)
    parser.add_argument("--characters", type=int, default=60_000)
    parser.add_argument("--positions", type=int, default=384)
    parser.add_argument("--model", type=Path)
    parser.add_argument(
        "--state", type=Path, help="where training goes on after a kill"
    )
    chosen = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), chosen)
        for kind in chosen.types.split(","):
            for steps in (0, chosen.steps):
                rows.append(measured(bench, kind, steps))
                print(rows[-1], flush=True)
    print_table(
        [
            Column(title="type", width=8),
            Column(title="steps", width=6),
            Column(title="MB", width=7),
            Column(title="mean KLD", width=24),
            Column(title="same top-1", width=10),
            Column(title="CPU s", width=7),
        ],
        [
            [
                row.type,
                str(row.steps),
                f"{row.bytes / 1e6:.1f}",
                f"{row.kld.value:.4f} ({row.kld.low:.4f}–{row.kld.high:.4f})",
                f"{row.same_top1:.3f}",
                f"{row.cpu_s:.0f}",
            ]
            for row in rows
        ],
    )
    write_json(chosen.json, rows)


def measured(bench: Bench, kind: str, steps: int) -> Row:
    """Train for a type if there are steps, quantize, and score."""
    header = read_header(bench.model)
    file = predict_quantized(header, kind)
    types = {each.name: each.kind for each in file.tensors if len(each.shape) > 1}
    model, began = bench.model, _cpu_s()
    if steps:
        model = recovered(
            bench, f"{kind}-{steps}", Assignment(types=types, bytes=file.bytes)
        )
    cpu_s = _cpu_s() - began
    artefact = bench.folder / "quantized.gguf"
    with artefact.open("w+b") as sink:
        quantize_gguf(model, "MIXED", sink, types=types)
    inputs = {"artefact": artefact, "reference": bench.reference}
    scored = bench.run("score", score_candidate, inputs, runtime="llamacpp")
    scores = load_scores(scored["scores"], CandidateScores)
    kld = scores.kld.astype(np.float64)
    return Row(
        type=kind,
        steps=steps,
        bytes=artefact.stat().st_size,
        kld=mean_estimate(kld, make_blocks(1, len(kld), seed=0)),
        same_top1=float(scores.same_top1.mean()),
        cpu_s=cpu_s,
    )


def recovered(bench: Bench, name: str, assignment: Assignment) -> Path:
    """Return the model trained for the types, 16 bits."""
    chosen = bench.chosen
    wanted, text = bench.folder / "assignment.json", bench.folder / "text.txt"
    wanted.write_bytes(encode_json(assignment))
    text.write_text(chosen.text.read_text()[: chosen.characters])
    made = bench.run(
        name,
        find_kind("recover").load(),
        {"model": bench.model, "text": text, "assignment": wanted},
        max_steps=chosen.steps,
        learning_rate=chosen.rate,
        batch_tokens=chosen.batch_tokens,
    )
    return made["model"]


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
