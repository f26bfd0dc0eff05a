"""Artefacts: what is quantized from what, and the jobs that do it."""

from collections.abc import Collection
from dataclasses import dataclass

from slmops.domain.ids import Digest
from slmops.domain.recipe import BASE, MIXED, Rounding
from slmops.registry.workspace import Workspace
from slmops.wire.codec import decode_json
from slmops.workshop.jobs.job import Value
from slmops.workshop.quantize import QuantizedFile
from slmops.workshop.steps import Step, StepCache
from slmops.workshop.workbench import Workbench, job_step

ARTEFACT = "artefact"
FILE = "file"


@dataclass(frozen=True, kw_only=True, slots=True)
class Making:
    """Everything that decides an artefact's bytes, and what it is called by."""

    model: Digest
    """16-bit GGUF that is quantized."""
    quantization: str
    """llama.cpp name, or ours of a mix with an `assignment`."""
    structure: str = BASE
    """Name of the shape `model` has."""
    steps: tuple[str, ...] = ()
    """What was done to get it."""
    token_map: Digest | None = None
    """New id → old id, where the vocabulary was trimmed."""
    calibration: Digest | None = None
    """Text behind `statistics`."""
    statistics: Digest | None = None
    """Activation statistics; None rounds all weights alike."""
    assignment: Digest | None = None
    """Type of every tensor; None leaves that to the mix."""
    rounding: Rounding = Rounding.NEAREST
    """How weights are rounded."""
    recovered: bool = False
    """Whether `model` was trained for this quantization."""

    @property
    def label(self) -> str:
        """What it is called: as `slmops.domain.release.Card.label`."""
        name = self.quantization + ("+recovered" if self.recovered else "")
        return name if self.structure == BASE else f"{self.structure}/{name}"

    def step(self) -> Step:
        """Describe the quantization as a step."""
        return job_step("quantize", self._inputs(), self._parameters())

    def _inputs(self) -> dict[str, Digest]:
        inputs = {
            "model": self.model,
            "statistics": self.statistics,
            "assignment": self.assignment,
        }
        return {role: digest for role, digest in inputs.items() if digest is not None}

    def _parameters(self) -> dict[str, Value]:
        mixed = self.assignment is not None
        return {
            "quantization": MIXED if mixed else self.quantization,
            "rounding": str(self.rounding),
        }

    def quantize(self, bench: Workbench) -> "Artefact":
        """Return the artefact, computing it only once.

        Raises:
            InvalidInputError: unknown type, or a damaged model.
        """
        name = f"quantize {self.label}"
        record = bench.run(name, "quantize", self._inputs(), self._parameters())
        file = bench.blobs.read_bytes(record.outputs[FILE])
        return Artefact(
            making=self,
            digest=record.outputs[ARTEFACT],
            file=decode_json(file, QuantizedFile, where=name),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Artefact:
    """A quantized file in the blob store."""

    making: Making
    """What it was made from, and how."""
    digest: Digest
    """Of the file."""
    file: QuantizedFile
    """What is in it."""

    @property
    def label(self) -> str:
        """Its name in the build."""
        return self.making.label


def built_quantizations(
    workspace: Workspace, model: Digest, candidates: Collection[str]
) -> frozenset[str]:
    """Return which plain candidates a build would not have to quantize again.

    Their bytes are not hashed, so that asking is quick; a build hashes them.
    """
    cache = StepCache(workspace)
    return frozenset(
        name
        for name in candidates
        if cache.has(Making(model=model, quantization=name).step())
    )
