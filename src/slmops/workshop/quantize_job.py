"""The job that quantizes one model."""

from collections.abc import Mapping
from pathlib import Path

from slmops.domain.errors import InvalidInputError
from slmops.domain.recipe import Rounding
from slmops.wire.codec import encode_json
from slmops.workshop.jobs.job import Job
from slmops.workshop.precision.assignment import load_assignment
from slmops.workshop.precision.compensated import Compensation
from slmops.workshop.precision.statistics_file import Statistics, load_statistics
from slmops.workshop.quantize import quantize_gguf


def run(job: Job) -> Mapping[str, Path]:
    """Quantize input ``model`` to parameter ``quantization``.

    Optional inputs: ``statistics``, which weigh columns, and ``assignment``, a type for
    every tensor, with quantization ``MIXED``. Parameter ``rounding``: ``nearest``, or
    ``compensated``, which needs statistics with second moments.

    Returns:
        ``artefact``, a GGUF file; ``file``, its `QuantizedFile` as JSON.

    Raises:
        InvalidInputError: unknown type, a damaged model, or statistics of another one.
    """
    artefact, described = job.output / "artefact.gguf", job.output / "file.json"
    statistics, types = _statistics(job), None
    if "assignment" in job.inputs:
        types = load_assignment(job.inputs["assignment"]).types
    with artefact.open("w+b") as file:
        made = quantize_gguf(
            job.inputs["model"],
            job.parameter("quantization", str),
            file,
            imatrix=None if statistics is None else statistics.importance,
            types=types,
            rounder=_rounder(job, statistics),
            progress=lambda _, done, total: job.report(done, total),
        )
    described.write_bytes(encode_json(made))
    return {"artefact": artefact, "file": described}


def _statistics(job: Job) -> Statistics | None:
    path = job.inputs.get("statistics")
    return None if path is None else load_statistics(path)


def _rounder(job: Job, statistics: Statistics | None) -> Compensation | None:
    rounding = job.parameter("rounding", str)
    if rounding not in list(Rounding):
        raise InvalidInputError(
            f"parameter rounding must be one of {', '.join(Rounding)}, got {rounding!r}"
        )
    if rounding == Rounding.NEAREST:
        return None
    if statistics is None or not statistics.has_moments:
        raise InvalidInputError(
            "compensated rounding needs statistics with second moments, got none"
        )
    return Compensation(statistics=statistics)
