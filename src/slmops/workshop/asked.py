"""The stage that asks every candidate the user's tasks, and the reference beside them.

Each task has two parts: candidates are chosen by its *search* split, the card and the
quality floor take the *test* split, which nothing was chosen by.
"""

import shutil
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from slmops.domain.ids import Digest
from slmops.domain.tasks import TaskPlan, TaskResult, TaskSplit
from slmops.wire.input_file import open_input
from slmops.workshop.artefacts import Artefact
from slmops.workshop.build_context import BuildContext
from slmops.workshop.tasks.ask import load_answers, task_parameters
from slmops.workshop.tasks.flips import task_result

_REFERENCE = "the reference"


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskFigures:
    """What one model made of all tasks."""

    search: tuple[TaskResult, ...] = ()
    """On the split that candidates are chosen by."""
    test: tuple[TaskResult, ...] = ()
    """On the other."""


def ask_tasks(
    build: BuildContext, artefacts: Sequence[Artefact]
) -> dict[Digest, TaskFigures]:
    """Return the figures of every artefact and of the reference; empty without tasks.

    Raises:
        InvalidInputError: examples that are not as they should be; names file and line.
        NotFoundError: no such file.
        UnavailableError: a child process was killed.
    """
    tasks = build.blueprint.tasks
    models = {build.model.id: _REFERENCE} | {a.digest: a.label for a in artefacts}
    if not tasks:
        return {digest: TaskFigures() for digest in models}
    asking = _Asking(build=build)
    inputs = {task.name: asking.files(task) for task in tasks}
    pairs = [(task, split) for task in tasks for split in splits_of(task)]
    build.board.expect(len(pairs) * len(models))
    with build.pool() as pool:
        waiting = {
            (digest, task.name, split): pool.submit(
                asking.ask, name, digest, task, split, inputs[task.name]
            )
            for digest, name in models.items()
            for task, split in pairs
        }
        return {
            digest: TaskFigures(
                search=asking.results(waiting, digest, TaskSplit.SEARCH),
                test=asking.results(waiting, digest, TaskSplit.TEST),
            )
            for digest in models
        }


def splits_of(task: TaskPlan) -> tuple[TaskSplit, ...]:
    """Return the parts of a task's examples that are asked."""
    if task.search_share == 0:
        return (TaskSplit.TEST,)
    if task.search_share == 1:
        return (TaskSplit.SEARCH,)
    return (TaskSplit.SEARCH, TaskSplit.TEST)


_Waiting = dict[tuple[Digest, str, TaskSplit], Future[Digest]]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Asking:
    build: BuildContext

    def files(self, task: TaskPlan) -> dict[str, Digest]:
        named = {"examples": task.examples, "schema": task.schema}
        return {
            role: self._stored(name, f"tasks.{task.name}.{role}")
            for role, name in named.items()
            if name is not None
        }

    def ask(
        self,
        name: str,
        artefact: Digest,
        task: TaskPlan,
        split: TaskSplit,
        files: dict[str, Digest],
    ) -> Digest:
        record = self.build.bench.run(
            f"ask {name}: {task.name}, {split}",
            "task",
            {"artefact": artefact, **files},
            task_parameters(task, split=split, runtime=self.build.runtime),
        )
        return record.outputs["answers"]

    def results(
        self, waiting: _Waiting, digest: Digest, split: TaskSplit
    ) -> tuple[TaskResult, ...]:
        reference = self.build.model.id
        found = []
        for (asked, name, part), future in waiting.items():
            if asked != digest or part != split:
                continue
            answers = load_answers(self.build.blobs.path(future.result()))
            other = None
            if digest != reference:
                other = load_answers(
                    self.build.blobs.path(waiting[reference, name, part].result())
                )
            found.append(task_result(answers, other))
        return tuple(found)

    def _stored(self, name: str, where: str) -> Digest:
        path = self.build.folder / name
        with (
            open_input(path, where=where) as file,
            self.build.blobs.writer() as writer,
        ):
            shutil.copyfileobj(file, writer.file)
        return writer.digest
