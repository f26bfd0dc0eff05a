"""Examples as tokens, through the model's own chat template, and what is learnt of them.

Only answers are learnt: the text from where the template asks the assistant to speak
to where it ends the turn. Prompt and answer are turned into tokens apart, exactly as a
runtime does that is given the prompt and then speaks. Templates run in transformers'
sandbox.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from slmops.domain.errors import InvalidInputError
from slmops.workshop.training.data import Example, Message
from slmops.workshop.training.untyped import Tokenizer

Tokens = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenExample:
    """One sequence to train on."""

    tokens: Tokens
    """(length,) token ids, length >= 2."""
    learnt: Mask
    """(length,) whether a token is predicted and counts; never the first."""


def render_examples(
    examples: Iterable[Example],
    tokenizer: Tokenizer,
    *,
    max_tokens: int,
) -> tuple[TokenExample, ...]:
    """Turn examples into tokens; equal examples give equal tokens.

    Args:
        examples: chats that end with an answer.
        tokenizer: of transformers, with the model's chat template; without one, a
            single turn is the prompt followed by the answer and the end-of-text token.
        max_tokens: longest sequence.

    Raises:
        InvalidInputError: naming file and line: an example is too long, holds a control
            token of the model as text, or the template refuses it.
    """
    return tuple(_rendered(example, tokenizer, max_tokens) for example in examples)


def cut_text(
    tokens: Sequence[int], *, window_tokens: int, windows: int | None = None
) -> tuple[TokenExample, ...]:
    """Cut a text into sequences of equal length of which all but the first is learnt.

    Args:
        tokens: of the whole text.
        window_tokens: of one sequence, >= 2.
        windows: most of them; all when None. What is left over at the end is dropped.

    Raises:
        InvalidInputError: the text has less than one window.
    """
    possible = len(tokens) // window_tokens
    if possible < 1:
        raise InvalidInputError(
            f"text must have at least {window_tokens} tokens, got {len(tokens)}"
        )
    learnt = np.arange(window_tokens) > 0
    starts = range(0, min(possible, windows or possible) * window_tokens, window_tokens)
    return tuple(
        TokenExample(
            tokens=np.array(tokens[at : at + window_tokens], np.int32), learnt=learnt
        )
        for at in starts
    )


def _rendered(example: Example, tokenizer: Tokenizer, max_tokens: int) -> TokenExample:
    _refuse_control_tokens(example, tokenizer)
    tokens: list[int] = []
    learnt: list[bool] = []
    for text, is_answer in _parts(example, tokenizer):
        ids = tokenizer.encode(text, add_special_tokens=False)
        tokens += ids
        learnt += [is_answer] * len(ids)
    if not tokenizer.chat_template:
        # What the tokenizer itself puts first: a beginning-of-sequence token, or nothing.
        start = tokenizer.encode("")[:1]
        if start == [tokenizer.bos_token_id]:
            tokens, learnt = [*start, *tokens], [False, *learnt]
    if len(tokens) > max_tokens:
        raise InvalidInputError(
            f"{example.where}: an example must have at most {max_tokens} tokens"
            f" (parameter max_tokens), got {len(tokens)}"
        )
    return TokenExample(
        tokens=np.array(tokens, np.int32), learnt=np.array(learnt, np.bool_)
    )


def _parts(example: Example, tokenizer: Tokenizer) -> Iterator[tuple[str, bool]]:
    """Yield the text in pieces, and whether each is an answer."""
    if not tokenizer.chat_template:
        yield from _plain_parts(example, tokenizer)
        return
    turns = example.messages
    done = ""
    for index, turn in enumerate(turns):
        if turn.role != "assistant":
            continue
        asked = _templated(example, tokenizer, turns[:index], prompt=True)
        answered = _templated(example, tokenizer, turns[: index + 1], prompt=False)
        if not (asked.startswith(done) and answered.startswith(asked)):
            raise InvalidInputError(
                f"{example.where}: the model's chat template writes earlier turns anew"
                " when later ones follow; give one answer an example"
            )
        yield asked[len(done) :], False
        # White space after the end of the turn is the template's, not the model's.
        kept = answered.rstrip()
        yield kept[len(asked) :], True
        done = kept


def _plain_parts(example: Example, tokenizer: Tokenizer) -> Iterator[tuple[str, bool]]:
    if len(example.messages) != 2:  # noqa: PLR2004 - prompt and answer
        raise InvalidInputError(
            f"{example.where}: the model has no chat template, so an example must be one"
            f" prompt and its completion, got {len(example.messages)} turns"
        )
    yield example.messages[0].content, False
    yield example.answer + (tokenizer.eos_token or ""), True


def _templated(
    example: Example,
    tokenizer: Tokenizer,
    turns: Sequence[Message],
    *,
    prompt: bool,
) -> str:
    from jinja2 import TemplateError

    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    try:
        text: str = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=prompt
        )
    except (TemplateError, TypeError, ValueError) as error:
        raise InvalidInputError(
            f"{example.where}: the model's chat template refuses it: {error}"
        ) from None
    return text


def _refuse_control_tokens(example: Example, tokenizer: Tokenizer) -> None:
    """Refuse text that would be read as the end of a turn, or as another speaker."""
    for turn in example.messages:
        for token in tokenizer.all_special_tokens:
            if token in turn.content:
                raise InvalidInputError(
                    f"{example.where}: content must not hold the model's control token"
                    f" {token!r}"
                )
