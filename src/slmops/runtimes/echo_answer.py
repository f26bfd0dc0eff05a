"""What echo answers: tokens, log-probabilities and stop rules, without any I/O."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from slmops.domain.errors import InvalidInputError

TURN_TOKENS = 4
"""Tokens a chat template would put around a message."""
_PIECE = re.compile(r"\s?[^\W\d_]{1,5}|\d{1,3}|\s?\w|\s?[^\w\s]|\s", re.UNICODE)
_FLOOR = -20.0
_OTHERS = 1000
_SPLIT_FROM = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Token:
    """One generated token."""

    raw: bytes
    """UTF-8, possibly only a part of a character."""
    logprob: float
    """log p, nats."""

    def entry(self, top: int) -> dict[str, Any]:
        """Return it in OpenAI's `logprobs.content` form, with `top` alternatives."""
        text = self.raw.decode(errors="replace")
        listed = [(text, self.raw, self.logprob)]
        rest = other_logprob(self.logprob)
        listed += [
            (f" {n}", f" {n}".encode(), rest - n) for n in range(max(top, 1) - 1)
        ]
        listed.sort(key=lambda item: -item[2])
        return {
            "token": text,
            "bytes": list(self.raw),
            "logprob": self.logprob,
            "top_logprobs": [
                {"token": word, "bytes": list(raw), "logprob": value}
                for word, raw, value in listed[:top]
            ],
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One request, read from either endpoint."""

    prompt: str
    """All text of the prompt, for counting and for `crash_on`."""
    said: str
    """What an unforced answer repeats."""
    prefix: str = ""
    """Beginning of the answer that the caller already has."""
    turns: int = 0
    """Chat messages; 0 for a plain completion."""
    forced: str | None = None
    """The only answer the caller's grammar allows."""
    max_tokens: int | None = None
    """Longest answer; None for no limit but the context."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer and are not part of it."""

    @property
    def prompt_tokens(self) -> int:
        """Length of the prompt as a model would count it."""
        text = self.prompt + self.prefix
        return len(token_bytes(text)) + TURN_TOKENS * self.turns


def token_bytes(text: str) -> list[bytes]:
    """Cut text into tokens; four-byte characters are cut in two, as byte-level BPE does.

    >>> b"".join(token_bytes("Hello, 🙂!")).decode()
    'Hello, 🙂!'
    """
    tokens = []
    for piece in _PIECE.findall(text):
        raw = piece.encode(errors="replace")
        wide = any(
            len(character.encode(errors="replace")) == _SPLIT_FROM
            for character in piece
        )
        tokens += [raw[:-2], raw[-2:]] if wide else [raw]
    return tokens


def other_logprob(logprob: float) -> float:
    """Return log p of a token the model did not choose."""
    left = -math.expm1(logprob)
    return max(_FLOOR, math.log(left / _OTHERS)) if left > 0 else _FLOOR


def answer_tokens(
    question: Question, answer: str | None, logprob: float
) -> list[Token]:
    """Return the whole answer's tokens, before stop texts and limits.

    A forced token that is not the one echo itself would give is unlikely, and so is
    everything after it.
    """
    own = answer if answer is not None else f"You said: {question.said}"
    own_tokens = token_bytes(own.removeprefix(question.prefix))
    if question.forced is None:
        return [Token(raw=raw, logprob=logprob) for raw in own_tokens]
    forced = token_bytes(question.forced)
    agree = 0
    while forced[: agree + 1] == own_tokens[: agree + 1] and agree < len(forced):
        agree += 1
    return [
        Token(raw=raw, logprob=logprob if n < agree else other_logprob(logprob))
        for n, raw in enumerate(forced)
    ]


def literal_of(grammar: str) -> str:
    """Return the only text that ``root ::= "…"`` allows; echo knows no other grammar.

    Raises:
        InvalidInputError: another grammar.
    """
    found = re.fullmatch(r'\s*root\s*::=\s*("(?:[^"\\]|\\.)*")\s*', grammar, re.DOTALL)
    if not found:
        raise InvalidInputError("echo knows only grammars of one literal text")
    try:
        return str(json.loads(found[1], strict=False))
    except ValueError:
        raise InvalidInputError("grammar: the text is not well escaped") from None


def stop_at(text: str, stops: Sequence[str]) -> int | None:
    """Return where the first stop text begins, None when there is none."""
    places = [at for at in (text.find(stop) for stop in stops if stop) if at >= 0]
    return min(places, default=None)


def held_back(text: str, stops: Sequence[str]) -> int:
    """Return how many last characters may be the beginning of a stop text."""
    longest = max((len(stop) for stop in stops), default=0)
    for length in range(min(longest, len(text)), 0, -1):
        if any(stop.startswith(text[-length:]) for stop in stops):
            return length
    return 0
