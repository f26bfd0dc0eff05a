"""Whether a task's prompts are where they must not be: in training data, or on two sides."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from slmops.domain.errors import InvalidInputError
from slmops.domain.tasks import TaskPlan, TaskSplit
from slmops.workshop.jsonl import read_lines
from slmops.workshop.leakage.same_prompt import prompt_form
from slmops.workshop.tasks.examples import (
    TaskExamples,
    side_of,
    text_of,
    turns_of,
)


def refuse_leakage(found: TaskExamples, training: Path) -> int:
    """Refuse examples whose prompt is in training data too: learnt by heart is no skill.

    Prompts count as the same as `same_prompt` says. Of a training chat with several
    answers every beginning that ends in a question counts. Training data is streamed:
    memory does not grow with it.

    Returns:
        Lines of training data that were compared.

    Raises:
        InvalidInputError: naming both lines; or a training line that is neither
            ``prompt`` nor ``messages``.
    """
    held = {example.form: example.line for example in found.examples}
    compared = 0
    for line, forms in prompt_forms(training):
        compared += 1
        for form in forms:
            if form in held:
                raise InvalidInputError(
                    f"{found.path}:{held[form]}: the prompt is in the training data too,"
                    f" at {training}:{line}; an example must be in one of them only"
                )
    return compared


def refuse_other_side(tasks: Sequence[tuple[TaskPlan, TaskExamples]]) -> None:
    """Refuse a prompt that one task is chosen by and another one reports.

    Raises:
        InvalidInputError: naming both lines.
    """
    known: dict[str, tuple[str, TaskSplit]] = {}
    for plan, found in tasks:
        for example in found.examples:
            place = f"{found.path}:{example.line}"
            side = side_of(example, plan.search_share)
            other, its_side = known.setdefault(example.form, (place, side))
            if its_side is not side:
                raise InvalidInputError(
                    f"{place}: the prompt is in split {side} of task {plan.name}, and in"
                    f" {its_side} of another one, at {other}; what candidates are chosen"
                    " by must not be reported: give both lines the same split"
                )


def prompt_forms(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield each line's number and what its prompts share with those that are the same.

    Any form of training data is taken.
    """
    for line, tree in read_lines(path):
        where = f"{path}:{line}"
        if "messages" not in tree:
            yield line, [prompt_form([text_of(tree, "prompt", where)])]
            continue
        turns = [t for t in turns_of(tree["messages"], where) if t.role != "system"]
        said = [turn.content for turn in turns]
        yield (
            line,
            [
                prompt_form(said[: index + 1])
                for index, turn in enumerate(turns)
                if turn.role == "user"
            ],
        )
