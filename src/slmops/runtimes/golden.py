"""Golden prompts: the reference's answers, and how likely another model finds them.

Every question goes through the chat path, so a wrong or missing chat template shows. An
answer is scored teacher-forced in one request: a grammar allows only the expected text,
and a bias prefers the expected tokens over other spellings of it. Neither touches the
reported log-probabilities, which llama-server takes before sampling.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from slmops.domain.errors import InvalidInputError, UnavailableError
from slmops.domain.golden import PromptScore
from slmops.domain.release import ExpectedToken, GoldenPrompt, GoldenSet
from slmops.runtimes.address import Address, open_client

LISTED = 20
"""Alternatives asked for when a token has to be looked up."""
TIMEOUT_S = 60.0
"""Longest wait for one answer."""
_BIAS = 100.0
_CONTROL = 0x20


@dataclass(frozen=True, kw_only=True, slots=True)
class GoldenRun:
    """What one model made of the golden prompts."""

    scores: tuple[PromptScore, ...]
    """One per prompt, in order."""
    decode_tokens_per_s: float | None
    """Generation speed over all answers; None when the runtime did not say."""


def record_golden(
    address: Address,
    prompts: Sequence[str],
    answer_tokens: int,
    *,
    names: Sequence[str] = (),
    timeout_s: float = TIMEOUT_S,
) -> GoldenSet:
    """Ask the reference and keep its greedy answers with their log-probabilities.

    An answer ends early at the model's end of turn, or before a token that is only a
    part of a character.

    Args:
        address: of the worker that serves the reference.
        prompts: one or more user turns.
        answer_tokens: longest answer, at least 1.
        names: what messages call the prompts, in their order; empty calls them by index.
        timeout_s: longest wait for one answer.

    Raises:
        InvalidInputError: an empty answer, or a prompt longer than the context.
        UnavailableError: the worker did not answer.
    """
    if not prompts or answer_tokens < 1:
        raise InvalidInputError(
            f"golden prompts and answer_tokens must be >= 1,"
            f" got {len(prompts)} and {answer_tokens}"
        )
    recorded = []
    with _Client(address, timeout_s, names) as client:
        for index, prompt in enumerate(prompts):
            asked = client.ask(index, [_turn("user", prompt)], max_tokens=answer_tokens)
            answer = tuple(_whole_tokens(asked))
            if not answer:
                raise InvalidInputError(
                    f"{client.name(index)}: the reference's answer to {prompt[:60]!r}"
                    " must begin with a token of whole characters, got none; take"
                    " prompts that this model answers, in a file that golden.prompts"
                    " names"
                )
            recorded.append(GoldenPrompt(prompt=prompt, answer=answer))
    return GoldenSet(prompts=tuple(recorded))


def ask_golden(
    address: Address, golden_set: GoldenSet, *, timeout_s: float = TIMEOUT_S
) -> GoldenRun:
    """Return how likely a model finds every token of the reference's answers.

    A token that the model would spell otherwise is looked up in the list of likely ones;
    outside that list it gets the smallest listed log-probability.

    Raises:
        InvalidInputError: a prompt is longer than the worker's context.
        UnavailableError: the worker did not answer, or not in OpenAI's form.
    """
    scores, steps, milliseconds = [], 0, 0.0
    with _Client(address, timeout_s) as client:
        for index, golden in enumerate(golden_set.prompts):
            asked = client.ask(
                index, [_turn("user", golden.prompt)], **_forced(golden.answer)
            )
            scores.append(_score(client, index, golden, asked.entries))
            steps += asked.decode_steps
            milliseconds += asked.decode_ms
    speed = steps / milliseconds * 1000 if steps and milliseconds > 0 else None
    return GoldenRun(scores=tuple(scores), decode_tokens_per_s=speed)


def _score(
    client: "_Client", index: int, golden: GoldenPrompt, entries: list[dict[str, Any]]
) -> PromptScore:
    agree = 0
    for entry, token in zip(entries, golden.answer, strict=False):
        if entry["token"] != token.text:
            break
        agree += 1
    found = [_logprob(entry) for entry in entries[:agree]]
    missing = range(agree, len(golden.answer))
    found += [_look_up(client, index, golden, place) for place in missing]
    return PromptScore(logprobs=tuple(found))


def _look_up(client: "_Client", index: int, golden: GoldenPrompt, place: int) -> float:
    """Score one token after the answer's earlier ones, given as begun answer."""
    expected = golden.answer[place]
    begun = "".join(token.text for token in golden.answer[:place])
    turns = [_turn("user", golden.prompt)]
    if begun:
        turns.append(_turn("assistant", begun))
    entries = client.ask(index, turns, **_forced((expected,))).entries
    if not entries:
        raise UnavailableError(f"golden prompt {index}: no token came back")
    listed = {
        item["token"]: _logprob(item)
        for item in [*entries[0].get("top_logprobs", []), entries[0]]
    }
    return listed.get(expected.text, min(listed.values()))


def _forced(answer: Sequence[ExpectedToken]) -> dict[str, Any]:
    text = "".join(token.text for token in answer)
    return {
        "max_tokens": len(answer),
        "grammar": f'root ::= "{_escaped(text)}"',
        # The grammar also allows an expected token that begins a longer expected one.
        "logit_bias": [
            [word, _BIAS * len(word)]
            for word in sorted({token.text for token in answer})
        ],
    }


def _escaped(text: str) -> str:
    r"""Write `text` as GBNF understands it inside quotes.

    >>> print(_escaped('say "hi"'))
    say \"hi\"
    """
    quoted = text.replace("\\", "\\\\").replace('"', '\\"')
    return "".join(
        f"\\u{ord(character):04x}" if ord(character) < _CONTROL else character
        for character in quoted
    )


def _whole_tokens(asked: "_Asked") -> list[ExpectedToken]:
    """Take tokens up to the end of turn, or to one that is a part of a character.

    llama-server joins the tokens of a character into one entry with the last one's
    log-probability; then there are fewer entries than tokens.
    """
    joined = asked.completion_tokens != len(asked.entries)
    whole = []
    for entry in asked.entries:
        try:
            text = bytes(entry["bytes"]).decode()
        except (KeyError, TypeError, ValueError):
            break
        if not text or (joined and not text.isascii()):
            break
        whole.append(ExpectedToken(text=text, logprob=_logprob(entry)))
    return whole


def _logprob(entry: dict[str, Any]) -> float:
    """Return log p: never above zero, which rounding can give, and finite."""
    value = float(entry["logprob"])
    return -math.inf if math.isnan(value) else min(value, 0.0)


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Asked:
    """One answer of the worker."""

    entries: list[dict[str, Any]]
    completion_tokens: int
    decode_steps: int
    decode_ms: float


class _Client:
    """Asks one worker; messages name prompts by index or place, never by text."""

    def __init__(
        self, address: Address, timeout_s: float, names: Sequence[str] = ()
    ) -> None:
        self._names = names
        self._http = open_client(address, timeout_s=timeout_s)

    def __enter__(self) -> "_Client":
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def name(self, index: int) -> str:
        """Return what messages call a prompt."""
        return self._names[index] if self._names else f"golden prompt {index}"

    def ask(
        self, index: int, messages: list[dict[str, str]], **options: object
    ) -> _Asked:
        """Ask for a greedy answer with log-probabilities."""
        body = {
            "messages": messages,
            "temperature": 0,
            "logprobs": True,
            "top_logprobs": LISTED,
            # What a slot has cached shifts log-probabilities when it was computed beside
            # other requests: 0.18 nats were seen.
            "cache_prompt": False,
            **options,
        }
        where = self.name(index)
        try:
            answer = self._http.post("/v1/chat/completions", json=body)
        except httpx.HTTPError as error:
            raise UnavailableError(
                f"{where}: the worker did not answer: {type(error).__name__}"
            ) from None
        if answer.is_client_error:
            raise InvalidInputError(f"{where}: refused: {answer.text[:200]}")
        if not answer.is_success:
            raise UnavailableError(f"{where}: the worker answered {answer.status_code}")
        return _read_answer(answer, where)


def _read_answer(answer: httpx.Response, where: str) -> _Asked:
    try:
        tree = answer.json()
        entries = tree["choices"][0]["logprobs"]["content"]
        timings = tree.get("timings") or {}
        # The first token comes out of the prefill: n tokens are n - 1 decode steps.
        return _Asked(
            entries=list(entries),
            completion_tokens=int(tree["usage"]["completion_tokens"]),
            decode_steps=max(int(timings.get("predicted_n", 0)) - 1, 0),
            decode_ms=float(timings.get("predicted_ms", 0.0)),
        )
    except (ValueError, KeyError, TypeError, IndexError):
        raise UnavailableError(
            f"{where}: the worker answered without log-probabilities"
        ) from None
