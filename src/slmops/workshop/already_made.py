"""What of a build is there already, found without computing anything."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from slmops.domain.errors import InvalidInputError, NotFoundError
from slmops.domain.ids import Digest
from slmops.domain.recipe import BASE
from slmops.workshop.board import Board
from slmops.workshop.build_context import BuildContext
from slmops.workshop.disk_needs import Done
from slmops.workshop.jobs.job import Value
from slmops.workshop.progress import silent
from slmops.workshop.search.explore import prepare_reference
from slmops.workshop.search.makings import structure_makings
from slmops.workshop.search.structures import Levers, Structure
from slmops.workshop.steps import StepRecord
from slmops.workshop.workbench import Begun, Workbench, job_step, not_begun


class _NotThereError(Exception):
    """A step would have to be computed; never leaves this module."""


@dataclass(kw_only=True, slots=True)
class _Finder(Workbench):
    """Finds what earlier builds made, and computes nothing."""

    def run(
        self,
        name: str,
        kind: str,
        inputs: Mapping[str, Digest],
        parameters: Mapping[str, Value],
        *,
        seed: int = 0,
        begun: Begun = not_begun,
    ) -> StepRecord:
        """Return a finished step's record; bytes of its outputs are not hashed."""
        del begun
        step = job_step(kind, inputs, parameters, seed=seed)
        record = self.runner.cache.peek(step)
        if record is None:
            raise _NotThereError(name)
        return record


def done_before(build: BuildContext) -> Done:
    """Tell what of a build an earlier one made; trials of a search are not counted."""
    bench = build.bench
    # On a board of its own: what is only looked for is no task of the build.
    board = Board(progress=silent)
    finder = _Finder(runner=bench.runner, executor=bench.executor, board=board)
    levers = Levers(build=replace(build, bench=finder))
    try:
        prepare_reference(levers)
    except _NotThereError:
        return Done()
    base = levers.base(levers.build.model.id)
    found = {BASE: base, **dict(_structures(levers, base))}
    return Done(
        prepared=True,
        structures=frozenset(found),
        statistics=frozenset(
            name for name, each in found.items() if _has_statistics(levers, each)
        ),
        candidates=frozenset(
            label for each in found.values() for label in _candidates(levers, each)
        ),
    )


def _structures(levers: Levers, base: Structure) -> Iterator[tuple[str, Structure]]:
    for structure in levers.build.blueprint.recipe.structures:
        for plan in structure.variations():
            try:
                yield plan.name, levers.build_structure(plan, base)
            except (_NotThereError, InvalidInputError, NotFoundError):
                continue


def _has_statistics(levers: Levers, structure: Structure) -> bool:
    try:
        levers.statistics(structure.model)
    except _NotThereError:
        return False
    return True


def _candidates(levers: Levers, structure: Structure) -> Iterator[str]:
    cache = levers.build.runner.cache
    try:
        for making in structure_makings(levers, structure):
            if cache.has(making.step()):
                yield making.label
    except _NotThereError:
        return
