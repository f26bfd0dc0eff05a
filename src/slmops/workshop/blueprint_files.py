"""The files a blueprint names, looked at before anything is computed.

Each is read again by the job that uses it; here errors name the user's own files, and
hours of building do not end at line 1,203 of the examples.
"""

from pathlib import Path

from slmops.domain.blueprint import Blueprint
from slmops.domain.levers import Distill, Finetune, RecipeStep
from slmops.domain.recipe import CalibrationPlan, Recipe
from slmops.domain.tasks import TaskPlan
from slmops.workshop.precision.overlap import check_apart
from slmops.workshop.tasks.examples import (
    TaskExamples,
    read_examples,
    refuse_leakage,
)
from slmops.workshop.tasks.json_answers import read_schema
from slmops.workshop.text_sources import (
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
        InvalidInputError: not what it should be, naming file and line; text that is both
            learnt or calibrated on and scored; or an example of a task that is also in
            training data, naming both lines.
    """
    evaluation = evaluation_text(blueprint.evaluation, folder)
    golden_prompts(blueprint.golden, folder)
    recipe = blueprint.recipe
    if recipe != Recipe():
        # Levers read the built-in one where the recipe names none.
        calibration = recipe.calibration or CalibrationPlan()
        check_apart(calibration_text(calibration, folder), evaluation)
    structures = [step for plan in recipe.structures for step in plan.steps]
    learnt = [
        path
        for step in (*recipe.prepare, *structures)
        for path in _check_step(step, folder, evaluation)
    ]
    for task in blueprint.tasks:
        found = _check_task(task, folder)
        for path in dict.fromkeys(learnt):
            refuse_leakage(found, path)


def _check_step(step: RecipeStep, folder: Path, evaluation: str) -> list[Path]:
    """Check one lever's files; return the examples it trains on."""
    lever = step.lever
    text = getattr(lever, "text", None)
    if text is not None:
        # A vocabulary that is fitted to what is scored is no better than weights.
        check_apart(read_text(folder / text, f"{step.name}.text"), evaluation)
    if not isinstance(lever, Finetune | Distill):
        return []
    learnt = [] if lever.data is None else [folder / lever.data]
    for path in learnt:
        training.read_examples(read_data(path, f"{step.name}.data"))
    if isinstance(lever, Finetune) and lever.validation is not None:
        path = read_data(folder / lever.validation, f"{step.name}.validation")
        training.refuse_leakage(
            training.read_examples(learnt[0]), training.read_examples(path)
        )
        # What decides when training stops has been seen too.
        learnt.append(path)
    if isinstance(lever, Distill) and lever.prompts is not None:
        path = read_data(folder / lever.prompts, f"{step.name}.prompts")
        training.read_prompts(path)
        learnt.append(path)
    return learnt


def _check_task(task: TaskPlan, folder: Path) -> TaskExamples:
    where = f"tasks.{task.name}"
    schema = None
    if task.schema is not None:
        schema = read_schema(read_data(folder / task.schema, f"{where}.schema"))
    path = read_data(folder / task.examples, f"{where}.examples")
    return read_examples(path, task, schema)
