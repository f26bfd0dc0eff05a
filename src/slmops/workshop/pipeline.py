"""The build: quantize, score, measure speed, select, ask golden prompts; all cached.

Stages, and what may run at the same time:

1. *Golden answers* (`goldens`) of the reference, once `prepare` has made it.
2. *Structures* (`search`): the recipe's levers make 16-bit models of other shapes.
3. *Quantize and score* (`scored`): all processors at work.
4. *Tasks* (`asked`): the user's own examples, all processors at work.
5. *Speed* (`speeds`). Times alone: anything beside them would be measured too.
6. *Select* (`select`), pure, and *test* (`tested`): what was chosen is scored on text that
   nothing was chosen by; what fails there is refused, and the next is taken.
7. *Runtime settings* (`tuned`), where the recipe asks for some: of what was chosen, timed
   alone too.
8. *Golden prompts* to the chosen variants (`candidates`).

Every figure comes from a cached step or is a pure function of cached steps, so a second
build computes nothing and finds the same result, byte for byte.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from slmops.domain.blueprint import Blueprint
from slmops.domain.errors import InvalidInputError, UnavailableError
from slmops.domain.ids import Digest
from slmops.registry.workspace import Workspace
from slmops.runtimes.base import load_runtime
from slmops.runtimes.energy import open_meter
from slmops.runtimes.speed import machine_fingerprint
from slmops.workshop.already_made import done_before
from slmops.workshop.artefacts import Artefact
from slmops.workshop.asked import ask_tasks
from slmops.workshop.board import Board
from slmops.workshop.build_context import BuildContext
from slmops.workshop.build_lock import build_lock
from slmops.workshop.build_result import BuildResult, Candidate
from slmops.workshop.builds import save_build
from slmops.workshop.candidates import (
    FORMAT,
    Measured,
    candidate_rows,
    chosen_variants,
    reference_row,
)
from slmops.workshop.disk import said_when_full
from slmops.workshop.disk_needs import disk_needs, require_space
from slmops.workshop.energy import check_energy_budgets
from slmops.workshop.forecast import measured_prior
from slmops.workshop.gguf_file import read_header
from slmops.workshop.goldens import load_golden, record_goldens
from slmops.workshop.housekeeping import find_leftovers
from slmops.workshop.machine import load_prior, save_prior
from slmops.workshop.models import find_grid, find_model, reference_path
from slmops.workshop.plan import BuildPlan, plan_build
from slmops.workshop.progress import Progress, silent
from slmops.workshop.requirements import require_extras
from slmops.workshop.scored import quantize_and_score
from slmops.workshop.search.explore import build_structures, prepare_reference
from slmops.workshop.search.makings import candidate_makings
from slmops.workshop.search.structures import Levers
from slmops.workshop.speeds import measure_speeds
from slmops.workshop.steps import StepTiming
from slmops.workshop.tested import choose_and_test, hold_settings, open_report_bench
from slmops.workshop.tuned import Tuned, check_runtime_plan, tune_settings
from slmops.workshop.workbench import Workbench, local_workbench, ray_workbench
from slmops.workshop.workers import Workers

LOCAL, RAY = EXECUTORS = ("local", "ray")
"""Where jobs may run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildOptions:
    """What one build does differently from its blueprint."""

    candidates: tuple[str, ...] | None = None
    """Try these quantizations instead of the blueprint's."""
    below_floor: bool = False
    """Choose among candidates below the quality floor too."""
    executor: str = LOCAL
    """Where jobs run: ``local`` or ``ray``; changes nothing of the result."""
    ray_address: str | None = None
    """Cluster that executor ``ray`` joins; None: see `ray_executor`."""

    def __post_init__(self) -> None:
        if self.executor not in EXECUTORS:
            raise InvalidInputError(
                f"executor must be {' or '.join(EXECUTORS)}, got {self.executor!r}"
            )
        if self.ray_address is not None and self.executor != RAY:
            raise InvalidInputError("a Ray address needs executor ray")


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
        InvalidInputError: unknown candidates, a text that is too short, a damaged model,
            or a runtime or an extra that is not installed.
        OverBudgetError: no candidate fits a class; names the nearest miss.
        UntrustedError: the reference's bytes have changed.
        UnavailableError: a child process was killed, or the disk is full, or too full
            to begin.
    """
    options = options or BuildOptions()
    if options.candidates is not None:
        blueprint = replace(blueprint, candidates=options.candidates)
    model = find_model(workspace, blueprint.model)
    runtime = _common_runtime(blueprint)
    require_extras(blueprint, on_ray=options.executor == RAY)
    check_energy_budgets(blueprint, open_meter())
    grid = find_grid(workspace, model)
    plan = plan_build(
        blueprint,
        model,
        reference_path(workspace, model),
        load_prior(workspace),
        source_types=grid.types,
    )
    with ExitStack() as stack:
        stack.enter_context(said_when_full(workspace.root))
        stack.enter_context(build_lock(workspace, progress))
        board = stack.enter_context(Board(progress=progress))
        build = BuildContext(
            blueprint=blueprint,
            workspace=workspace,
            folder=folder,
            model=model,
            runtime=runtime,
            bench=stack.enter_context(_bench(options, workspace, board)),
            workers=stack.enter_context(Workers(runtime)),
            grid=grid,
        )
        build.runner.cache.clean()
        _require_space(build, plan)
        return _run(build, below_floor=options.below_floor)


def _require_space(build: BuildContext, plan: BuildPlan) -> None:
    header = read_header(reference_path(build.workspace, build.model))
    needs = disk_needs(build.blueprint, plan, header, done_before(build))

    def freeable() -> int:
        return find_leftovers(build.workspace, now=math.inf).bytes

    require_space(needs, build.workspace.root, freeable)


def _bench(
    options: BuildOptions, workspace: Workspace, board: Board
) -> AbstractContextManager[Workbench]:
    if options.executor == RAY:
        return ray_workbench(workspace, board, options.ray_address)
    return local_workbench(workspace, board)


def _run(build: BuildContext, *, below_floor: bool) -> BuildRun:
    build.blobs.verify(build.model.id)
    levers = Levers(build=build)
    with build.stage("golden answers"), build.pool():
        prepare_reference(levers)
        # First of all: a prompt without an answer must not end hours of building.
        golden = record_goldens(build)
    with build.stage("structures"), build.pool():
        structures = build_structures(levers)
        makings = candidate_makings(levers, structures.kept)
    check_runtime_plan(build, makings)
    # Quantize and score each; score the reference twice.
    build.board.expect(2 * len(makings) + 2)
    with build.stage("quantize and score"):
        scored = quantize_and_score(build, makings, golden)
    with build.stage("tasks"):
        tasks = ask_tasks(build, scored.artefacts)
    with build.stage("speed"):
        speeds = measure_speeds(build, scored.artefacts)
    with build.stage("select"):
        reference = reference_row(build, scored, tasks[build.model.id])
        measured = Measured(speeds=speeds, tasks=tasks)
        candidates = candidate_rows(build, reference.card, scored, measured)
        bench = open_report_bench(build, scored)
        chosen = choose_and_test(bench, reference, candidates, below_floor=below_floor)
    tuned = Tuned()
    if build.blueprint.recipe.runtime is not None:
        with build.stage("runtime settings"):
            tuned = tune_settings(
                build, scored, chosen.candidates, chosen.selection, chosen.rules
            )
            tuned = hold_settings(bench, chosen, tuned)
    with build.stage("golden prompts"):
        cards = {**chosen.cards, **tuned.cards}
        variants = chosen_variants(
            build, chosen.candidates, chosen.selection, golden, cards
        )
    result = BuildResult(
        blueprint=build.blueprint,
        below_floor=below_floor,
        model=build.model,
        reference=chosen.reference,
        control=chosen.control,
        candidates=chosen.candidates,
        selection=chosen.selection,
        variants=variants,
        golden=load_golden(build.blobs, golden),
        machine=machine_fingerprint(build.runtime),
        provenance=build.runner.provenance(),
        trials=structures.trials,
        setting_results=tuned.results,
    )
    _remember_speed(build, chosen.control, scored.artefacts)
    return BuildRun(
        id=save_build(build.workspace, result),
        result=result,
        steps=tuple(build.runner.timings),
        stages=build.stages,
    )


def _remember_speed(
    build: BuildContext, control: Candidate, artefacts: Sequence[Artefact]
) -> None:
    """Keep the 8-bit control's speed as this machine's prior for the next plan."""
    tensors = next(a.file.tensors for a in artefacts if a.digest == control.digest)
    single = [speed for speed in control.card.speed if speed.threads == 1]
    if single:
        decode = single[0].decode_tokens_per_s.value
        source = f"{control.quantization} of {build.model.name}, measured by a build"
        save_prior(build.workspace, measured_prior(decode, tensors, source))


def _common_runtime(blueprint: Blueprint) -> str:
    names = sorted({device_class.runtime for device_class in blueprint.classes})
    if len(names) > 1:
        raise InvalidInputError(
            "classes: all must name the same runtime, since a variant is measured in the"
            f" one that serves it; got {', '.join(names)}"
        )
    runtime = load_runtime(names[0])
    try:
        runtime.version()
    except UnavailableError as error:
        # Not there is not "not there now": trying again would change nothing.
        raise InvalidInputError(f"classes: {error}") from None
    if FORMAT not in runtime.formats:
        raise InvalidInputError(
            f"classes: runtime {names[0]} must load {FORMAT} files, it loads"
            f" {', '.join(runtime.formats)}"
        )
    return names[0]
