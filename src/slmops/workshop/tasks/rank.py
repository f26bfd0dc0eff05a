"""Labels by the probability that the answer begins with them.

A label is scored as ``log p(label | prompt)``, the sum over its tokens, not divided by
their number. A label that begins another one also has to end there: ``card`` is scored
with the end of turn behind it when ``card arrival`` is a label too. So labels are
disjoint events, and the softmax of their scores is p(label | the answer begins with a
label), which is what calibration is about. Dividing by length gives no probability of
anything, and a tuned model needs none; docs/tasks.md has both measured.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from slmops.domain.errors import InvalidInputError
from slmops.runtimes.base import WorkerSettings
from slmops.runtimes.continuations import Continuations, open_continuations
from slmops.workshop.tasks.marking import RawAnswer

MARGIN_NATS = 9.0
"""A label certainly e⁻⁹ times less likely than the likeliest is not followed to its end.
The answer is the same; what such a label takes from the confidence is below 0.0002."""


def rank_labels(
    model: tuple[str, Path, WorkerSettings],
    prompts: Mapping[int, str],
    labels: Sequence[str],
    following: str,
    lines: Sequence[int],
) -> Iterator[RawAnswer]:
    """Yield the likeliest label of each prompt, with its probability among the labels.

    Args:
        model: runtime, artefact and how to load it.
        prompts: line → rendered prompt, of all examples: what they share is computed once.
        labels: two or more.
        following: what the template writes behind an answer: it has the end of turn.
        lines: which prompts to answer, in this order.

    Raises:
        InvalidInputError: the runtime cannot rank, or a prompt does not fit the context.
    """
    runtime, artefact, settings = model
    scorer = open_continuations(runtime, artefact, settings)
    try:
        end = scorer.end_of_turn(following)
        answers = disjoint([scorer.tokenize(label) for label in labels], end)
        tokens = {line: scorer.tokenize_prompt(text) for line, text in prompts.items()}
        scorer.hold(shared_beginning(list(tokens.values())))
        for line in lines:
            sums = label_sums(scorer, tokens[line], answers, line)
            chances = softmax(sums)
            best = int(sums.argmax())
            yield RawAnswer(text=labels[best], confidence=float(chances[best]))
    finally:
        scorer.close()


def disjoint(labels: Sequence[Sequence[int]], end: int) -> list[list[int]]:
    """Return labels as tokens such that none begins another one.

    >>> disjoint([[7], [7, 8], [9]], 0)
    [[7, 0], [7, 8], [9]]
    """
    begun = {tuple(label[:size]) for label in labels for size in range(len(label))}
    return [[*label, end] if tuple(label) in begun else list(label) for label in labels]


def label_sums(
    scorer: Continuations,
    prompt: Sequence[int],
    answers: Sequence[Sequence[int]],
    line: int,
) -> npt.NDArray[np.float64]:
    """Return log p of every answer as a whole, (answers,), nats.

    Exact for the likeliest and all within `MARGIN_NATS` of it, an upper bound for others.
    """
    try:
        scored = scorer.score(prompt, answers, margin=MARGIN_NATS)
    except InvalidInputError as error:
        raise InvalidInputError(f"example of line {line}: {error}") from None
    return np.array([each.sum() for each in scored])


def shared_beginning(prompts: Sequence[Sequence[int]]) -> list[int]:
    """Return the tokens all prompts begin with, at least one token short of each.

    >>> shared_beginning([[1, 2, 3], [1, 2, 4]]), shared_beginning([[1, 2], [1, 2]])
    ([1, 2], [1])
    """
    # What the first and the last in order share, all between them share too.
    first, last = min(map(list, prompts)), max(map(list, prompts))
    shared = 0
    while shared < min(len(first), len(last)) and first[shared] == last[shared]:
        shared += 1
    return first[: min(shared, min(map(len, prompts)) - 1)]


def softmax(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Turn log-probabilities into probabilities that add to one."""
    raised = np.exp(values - values.max())
    shares: npt.NDArray[np.float64] = raised / raised.sum()
    return shares
