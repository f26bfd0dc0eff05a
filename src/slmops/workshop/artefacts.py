"""Quantize steps: reference and type in, artefact out."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import cast

from slmops.domain.ids import Digest
from slmops.domain.release import ModelRecord
from slmops.registry.workspace import Workspace
from slmops.wire.codec import decode_json, encode_json
from slmops.workshop.board import Board
from slmops.workshop.mixes import find_mix
from slmops.workshop.quantize import QuantizedFile, quantize_gguf
from slmops.workshop.steps import Step, StepCache, StepRunner, tool_version

ARTEFACT = "artefact"
FILE = "file"
_CODE = (
    "slmops.workshop.quantize",
    "slmops.workshop.mixes",
    "slmops.workshop.gguf_file",
    "slmops.workshop.gguf_writer",
    "slmops.workshop.model_shape",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Artefact:
    """A quantized file in the blob store."""

    quantization: str
    """llama.cpp name."""
    digest: Digest
    """Of the file."""
    file: QuantizedFile
    """What is in it."""


def quantize_candidate(
    runner: StepRunner, board: Board, model: ModelRecord, quantization: str
) -> Artefact:
    """Return the artefact of one quantization, computing it only once.

    Raises:
        InvalidInputError: unknown type, or a damaged reference.
    """
    name = f"quantize {quantization}"
    blobs = runner.cache.blobs

    def compute() -> Mapping[str, Digest]:
        with board.task(name) as report, blobs.writer() as writer:
            made = quantize_gguf(
                blobs.path(model.id),
                quantization,
                writer,
                progress=lambda _, done, total: report(done, total),
            )
        return {ARTEFACT: writer.digest, FILE: blobs.put_bytes(encode_json(made))}

    record = runner.run(name, _step(model.id, quantization), compute)
    return Artefact(
        quantization=quantization,
        digest=record.outputs[ARTEFACT],
        file=decode_json(
            blobs.read_bytes(record.outputs[FILE]), QuantizedFile, where=name
        ),
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
    return Step(
        kind="quantize",
        tool=tool_version(*_CODE, packages=("libgguf", "gguf", "numpy")),
        inputs=cast("Mapping[str, Digest]", {"reference": model}),
        parameters={"quantization": quantization},
    )
