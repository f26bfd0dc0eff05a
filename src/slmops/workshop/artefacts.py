"""Quantize steps: reference and type in, artefact out."""

from collections.abc import Collection
from dataclasses import dataclass

from slmops.domain.ids import Digest
from slmops.registry.workspace import Workspace
from slmops.wire.codec import decode_json
from slmops.workshop.mixes import find_mix
from slmops.workshop.quantize import QuantizedFile
from slmops.workshop.steps import Step, StepCache
from slmops.workshop.workbench import Workbench, job_step

ARTEFACT = "artefact"
FILE = "file"


@dataclass(frozen=True, kw_only=True, slots=True)
class Artefact:
    """A quantized file in the blob store."""

    quantization: str
    """llama.cpp name."""
    digest: Digest
    """Of the file."""
    file: QuantizedFile
    """What is in it."""


def quantize_candidate(bench: Workbench, model: Digest, quantization: str) -> Artefact:
    """Return the artefact of one quantization, computing it only once.

    Raises:
        InvalidInputError: unknown type, or a damaged reference.
    """
    name = f"quantize {quantization}"
    record = bench.run(
        name, "quantize", {"model": model}, {"quantization": quantization}
    )
    file = bench.blobs.read_bytes(record.outputs[FILE])
    return Artefact(
        quantization=quantization,
        digest=record.outputs[ARTEFACT],
        file=decode_json(file, QuantizedFile, where=name),
    )


def built_quantizations(
    workspace: Workspace, model: Digest, candidates: Collection[str]
) -> frozenset[str]:
    """Return which candidates a build would not have to quantize again.

    Their bytes are not hashed, so that asking is quick; a build hashes them.
    """
    cache = StepCache(workspace)
    return frozenset(name for name in candidates if cache.has(_step(model, name)))


def on_grid(artefact: Artefact, reference_grid: str | None) -> bool:
    """Tell whether an artefact mostly has the type its reference was made from.

    True by name, or when block-size fallbacks put most matrices into that type.
    """
    if reference_grid is None:
        return False
    matrices = {
        kind: count
        for kind, count in artefact.file.tensor_types.items()
        if kind != "F32"
    }
    most = max(matrices, key=lambda kind: matrices[kind], default=None)
    base = find_mix(artefact.quantization).base
    return reference_grid in {artefact.quantization, base, most}


def _step(model: Digest, quantization: str) -> Step:
    return job_step("quantize", {"model": model}, {"quantization": quantization})
