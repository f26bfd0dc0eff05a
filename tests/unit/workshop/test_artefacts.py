"""Quantize steps: known again, and made again when damaged."""

from pathlib import Path

from slmops.registry.workspace import Workspace
from slmops.testing.tiny_gguf import write_tiny_llama
from slmops.workshop.artefacts import Artefact, Making, built_quantizations
from slmops.workshop.board import Board
from slmops.workshop.models import import_model
from slmops.workshop.progress import silent
from slmops.workshop.steps import StepCache
from slmops.workshop.workbench import local_workbench


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
