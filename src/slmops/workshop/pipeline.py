"""The build: quantize, score, measure speed, select, ask golden prompts; all cached.

Stages, and what may run at the same time:

1. *Quantize and score.* One thread quantizes, scoring children use all processors, and
   the reference answers the golden prompts meanwhile.
2. *Speed.* Alone: anything beside it would be measured too.
3. *Select*, pure.
4. *Golden prompts* to the chosen variants.

Every figure comes from a cached step or is a pure function of cached steps, so a second
build computes nothing and finds the same result, byte for byte.
"""

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from slmops.domain.blueprint import CONTROL_QUANTIZATION, Blueprint
from slmops.domain.errors import InvalidInputError
from slmops.domain.ids import Digest
from slmops.domain.release import Card, Fidelity, ModelRecord, Speed, Variant
from slmops.registry.blobs import BlobStore
from slmops.registry.workspace import Workspace
from slmops.runtimes.base import load_runtime
from slmops.workshop.artefacts import Artefact, on_grid, quantize_candidate
from slmops.workshop.board import Board
from slmops.workshop.build_lock import build_lock
from slmops.workshop.build_result import BuildResult, Candidate, ClassSelection
from slmops.workshop.builds import save_build
from slmops.workshop.evaluate import (
    Scoring,
    estimate_fidelity,
    score_candidate,
    score_reference,
)
from slmops.workshop.feasibility import SelectionRules
from slmops.workshop.forecast import measured_prior
from slmops.workshop.gguf_file import read_header
from slmops.workshop.goldens import Goldens
from slmops.workshop.machine import load_prior, save_prior
from slmops.workshop.models import find_model, reference_path
from slmops.workshop.plan import candidate_names, plan_build
from slmops.workshop.progress import Progress, silent
from slmops.workshop.score_process import ScoreProcesses
from slmops.workshop.select import select_variants
from slmops.workshop.speeds import SpeedGroup, machine_fingerprint
from slmops.workshop.steps import StepCache, StepRunner, StepTiming
from slmops.workshop.text_sources import evaluation_text, golden_prompts

_FORMAT = "gguf"
_LARGEST_POOL = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildOptions:
    """What one build does differently from its blueprint."""

    candidates: tuple[str, ...] | None = None
    """Try these quantizations instead of the blueprint's."""
    below_floor: bool = False
    """Choose among candidates below the quality floor too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildRun:
    """A finished build and how it went."""

    id: Digest
    """Digest of the result."""
    result: BuildResult
    """The evidence."""
    steps: tuple[StepTiming, ...]
    """In the order they were done."""
    stages: dict[str, float]
    """Stage → wall time, s."""

    @property
    def executed(self) -> int:
        """Steps that were computed; zero when everything was known."""
        return sum(not step.reused for step in self.steps)


@dataclass(slots=True)
class _Build:
    """What the stages of one build share."""

    blueprint: Blueprint
    workspace: Workspace
    folder: Path
    model: ModelRecord
    options: BuildOptions
    runner: StepRunner
    processes: ScoreProcesses
    board: Board
    runtime: str
    stages: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.stages[name] = round(time.perf_counter() - began, 2)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Measured:
    """What stage 1 found."""

    artefacts: tuple[Artefact, ...]
    fidelity: dict[Digest, Fidelity]
    golden: Digest


def run_build(
    blueprint: Blueprint,
    workspace: Workspace,
    *,
    folder: Path,
    options: BuildOptions | None = None,
    progress: Progress = silent,
) -> BuildRun:
    """Build a blueprint; steps that an earlier build computed are reused.

    Args:
        blueprint: what to build.
        workspace: holds the model, and takes artefacts, steps and the result.
        folder: where the blueprint lies: its texts' paths are relative to it.
        options: what to do differently from the blueprint.
        progress: told what runs.

    Raises:
        NotFoundError: the model is not imported, or a text does not exist.
        InvalidInputError: unknown candidates, a text that is too short, a damaged model.
        OverBudgetError: no candidate fits a class; names the nearest miss.
        UnavailableError: the runtime is not installed, or a child process was killed.
    """
    options = options or BuildOptions()
    if options.candidates is not None:
        blueprint = replace(blueprint, candidates=options.candidates)
    model = find_model(workspace, blueprint.model)
    _refuse_impossible(blueprint, workspace, model)
    with ExitStack() as stack:
        stack.enter_context(build_lock(workspace, progress))
        board = stack.enter_context(Board(progress=progress))
        build = _Build(
            blueprint=blueprint,
            workspace=workspace,
            folder=folder,
            model=model,
            options=options,
            runner=StepRunner(StepCache(workspace)),
            processes=stack.enter_context(ScoreProcesses()),
            board=board,
            runtime=_common_runtime(blueprint),
        )
        return _run(build)


def _run(build: _Build) -> BuildRun:
    BlobStore(build.workspace.blobs).verify(build.model.id)
    names = candidate_names(build.blueprint.candidates)
    build.board.expect(2 * len(names) + 3)
    with build.stage("quantize and score"):
        measured = _quantize_and_score(build, names)
    with build.stage("speed"):
        speeds = _measure_speeds(build, measured.artefacts)
    with build.stage("select"):
        reference, candidates = _candidates(build, measured, speeds)
        control = next(c for c in candidates if c.quantization == CONTROL_QUANTIZATION)
        rules = SelectionRules(
            floor=build.blueprint.quality,
            control_kld=control.card.fidelity.mean_kld.value,
            below_floor=build.options.below_floor,
        )
        selection = select_variants(build.blueprint.classes, candidates, rules)
    with build.stage("golden prompts"):
        variants = _variants(build, candidates, selection, measured.golden)
    result = BuildResult(
        blueprint=build.blueprint,
        below_floor=build.options.below_floor,
        model=build.model,
        reference=reference,
        control=control,
        candidates=candidates,
        selection=selection,
        variants=variants,
        golden=_goldens(build).load(measured.golden),
        machine=machine_fingerprint(build.runtime),
        provenance=build.runner.provenance(),
    )
    _remember_speed(build, control, measured.artefacts)
    return BuildRun(
        id=save_build(build.workspace, result),
        result=result,
        steps=tuple(build.runner.timings),
        stages=build.stages,
    )


def _quantize_and_score(build: _Build, names: Sequence[str]) -> _Measured:
    text = evaluation_text(build.blueprint.evaluation, build.folder)
    scoring = Scoring(
        runner=build.runner,
        processes=build.processes,
        board=build.board,
        runtime=build.runtime,
        plan=build.blueprint.evaluation,
        text=text,
        text_digest=BlobStore(build.workspace.blobs).put_bytes(text.encode()),
    )
    with _pool(1, build) as quantizer, _pool(_processors(), build) as scorers:
        reference = scorers.submit(score_reference, scoring, build.model.id)
        made = {
            name: quantizer.submit(
                quantize_candidate, build.runner, build.board, build.model, name
            )
            for name in names
        }
        rows = [
            scorers.submit(_score_row, scoring, "reference", build.model, reference)
        ]
        rows += [
            scorers.submit(_score_row, scoring, name, future, reference)
            for name, future in made.items()
        ]
        prompts = golden_prompts(build.blueprint.golden, build.folder)
        golden = _goldens(build).record(prompts, build.blueprint.golden.answer_tokens)
        scores = dict(row.result() for row in rows)
        artefacts = [future.result() for future in made.values()]
    artefacts.sort(key=lambda artefact: -artefact.file.bytes)
    return _Measured(
        artefacts=tuple(artefacts),
        fidelity={
            digest: estimate_fidelity(scoring, reference.result(), found)
            for digest, found in scores.items()
        },
        golden=golden,
    )


def _score_row(
    scoring: Scoring,
    name: str,
    artefact: ModelRecord | Future[Artefact],
    reference: Future[Digest],
) -> tuple[Digest, Digest]:
    """Return a row's artefact and its scores."""
    digest = (
        artefact.id if isinstance(artefact, ModelRecord) else artefact.result().digest
    )
    return digest, score_candidate(scoring, name, digest, reference.result())


@contextmanager
def _pool(threads: int, build: _Build) -> Iterator[ThreadPoolExecutor]:
    """Run tasks in threads; on an error or Ctrl-C stop what runs and drop the rest."""
    pool = ThreadPoolExecutor(threads)
    try:
        yield pool
    except BaseException:
        build.board.stop()
        build.processes.stop()
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()


def _measure_speeds(
    build: _Build, artefacts: Sequence[Artefact]
) -> dict[Digest, list[Speed]]:
    settings = sorted(
        {(c.threads, c.context_tokens) for c in build.blueprint.classes}, reverse=True
    )
    found: dict[Digest, list[Speed]] = {artefact.digest: [] for artefact in artefacts}
    build.board.expect(len(settings))
    for threads, context_tokens in settings:
        group = SpeedGroup(
            runtime=build.runtime,
            threads=threads,
            context_tokens=context_tokens,
            runs=build.blueprint.evaluation.speed_runs,
            chat_template=build.model.chat_template,
        )
        for digest, speed in group.measure(
            build.runner, build.board, artefacts
        ).items():
            found[digest].append(speed)
    return found


def _candidates(
    build: _Build, measured: _Measured, speeds: dict[Digest, list[Speed]]
) -> tuple[Candidate, tuple[Candidate, ...]]:
    """Return the reference's row and the candidates'."""
    model = build.model
    runtime = f"{build.runtime} {load_runtime(build.runtime).version()}"
    header = read_header(reference_path(build.workspace, model))
    types: dict[str, int] = {}
    for tensor in header.tensors:
        types[tensor.kind] = types.get(tensor.kind, 0) + 1
    base = Card(
        quantization="BF16" if "BF16" in types else "F16",
        bytes=model.bytes,
        bits_per_weight=8 * model.bytes / model.parameters,
        tensor_types=types,
        parameters=model.parameters,
        reference=model.id,
        reference_grid=model.source_quantization,
        fidelity=measured.fidelity[model.id],
        speed=(),
        runtime=runtime,
    )
    reference = Candidate(
        digest=model.id, card=base, eligible=False, on_reference_grid=False
    )
    candidates = tuple(
        Candidate(
            digest=artefact.digest,
            card=replace(
                base,
                quantization=artefact.quantization,
                bytes=artefact.file.bytes,
                bits_per_weight=artefact.file.bits_per_weight,
                tensor_types=artefact.file.tensor_types,
                fidelity=measured.fidelity[artefact.digest],
                speed=tuple(speeds[artefact.digest]),
            ),
            eligible=artefact.quantization in build.blueprint.candidates,
            on_reference_grid=on_grid(artefact, model.source_quantization),
        )
        for artefact in measured.artefacts
    )
    return reference, candidates


def _variants(
    build: _Build,
    candidates: Sequence[Candidate],
    selection: Sequence[ClassSelection],
    golden: Digest,
) -> tuple[Variant, ...]:
    chosen = [c for c in candidates if any(s.digest == c.digest for s in selection)]
    build.board.expect(len(chosen))
    goldens = _goldens(build)
    return tuple(
        Variant(
            digest=candidate.digest,
            bytes=candidate.card.bytes,
            format=_FORMAT,
            runtime=build.runtime,
            classes=tuple(
                s.device_class for s in selection if s.digest == candidate.digest
            ),
            card=candidate.card,
            golden_logprobs=goldens.ask(
                candidate.quantization, candidate.digest, golden
            ),
        )
        for candidate in chosen
    )


def _goldens(build: _Build) -> Goldens:
    return Goldens(
        runner=build.runner,
        board=build.board,
        runtime=build.runtime,
        model=build.model,
    )


def _remember_speed(
    build: _Build, control: Candidate, artefacts: Sequence[Artefact]
) -> None:
    """Keep the 8-bit control's speed as this machine's prior for the next plan."""
    tensors = next(a.file.tensors for a in artefacts if a.digest == control.digest)
    single = [speed for speed in control.card.speed if speed.threads == 1]
    if single:
        decode = single[0].decode_tokens_per_s.value
        source = f"{control.quantization} of {build.model.name}, measured by a build"
        save_prior(build.workspace, measured_prior(decode, tensors, source))


def _refuse_impossible(
    blueprint: Blueprint, workspace: Workspace, model: ModelRecord
) -> None:
    reference = reference_path(workspace, model)
    plan_build(blueprint, model, reference, load_prior(workspace))


def _common_runtime(blueprint: Blueprint) -> str:
    names = sorted({device_class.runtime for device_class in blueprint.classes})
    if len(names) > 1:
        raise InvalidInputError(
            "classes: all must name the same runtime, since a variant is measured in the"
            f" one that serves it; got {', '.join(names)}"
        )
    runtime = load_runtime(names[0])
    runtime.version()
    if _FORMAT not in runtime.formats:
        raise InvalidInputError(
            f"classes: runtime {names[0]} must load {_FORMAT} files, it loads"
            f" {', '.join(runtime.formats)}"
        )
    return names[0]


def _processors() -> int:
    return max(1, min(len(os.sched_getaffinity(0)), _LARGEST_POOL))
