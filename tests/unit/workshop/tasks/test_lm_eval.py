"""What lm-eval asks of a model is answered as the logits say; lm-eval is not needed."""

from collections.abc import Iterator

import numpy as np
import pytest

from slmops.domain.errors import InvalidInputError
from slmops.runtimes.base import WorkerSettings
from slmops.runtimes.continuations import Continuations, open_continuations
from slmops.testing.tiny_gguf import write_tiny_llama
from slmops.workshop.tasks.chat import open_chat
from slmops.workshop.tasks.lm_eval import HarnessAnswers

LIMIT = 64
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Continuations]:
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    write_tiny_llama(path)
    found = open_continuations("llamacpp", path, WorkerSettings(context_tokens=LIMIT))
    yield found
    found.close()


@pytest.fixture(scope="module")
def answers(
    scorer: Continuations, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[HarnessAnswers]:
    path = tmp_path_factory.mktemp("served") / "tiny.gguf"
    write_tiny_llama(path)
    with open_chat("llamacpp", path, WorkerSettings(context_tokens=LIMIT)) as worker:
        yield HarnessAnswers(scorer, worker, LIMIT)


def by_logits(scorer: Continuations, context: list[int], tokens: list[int]) -> float:
    logits = scorer.logits([*context, *tokens]).astype(np.float64)
    logprobs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    begin = len(context) - 1
    return float(sum(logprobs[begin + at, token] for at, token in enumerate(tokens)))


def start(scorer: Continuations) -> list[int]:
    return (scorer.tokenize_prompt("") or [scorer.end_of_turn("")])[:1]


def test_choices_of_a_question_are_scored_behind_it(
    scorer: Continuations, answers: HarnessAnswers
) -> None:
    pairs = [("is it", " yes"), ("is it", " no"), ("was it ", "so")]
    found = answers.loglikelihood(pairs)
    for (context, continuation), (value, _) in zip(pairs, found, strict=True):
        head = scorer.tokenize_prompt(context.rstrip())
        whole = scorer.tokenize_prompt(context + continuation)
        assert value == pytest.approx(
            by_logits(scorer, head, whole[len(head) :]), abs=1e-3
        )


def test_an_empty_context_is_the_start_of_a_text(
    scorer: Continuations, answers: HarnessAnswers
) -> None:
    [(value, greedy)] = answers.loglikelihood([("", "abc")])
    assert value == pytest.approx(
        by_logits(scorer, start(scorer), scorer.tokenize("abc")), abs=1e-3
    )
    assert not greedy


def test_a_context_that_is_too_long_loses_its_beginning(
    scorer: Continuations, answers: HarnessAnswers
) -> None:
    long = "".join(chr(97 + at % 26) + "!" for at in range(100))
    [(value, _)] = answers.loglikelihood([(long, "?x")])
    head = scorer.tokenize_prompt(long)
    tail = scorer.tokenize_prompt(long + "?x")[len(head) :]
    kept = head[-(LIMIT - len(tail)) :]
    assert value == pytest.approx(by_logits(scorer, kept, tail), abs=1e-3)


def test_a_long_text_counts_each_token_once(
    scorer: Continuations, answers: HarnessAnswers
) -> None:
    text = "".join(chr(97 + at % 26) + "!" for at in range(50))
    tokens = scorer.tokenize(text)
    step = LIMIT - 1
    assert step < len(tokens) < 2 * step
    first = by_logits(scorer, start(scorer), tokens[:step])
    rest = tokens[step:]
    back = tokens[step - (LIMIT - len(rest)) : step]
    assert answers.rolling(text) == pytest.approx(
        first + by_logits(scorer, back, rest), abs=1e-2
    )


def test_generation_is_greedy_or_refused(answers: HarnessAnswers) -> None:
    assert answers.generate("a b", {"until": "x", "max_gen_toks": 3}) == (
        answers.generate("a b", {"until": ["x"], "max_gen_toks": 3})
    )
    with pytest.raises(InvalidInputError, match="only greedy"):
        answers.generate("a", {"do_sample": True, "temperature": 0.7})
