"""What rounding alone gives: nearest, with importance, and compensated, at equal bytes.

    python bench/rounding.py --statistics FILE [--text FILE] [--types Q4_0,Q5_0] [--json FILE]

The model is SmolLM2-135M-Instruct, or any GGUF given with ``--model``. Statistics are
the output of a ``statistics`` job with Hessians; its text must share nothing with the
evaluation text, which is the built-in one unless given. KL divergence is against the
16-bit reference, with its 95 % interval. Types that the reference's weights lay on
before are marked ``grid``: their rows are flattered. ``MIXED:FILE`` as a type takes an
assignment.
"""

import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measure
from model import import_smollm2, import_source

from slmops.domain.blueprint import EvaluationPlan
from slmops.domain.recipe import Rounding
from slmops.domain.release import Fidelity
from slmops.registry.blobs import bytes_digest
from slmops.workshop import quantize_job, score_job
from slmops.workshop.evaluate import fidelity_of
from slmops.workshop.jobs.job import Job, Value
from slmops.workshop.models import reference_path
from slmops.workshop.quantize import MIXED
from slmops.workshop.score_file import CandidateScores, ReferenceScores, load_scores
from slmops.workshop.text_sources import evaluation_text

WAYS = ("nearest", "importance", "compensated")
TYPES = "Q8_0,Q5_0,Q4_K_M,Q4_0,Q4_1,IQ4_XS"


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What all rows share."""

    folder: Path
    model: Path
    statistics: Path
    text: Path
    scored: int


def run_job(
    setting: Setting, function: object, inputs: dict[str, Path], **parameters: Value
) -> dict[str, Path]:
    """Run one job in a folder of its own."""
    output = Path(tempfile.mkdtemp(dir=setting.folder))
    job = Job(
        inputs=inputs, parameters=parameters, output=output, state=output, threads=1
    )
    return dict(function(job))  # type: ignore[operator]


def quantized(setting: Setting, kind: str, way: str) -> tuple[Path, float]:
    """Return an artefact and the processor seconds it took."""
    inputs = {"model": setting.model}
    if way != "nearest":
        inputs["statistics"] = setting.statistics
    name, _, assignment = kind.partition(":")
    if assignment:
        inputs["assignment"] = Path(assignment)
    rounding = Rounding.COMPENSATED if way == "compensated" else Rounding.NEAREST
    begin = time.process_time()
    made = run_job(
        setting,
        quantize_job.run,
        inputs,
        quantization=MIXED if assignment else name,
        rounding=str(rounding),
    )
    return made["artefact"], time.process_time() - begin


def rows(
    setting: Setting, kinds: list[str], ways: list[str]
) -> Iterator[dict[str, Any]]:
    """Measure one row a type and way."""
    reference = run_job(
        setting,
        score_job.score_reference,
        {"artefact": setting.model, "text": setting.text},
        runtime="llamacpp",
        window_tokens=512,
        max_tokens=setting.scored,
    )["scores"]
    expected = load_scores(reference, ReferenceScores)
    digest = bytes_digest(setting.text.read_bytes())
    for kind in kinds:
        for way in ways:
            artefact, seconds = quantized(setting, kind, way)
            scores = run_job(
                setting,
                score_job.score_candidate,
                {"artefact": artefact, "reference": reference},
                runtime="llamacpp",
            )["scores"]
            found = fidelity_of(expected, load_scores(scores, CandidateScores), digest)
            yield _row(kind, way, artefact.stat().st_size, seconds, found)
            artefact.unlink()


def _row(
    kind: str, way: str, size: int, seconds: float, found: Fidelity
) -> dict[str, Any]:
    kld = found.mean_kld
    return {
        "type": kind,
        "rounding": way,
        "bytes": size,
        "mean_kld": kld.value,
        "kld_low": kld.low,
        "kld_high": kld.high,
        "same_top1": found.same_top1.value,
        "quantize_cpu_s": seconds,
        "tokens": found.tokens,
    }


def main() -> None:
    """Measure and print."""
    parser = measure.options(__doc__, rounds=1)
    parser.add_argument("--statistics", type=Path, required=True)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--scored", type=int, default=EvaluationPlan().max_tokens)
    parser.add_argument("--types", default=TYPES)
    parser.add_argument("--ways", default=",".join(WAYS))
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        workspace, record = (
            import_source(folder, chosen.model)
            if chosen.model
            else import_smollm2(folder)
        )
        text = folder / "text"
        text.write_text(
            chosen.text.read_text("utf-8")
            if chosen.text
            else evaluation_text(EvaluationPlan(), folder),
            "utf-8",
        )
        setting = Setting(
            folder=folder,
            model=reference_path(workspace, record),
            statistics=chosen.statistics,
            text=text,
            scored=chosen.scored,
        )
        found = []
        print(
            f"{'type':24} {'rounding':12} {'MB':>6} {'mean KLD (95 %)':>24} {'top-1':>6} {'CPU s':>6}"
        )
        for row in rows(setting, chosen.types.split(","), chosen.ways.split(",")):
            found.append(row)
            interval = (
                f"{row['mean_kld']:.4f} ({row['kld_low']:.4f}-{row['kld_high']:.4f})"
            )
            print(
                f"{row['type']:24.24} {row['rounding']:12} {row['bytes'] / 1e6:6.1f}"
                f" {interval:>24} {row['same_top1']:6.3f} {row['quantize_cpu_s']:6.1f}",
                flush=True,
            )
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
