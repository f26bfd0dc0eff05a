"""Quantize steps, and which artefacts lie on their reference's own grid."""

from pathlib import Path

import pytest

from slmops.domain.ids import Digest
from slmops.registry.workspace import Workspace
from slmops.testing.tiny_gguf import write_tiny_llama
from slmops.workshop.artefacts import (
    Artefact,
    Making,
    built_quantizations,
    on_grid,
)
from slmops.workshop.board import Board
from slmops.workshop.models import import_model
from slmops.workshop.progress import silent
from slmops.workshop.quantize import QuantizedFile
from slmops.workshop.steps import StepCache
from slmops.workshop.workbench import local_workbench


def artefact(name: str, types: dict[str, int]) -> Artefact:
    file = QuantizedFile(bytes=1, parameters=1, tensor_types=types, tensors=())
    digest = Digest("sha256:" + "0" * 64)
    making = Making(model=digest, quantization=name)
    return Artefact(making=making, digest=digest, file=file)


@pytest.mark.parametrize(
    ("name", "types", "grid", "expected"),
    [
        ("Q4_1", {"Q4_1": 9, "F32": 50}, "Q4_1", True),
        ("Q4_0", {"Q4_0": 9, "F32": 50}, "Q4_1", False),
        # By fallback most matrices got the reference's type.
        ("Q2_K", {"Q4_0": 8, "Q2_K": 2, "F32": 50}, "Q4_0", True),
        ("Q2_K", {"Q4_0": 2, "Q2_K": 8, "F32": 50}, "Q4_0", False),
        # Q4_K_M is mainly Q4_K, whatever else is in it.
        ("Q4_K_M", {"Q5_0": 8, "Q4_K": 2, "F32": 50}, "Q4_K", True),
        ("Q8_0", {"Q8_0": 9}, None, False),
    ],
)
def test_a_reference_flatters_what_mostly_has_its_type(
    name: str, types: dict[str, int], grid: str | None, expected: bool
) -> None:
    assert on_grid(artefact(name, types), grid) is expected


def test_a_quantized_candidate_is_known_and_damaged_it_is_made_again(
    workspace: Workspace, tmp_path: Path
) -> None:
    model = import_model(str(write_tiny_llama(tmp_path / "tiny.gguf")), workspace)

    def quantized() -> tuple[Artefact, bool]:
        with local_workbench(workspace, Board(progress=silent)) as bench:
            made = Making(model=model.id, quantization="Q4_0").quantize(bench)
        return made, bench.runner.timings[0].reused

    names = ("Q4_0", "Q8_0")
    assert built_quantizations(workspace, model.id, names) == frozenset()
    made, reused = quantized()
    assert not reused
    assert quantized() == (made, True)
    assert built_quantizations(workspace, model.id, names) == {"Q4_0"}
    path = StepCache(workspace).blobs.path(made.digest)
    path.write_bytes(path.read_bytes()[:-1])
    assert quantized() == (made, False)
    path.unlink()
    assert built_quantizations(workspace, model.id, names) == frozenset()
