"""The files a blueprint names, looked at before anything is computed.

Each is read again by the job that uses it; here errors name the user's own files, and
hours of building do not end at line 1,203 of the examples.

What is learnt from (texts, examples, prompts that a teacher answers; what stops training
or judges a structure counts too) is held against everything that is measured on: the
evaluation text, and the prompts of all tasks.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from slmops.domain.blueprint import Blueprint, EvaluationPlan
from slmops.domain.levers import Distill, Finetune, RecipeStep
from slmops.domain.recipe import CalibrationPlan, Recipe
from slmops.domain.tasks import TaskPlan
from slmops.workshop.leakage.held_out import HeldOut, Source
from slmops.workshop.leakage.spans import Piece
from slmops.workshop.tasks.examples import TaskExamples, read_examples
from slmops.workshop.tasks.json_answers import read_schema
from slmops.workshop.tasks.leakage import refuse_leakage, refuse_other_side
from slmops.workshop.text_sources import (
    BUILTIN,
    calibration_text,
    evaluation_text,
    golden_prompts,
    read_data,
    read_text,
)
from slmops.workshop.training import data as training


def check_files(blueprint: Blueprint, folder: Path) -> None:
    """Check every text, example and prompt that a blueprint names.

    Args:
        blueprint: names them.
        folder: where it lies; paths are relative to it.

    Raises:
        NotFoundError: a file does not exist; says which key names it.
        InvalidInputError: not what it should be, naming file and line; or something that
            is both learnt from and measured on, naming key, file and line of both.
    """
    files = _Files(folder=folder)
    files.hold_text(blueprint.evaluation)
    golden_prompts(blueprint.golden, folder)
    tasks = [(task, files.task(task)) for task in blueprint.tasks]
    refuse_other_side(tasks)
    recipe = blueprint.recipe
    if recipe != Recipe():
        # Levers read the built-in one where the recipe names none.
        plan = recipe.calibration or CalibrationPlan()
        source = files.source("recipe.calibration.text", plan.text)
        files.held.refuse_shared(source, _pieces(calibration_text(plan, folder)))
    for key, step in _steps(recipe):
        files.check_step(key, step)
    for _, found in tasks:
        for path in dict.fromkeys(files.learnt):
            refuse_leakage(found, path)


def _steps(recipe: Recipe) -> Iterator[tuple[str, RecipeStep]]:
    for index, step in enumerate(recipe.prepare):
        yield f"recipe.prepare[{index}].{step.name}", step
    for place, plan in enumerate(recipe.structures):
        for index, step in enumerate(plan.steps):
            yield f"recipe.structures[{place}].steps[{index}].{step.name}", step


@dataclass(kw_only=True, slots=True)
class _Files:
    folder: Path
    held: HeldOut = field(default_factory=HeldOut)
    """What is measured on."""
    learnt: list[Path] = field(default_factory=list)
    """Examples that are learnt from."""

    def source(self, key: str, name: str) -> Source:
        return Source(key=key, path=None if name == BUILTIN else self.folder / name)

    def hold_text(self, plan: EvaluationPlan) -> None:
        text = evaluation_text(plan, self.folder)
        self.held.add_text(self.source("evaluation.text", plan.text), _pieces(text))

    def task(self, task: TaskPlan) -> TaskExamples:
        """Read and hold out a task's examples."""
        where = f"tasks.{task.name}"
        schema = None
        if task.schema is not None:
            schema = read_schema(
                read_data(self.folder / task.schema, f"{where}.schema")
            )
        path = read_data(self.folder / task.examples, f"{where}.examples")
        found = read_examples(path, task, schema)
        self.held.add_prompts(
            Source(key=f"{where}.examples", path=path),
            [(example.line, example.asked) for example in found.examples],
        )
        return found

    def check_step(self, key: str, step: RecipeStep) -> None:
        """Check the files of one lever, and that they share nothing with what is held."""
        lever = step.lever
        text = getattr(lever, "text", None)
        if text is not None:
            # A vocabulary that is fitted to what is scored is no better than weights.
            where = f"{key}.text"
            pieces = _pieces(read_text(self.folder / text, where))
            self.held.refuse_shared(self.source(where, text), pieces)
        if isinstance(lever, Finetune):
            self._check_tuning(key, lever)
        if isinstance(lever, Distill):
            if lever.data is not None:
                self._read(f"{key}.data", lever.data)
            if lever.prompts is not None:
                self._read(f"{key}.prompts", lever.prompts, answered=False)

    def _check_tuning(self, key: str, lever: Finetune) -> None:
        examples = self._read(f"{key}.data", lever.data)
        if lever.validation is not None:
            # What decides when training stops has been seen too.
            held_out = self._read(f"{key}.validation", lever.validation)
            training.refuse_leakage(examples, held_out)

    def _read(
        self, key: str, name: str, *, answered: bool = True
    ) -> tuple[training.Example, ...]:
        """Read examples or prompts to learn from; what is measured on may not be in them."""
        path = read_data(self.folder / name, key)
        read = training.read_examples if answered else training.read_prompts
        examples = read(path)
        self.learnt.append(path)
        self.held.refuse_shared(
            Source(key=key, path=path), _said(examples), texts_only=True
        )
        return examples


def _pieces(text: str) -> Iterable[Piece]:
    return enumerate(text.split("\n"), 1)


def _said(examples: Iterable[training.Example]) -> Iterator[Piece]:
    for example in examples:
        yield example.line, "\n".join(each.content for each in example.messages)
