"""The job that quantizes one model."""

from collections.abc import Mapping
from pathlib import Path

from slmops.wire.codec import encode_json
from slmops.workshop.jobs.job import Job
from slmops.workshop.quantize import quantize_gguf


def run(job: Job) -> Mapping[str, Path]:
    """Quantize input ``model`` to parameter ``quantization``.

    Returns:
        ``artefact``, a GGUF file; ``file``, its `QuantizedFile` as JSON.

    Raises:
        InvalidInputError: unknown type, or a damaged model.
    """
    artefact, described = job.output / "artefact.gguf", job.output / "file.json"
    with artefact.open("w+b") as file:
        made = quantize_gguf(
            job.inputs["model"],
            job.parameter("quantization", str),
            file,
            progress=lambda _, done, total: job.report(done, total),
        )
    described.write_bytes(encode_json(made))
    return {"artefact": artefact, "file": described}
