"""A task's examples: JSON Lines, checked whole before a model is asked anything.

A line is ``{"prompt": …, "answer": …}``; ``completion`` may stand for ``answer``, and
``{"messages": […]}`` that ends with the assistant's answer for both, so a file for
fine-tuning is a task's file too. ``split`` (``search`` or ``test``) is optional.
"""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from slmops.domain.errors import InvalidInputError
from slmops.domain.ids import Digest
from slmops.domain.tasks import (
    LABELS_MARK,
    PROMPT_MARK,
    TaskKind,
    TaskPlan,
    TaskSplit,
)
from slmops.wire.codec import document_digest
from slmops.workshop.jsonl import read_lines
from slmops.workshop.leakage.same_prompt import prompt_form
from slmops.workshop.tasks.json_answers import AnswerSchema, canonical_json
from slmops.workshop.text_sources import find_garbage

MAX_EXAMPLES = 100_000
"""Most examples of one file; they are held in memory."""
_SPACE = re.compile(r"\s+")
_ANSWER_KEYS = ("answer", "completion")
_KEYS = {"prompt", "messages", "split", *_ANSWER_KEYS}
_ROLES = ("system", "user", "assistant")
_FORM = '{"prompt": text, "answer": …}'


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """One message of a chat."""

    role: str
    """``system``, ``user`` or ``assistant``."""
    content: str
    """What is said."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskExample:
    """One question with its right answer."""

    line: int
    """Line in the file, from 1."""
    turns: tuple[Turn, ...]
    """What the model is given; the last is the user's."""
    answer: str
    """Right answer: a label, canonical JSON, or text."""
    key: str
    """Hash of what is asked, blind to case, spacing and Unicode form."""
    split: TaskSplit | None = None
    """Where the line itself wants to be."""
    form: str = ""
    """What it shares with prompts that are the same, see `same_prompt`."""
    group: str = ""
    """Key of the first example that is the same but for punctuation; empty is its own."""

    @property
    def asked(self) -> str:
        """Everything that is said but by a system, as one text."""
        return "\n".join(turn.content for turn in self.turns if turn.role != "system")


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskExamples:
    """A file's examples, all of them."""

    path: Path
    """Where they were read."""
    examples: tuple[TaskExample, ...]
    """In the order of the file."""
    labels: tuple[str, ...]
    """Of a classification: the plan's, or all that occur, sorted; else empty."""


def read_examples(
    path: Path, plan: TaskPlan, schema: AnswerSchema | None = None
) -> TaskExamples:
    """Read and check all examples of a task.

    Args:
        path: the JSONL file; `plan.examples` is not looked at.
        plan: what an answer is, which labels there are.
        schema: that right answers of an extraction must satisfy.

    Raises:
        NotFoundError: no such file.
        InvalidInputError: naming ``file:line``: not an example of this kind, a label that
            the plan does not have, a prompt that occurs twice; or too many.
    """
    examples: list[TaskExample] = []
    seen: dict[str, int] = {}
    same: dict[str, TaskExample] = {}
    for line, tree in read_lines(path):
        where = f"{path}:{line}"
        if len(examples) == MAX_EXAMPLES:
            raise InvalidInputError(
                f"{where}: at most {MAX_EXAMPLES} examples are read"
            )
        example = _example(tree, plan, schema, line=line, where=where)
        if example.key in seen:
            raise InvalidInputError(
                f"{where}: the prompt occurs twice, first in line {seen[example.key]}"
            )
        seen[example.key] = line
        examples.append(_beside(same, example, plan, where))
    labels = plan.labels or tuple(sorted({example.answer for example in examples}))
    if plan.kind is not TaskKind.CLASSIFICATION:
        labels = ()
    elif len(labels) < 2:  # noqa: PLR2004 - a choice
        raise InvalidInputError(
            f"{path}: a classification needs at least two labels, got {', '.join(labels)}"
        )
    return TaskExamples(path=path, examples=tuple(examples), labels=labels)


def _beside(
    same: dict[str, TaskExample], example: TaskExample, plan: TaskPlan, where: str
) -> TaskExample:
    """Put an example on the side of those that are the same but for punctuation."""
    first = same.setdefault(example.form, example)
    if first is example:
        return example
    side = side_of(first, plan.search_share)
    if example.split not in (None, side):
        raise InvalidInputError(
            f"{where}: the prompt is that of line {first.line} but for punctuation, which"
            f" is in split {side}; the same prompt must be in one split only"
        )
    return replace(example, split=first.split, group=first.key)


def choose_examples(
    found: TaskExamples, plan: TaskPlan, split: TaskSplit
) -> tuple[TaskExample, ...]:
    """Return the examples of a split, at most `plan.limit`, in the order of the file.

    A line without a ``split`` goes where the hash of its prompt says: the same prompt
    is on the same side in every file, whatever stands around it.

    Raises:
        InvalidInputError: the split has no examples.
    """
    inside = [
        example
        for example in found.examples
        if split is TaskSplit.ALL or side_of(example, plan.search_share) is split
    ]
    if not inside:
        raise InvalidInputError(
            f"{found.path}: split {split} has none of {len(found.examples)} examples"
            f" (search_share {plan.search_share:g})"
        )
    if plan.limit is not None:
        # Another part of the hash than the split's, or a limit would prefer one side.
        drawn = sorted(inside, key=lambda example: example.key[16:])[: plan.limit]
        inside = sorted(drawn, key=lambda example: example.line)
    return tuple(inside)


def split_counts(found: TaskExamples, plan: TaskPlan) -> dict[str, Any]:
    """Return how many examples each split has, and each label."""
    sides = Counter(side_of(each, plan.search_share) for each in found.examples)
    labels = Counter(each.answer for each in found.examples)
    return {
        "search": sides[TaskSplit.SEARCH],
        "test": sides[TaskSplit.TEST],
        "labels": {label: labels[label] for label in found.labels},
    }


def examples_digest(
    examples: Sequence[TaskExample], labels: Sequence[str], plan: TaskPlan
) -> Digest:
    """Return a digest of everything that is asked and taken for right."""
    return document_digest(
        [
            [plan.kind, list(labels), plan.scored_by],
            [
                [asked_turns(example, labels, plan), example.answer]
                for example in examples
            ],
        ]
    )


def asked_turns(
    example: TaskExample, labels: Sequence[str], plan: TaskPlan
) -> list[dict[str, str]]:
    """Return the messages a model is sent: system prompt and template filled in.

    A system turn of the example's own beats the plan's.
    """
    listed = ", ".join(labels)
    turns = [{"role": turn.role, "content": turn.content} for turn in example.turns]
    head, tail = plan.template.split(PROMPT_MARK)
    asked = turns[-1]["content"]
    turns[-1]["content"] = (
        head.replace(LABELS_MARK, listed) + asked + tail.replace(LABELS_MARK, listed)
    )
    if plan.system is not None and turns[0]["role"] != "system":
        system = plan.system.replace(LABELS_MARK, listed)
        turns.insert(0, {"role": "system", "content": system})
    return turns


def _example(
    tree: Mapping[str, Any],
    plan: TaskPlan,
    schema: AnswerSchema | None,
    *,
    line: int,
    where: str,
) -> TaskExample:
    unknown = sorted(set(tree) - _KEYS)
    if unknown:
        raise InvalidInputError(
            f"{where}: must be {_FORM}, got key {unknown[0]!r} besides"
        )
    turns, answer = _asked_and_answer(tree, where)
    return TaskExample(
        line=line,
        turns=turns,
        answer=_right_answer(answer, plan, schema, where),
        key=_key(turns),
        split=_own_split(tree, where),
        form=prompt_form(turn.content for turn in turns if turn.role != "system"),
    )


def _asked_and_answer(
    tree: Mapping[str, Any], where: str
) -> tuple[tuple[Turn, ...], object]:
    if "messages" in tree:
        if {"prompt", *_ANSWER_KEYS} & set(tree):
            raise InvalidInputError(
                f'{where}: "messages" hold prompt and answer, got another beside them'
            )
        turns = turns_of(tree["messages"], where)
        if turns[-1].role != "assistant":
            raise InvalidInputError(
                f"{where}: messages must end with the assistant's answer,"
                f" got {turns[-1].role}"
            )
        asked, answer = turns[:-1], turns[-1].content
        if not asked or asked[-1].role != "user":
            raise InvalidInputError(f"{where}: the answer must follow a user turn")
        return asked, answer
    given = [key for key in _ANSWER_KEYS if key in tree]
    if len(given) != 1:
        raise InvalidInputError(
            f"{where}: must be {_FORM}, got keys {', '.join(sorted(tree)) or 'none'}"
        )
    prompt = Turn(role="user", content=text_of(tree, "prompt", where))
    return (prompt,), tree[given[0]]


def turns_of(messages: object, where: str) -> tuple[Turn, ...]:
    """Return a chat's turns.

    Raises:
        InvalidInputError: it is none; names `where`.
    """
    if not isinstance(messages, list) or not messages:
        raise InvalidInputError(f"{where}: messages must be a list with turns")
    turns = []
    for index, turn in enumerate(messages):
        place = f"{where}: messages[{index}]"
        if not isinstance(turn, dict) or turn.get("role") not in _ROLES:
            raise InvalidInputError(
                f"{place}: must have a role of {', '.join(_ROLES)} and a content"
            )
        turns.append(Turn(role=turn["role"], content=text_of(turn, "content", place)))
    return tuple(turns)


def text_of(tree: Mapping[str, Any], key: str, where: str) -> str:
    """Return readable text under a key.

    Raises:
        InvalidInputError: there is none; names `where`.
    """
    value = tree.get(key)
    if not isinstance(value, str) or not value.strip():
        came = "nothing" if key not in tree else repr(value)[:60]
        raise InvalidInputError(f"{where}: {key} must be text, got {came}")
    _refuse_garbage(value, key, where)
    return value


def _refuse_garbage(text: str, key: str, where: str) -> None:
    garbage = find_garbage(text)
    if garbage is not None:
        raise InvalidInputError(
            f"{where}: {key} must be readable text, got U+{ord(garbage[0]):04X}: was the"
            " file decoded with the wrong encoding?"
        )


def _right_answer(
    answer: object, plan: TaskPlan, schema: AnswerSchema | None, where: str
) -> str:
    if plan.kind is TaskKind.EXTRACTION:
        text = canonical_json(answer, where=f"{where}: answer")
        _refuse_garbage(text, "answer", where)
        problem = schema.problem(text) if schema is not None else None
        if problem is not None:
            raise InvalidInputError(f"{where}: answer is not of the schema: {problem}")
        return text
    if not isinstance(answer, str) or not answer.strip():
        raise InvalidInputError(
            f"{where}: answer of a {plan.kind} must be text, got {answer!r:.60}"
        )
    label = answer.strip()
    _refuse_garbage(label, "answer", where)
    if plan.labels and label not in plan.labels:
        raise InvalidInputError(
            f"{where}: label {label!r:.60} is none of the task's"
            f" {len(plan.labels)} labels"
        )
    return label


def _own_split(tree: Mapping[str, Any], where: str) -> TaskSplit | None:
    value = tree.get("split")
    if value is None:
        return None
    if value not in (TaskSplit.SEARCH, TaskSplit.TEST):
        raise InvalidInputError(f"{where}: split must be search or test, got {value!r}")
    return TaskSplit(value)


def side_of(example: TaskExample, search_share: float) -> TaskSplit:
    """Return the split an example is in."""
    if example.split is not None:
        return example.split
    place = int((example.group or example.key)[:16], 16) / 2**64
    return TaskSplit.SEARCH if place < search_share else TaskSplit.TEST


def _key(turns: Iterable[Turn]) -> str:
    said = "\0".join(
        _SPACE.sub(" ", unicodedata.normalize("NFKC", turn.content).casefold()).strip()
        for turn in turns
        if turn.role != "system"
    )
    return hashlib.sha256(said.encode()).hexdigest()
