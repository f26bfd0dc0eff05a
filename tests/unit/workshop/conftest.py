"""A build's context for stages that need no real model: served by echo."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from slmops.domain.blueprint import Blueprint, EvaluationPlan
from slmops.domain.device import DeviceClass
from slmops.registry.blobs import BlobStore
from slmops.registry.workspace import Workspace
from slmops.testing.sample_release import sample_release
from slmops.workshop.artefacts import Artefact, Making
from slmops.workshop.board import Board
from slmops.workshop.build_context import BuildContext
from slmops.workshop.progress import Progress, silent
from slmops.workshop.quantize import QuantizedFile
from slmops.workshop.workbench import local_workbench
from slmops.workshop.workers import Workers

EchoArtefact = Callable[..., Artefact]
MakeBuild = Callable[..., BuildContext]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(root=tmp_path / "ws")


@pytest.fixture
def echo_artefact(workspace: Workspace) -> EchoArtefact:
    """Make an artefact of echo's; keywords say how the 'model' behaves."""

    def make(name: str = "Q4_0", **behaviour: object) -> Artefact:
        content = json.dumps({"echo": 1, **behaviour}).encode()
        digest = BlobStore(workspace.blobs).put_bytes(content)
        return Artefact(
            making=Making(model=digest, quantization=name),
            digest=digest,
            file=QuantizedFile(
                bytes=len(content), parameters=1, tensor_types={}, tensors=()
            ),
        )

    return make


@pytest.fixture
def make_build(
    workspace: Workspace, tmp_path: Path, echo_artefact: EchoArtefact
) -> Iterator[MakeBuild]:
    """Make contexts whose reference is an echo artefact; all are closed at the end."""
    with ExitStack() as stack:

        def make(
            *classes: DeviceClass,
            runs: int = 3,
            progress: Progress = silent,
            **reference: object,
        ) -> BuildContext:
            model = replace(
                sample_release().model, id=echo_artefact(**reference).digest
            )
            return BuildContext(
                blueprint=Blueprint(
                    name="sample",
                    model=model.name,
                    classes=classes or (DeviceClass(name="any", runtime="echo"),),
                    evaluation=EvaluationPlan(speed_runs=runs),
                ),
                workspace=workspace,
                folder=tmp_path,
                model=model,
                runtime="echo",
                bench=stack.enter_context(
                    local_workbench(
                        workspace, stack.enter_context(Board(progress=progress))
                    )
                ),
                workers=stack.enter_context(Workers("echo")),
            )

        yield make
