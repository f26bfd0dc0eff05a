"""Examples to train on: JSON Lines, read as a stream and without trust.

A line is either a chat, ``{"messages": [{"role": …, "content": …}, …]}`` that ends with
the assistant's answer, or ``{"prompt": …, "completion": …}``, which is one user turn and
the answer to it. Nothing is repaired or dropped silently: the first line that is not as
it should be is an error with file, line number, what was expected and what came; see
`slmops.workshop.jsonl` for the limits.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from slmops.domain.errors import InvalidInputError
from slmops.workshop.jsonl import read_lines
from slmops.workshop.leakage.same_prompt import prompt_form
from slmops.workshop.text_sources import find_garbage

MAX_EXAMPLES = 1_000_000
MAX_MESSAGES = 256
"""Turns of one chat."""

_ROLES = ("system", "user", "assistant")
_FORMS = '{"messages": [{"role", "content"}, …]} or {"prompt", "completion"}'
_PROMPT_FORMS = '{"prompt"} or {"messages": […]} that end with a user turn'
# Control characters, halves of surrogate pairs, and what a wrong decoding leaves behind.
_SPACE = re.compile(r"\s+")


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """One turn."""

    role: str
    """``system``, ``user`` or ``assistant``."""
    content: str
    """What is said; not empty."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One chat with where it came from."""

    where: str
    """File and line, for messages: ``train.jsonl:12``."""
    messages: tuple[Message, ...]
    """At most one system turn, first; then user and assistant in turn."""

    @property
    def prompt(self) -> tuple[Message, ...]:
        """All turns before the last answer."""
        return self.messages[:-1]

    @property
    def line(self) -> int:
        """Line in the file, from 1."""
        return int(self.where.rpartition(":")[2])

    @property
    def answer(self) -> str:
        """The last answer."""
        return self.messages[-1].content


def read_examples(path: Path) -> tuple[Example, ...]:
    """Read examples to learn from; every chat ends with an answer.

    Raises:
        InvalidInputError: no examples, a line that is not one, or one that is there
            twice.
        NotFoundError: no such file.
    """
    examples = tuple(_read(path, _Form(path, answered=True)))
    _refuse_duplicates(examples)
    return examples


def read_prompts(path: Path) -> tuple[Example, ...]:
    """Read prompts to be answered; every chat ends with a user turn.

    Raises:
        InvalidInputError: as `read_examples`.
        NotFoundError: no such file.
    """
    prompts = tuple(_read(path, _Form(path, answered=False)))
    _refuse_duplicates(prompts)
    return prompts


def is_readable(text: str) -> bool:
    """Tell whether a text may be the content of a turn: not empty, no garbage."""
    return bool(text.strip()) and find_garbage(text) is None


def refuse_leakage(training: Iterable[Example], held_out: Iterable[Example]) -> None:
    """Refuse splits that share a prompt: what was learnt by heart would count as skill.

    Prompts are the same as `same_prompt` says. Of a training chat with several answers
    every beginning that ends in a question counts.

    Raises:
        InvalidInputError: naming both lines.
    """
    known = {_form(example.prompt): example.where for example in held_out}
    for example in training:
        asked = [
            example.messages[: index + 1]
            for index, message in enumerate(example.messages)
            if message.role == "user"
        ]
        others = [known[form] for form in map(_form, asked) if form in known]
        for other in others[:1]:
            raise InvalidInputError(
                f"{example.where}: the prompt is in the held-out examples too, at"
                f" {other}; a prompt must be in one split only"
            )


def split_examples(
    examples: Sequence[Example], *, share: float, seed: int
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Hold some examples out; equal input gives equal splits, in any order of lines.

    Examples with the same prompt stay together, so the splits share none.

    Args:
        examples: at least two different prompts.
        share: of the examples to hold out, in (0, 1); at least one prompt is.
        seed: of the choice.

    Returns:
        Training and held-out examples, each in the order given.

    Raises:
        InvalidInputError: fewer than two prompts.
    """
    groups: dict[bytes, list[Example]] = {}
    # The first of those that are the same stands for all: it says where they go.
    first: dict[str, bytes] = {}
    keys = [
        first.setdefault(_form(example.prompt), prompt_key(example))
        for example in examples
    ]
    for key, example in zip(keys, examples, strict=True):
        groups.setdefault(key, []).append(example)
    if len(groups) < 2:  # noqa: PLR2004 - one for each side
        raise InvalidInputError(
            f"{_file_of(examples)}: holding examples out needs at least 2 different"
            f" prompts, got {len(groups)}; give a validation file"
        )
    salt = str(seed).encode()
    order = sorted(groups, key=lambda key: hashlib.sha256(salt + key).digest())
    held: set[bytes] = set()
    wanted, taken = share * len(examples), 0
    for key in order[:-1]:
        if held and taken >= wanted:
            break
        held.add(key)
        taken += len(groups[key])
    sides: tuple[list[Example], list[Example]] = ([], [])
    for key, example in zip(keys, examples, strict=True):
        sides[key in held].append(example)
    return tuple(sides[0]), tuple(sides[1])


def _form(messages: Iterable[Message]) -> str:
    return prompt_form(each.content for each in messages if each.role != "system")


def prompt_key(example: Example) -> bytes:
    """Return a short key that prompts share when they read the same."""
    text = "\x00".join(f"{turn.role}\x01{turn.content}" for turn in example.prompt)
    plain = _SPACE.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()
    return hashlib.blake2b(plain.encode(), digest_size=16).digest()


def _read(path: Path, form: "_Form") -> Iterator[Example]:
    for count, (number, tree) in enumerate(read_lines(path), start=1):
        if count > MAX_EXAMPLES:
            raise InvalidInputError(
                f"{path}:{number}: at most {MAX_EXAMPLES} examples are read"
            )
        yield form.example(number, tree)


class _Form:
    """What a line must look like."""

    def __init__(self, path: Path, *, answered: bool) -> None:
        self._path = path
        self._answered = answered
        self._where = str(path)

    def example(self, number: int, tree: dict[str, Any]) -> Example:
        self._where = f"{self._path}:{number}"
        messages = self._messages(tree)
        self._check_order(messages)
        return Example(where=self._where, messages=messages)

    @property
    def _forms(self) -> str:
        return _FORMS if self._answered else _PROMPT_FORMS

    def _messages(self, tree: dict[str, Any]) -> tuple[Message, ...]:
        keys = set(tree)
        if keys == {"messages"}:
            return self._turns(tree["messages"])
        wanted = {"prompt", "completion"} if self._answered else {"prompt"}
        if keys != wanted:
            shown = ", ".join(sorted(repr(key) for key in keys)[:8]) or "no keys"
            self._refuse(f"expected {self._forms}, got the keys {shown}")
        question = Message(role="user", content=self._text(tree["prompt"], "prompt"))
        if not self._answered:
            return (question,)
        answer = self._text(tree["completion"], "completion")
        return (question, Message(role="assistant", content=answer))

    def _turns(self, turns: object) -> tuple[Message, ...]:
        if not isinstance(turns, list) or not 1 <= len(turns) <= MAX_MESSAGES:
            size = f"{len(turns)} of them" if isinstance(turns, list) else _kind(turns)
            self._refuse(f"messages must be 1 to {MAX_MESSAGES} turns, got {size}")
        return tuple(self._turn(turn, index) for index, turn in enumerate(turns))

    def _turn(self, turn: object, index: int) -> Message:
        place = f"messages[{index}]"
        if not isinstance(turn, dict) or set(turn) != {"role", "content"}:
            came = ", ".join(map(repr, turn)) if isinstance(turn, dict) else _kind(turn)
            self._refuse(f"{place} must have the keys 'role' and 'content', got {came}")
        if turn["role"] not in _ROLES:
            self._refuse(
                f"{place}.role must be one of {', '.join(_ROLES)}, got {turn['role']!r}"
            )
        content = self._text(turn["content"], f"{place}.content")
        return Message(role=turn["role"], content=content)

    def _text(self, value: object, place: str) -> str:
        if not isinstance(value, str):
            self._refuse(f"{place} must be text, got {_kind(value)}")
        if not value.strip():
            self._refuse(f"{place} must not be empty, got {value[:20]!r}")
        found = find_garbage(value)
        if found is not None:
            self._refuse(
                f"{place} must be readable text, got U+{ord(found[0]):04X} at character"
                f" {found.start()}: was the file decoded with the wrong encoding?"
            )
        return value

    def _check_order(self, messages: Sequence[Message]) -> None:
        turns = messages[1:] if messages[0].role == "system" else messages
        roles = [turn.role for turn in turns]
        expected = [_ROLES[1 + index % 2] for index in range(len(roles))]
        last = "assistant" if self._answered else "user"
        if not roles or roles != expected or roles[-1] != last:
            self._refuse(
                "messages must be an optional system turn, then user and assistant in"
                f" turn, ending with {last}; got {', '.join(m.role for m in messages)}"
            )

    def _refuse(self, reason: str) -> NoReturn:
        raise InvalidInputError(f"{self._where}: {reason}")


def _refuse_duplicates(examples: Iterable[Example]) -> None:
    known: dict[bytes, str] = {}
    for example in examples:
        text = "\x00".join(f"{m.role}\x01{m.content}" for m in example.messages)
        key = hashlib.blake2b(text.encode(), digest_size=16).digest()
        other = known.setdefault(key, example.where)
        if other != example.where:
            raise InvalidInputError(
                f"{example.where}: the same example is at {other} already;"
                " each must be there once"
            )


def _file_of(examples: Sequence[Example]) -> str:
    return examples[0].where.rpartition(":")[0] if examples else "examples"


def _kind(value: object) -> str:
    names = {"dict": "an object", "list": "a list", "str": "text", "NoneType": "null"}
    return names.get(type(value).__name__, f"{type(value).__name__} {value!r:.40}")
