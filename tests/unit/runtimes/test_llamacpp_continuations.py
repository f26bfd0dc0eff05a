"""Continuations of a prompt score as they would one by one."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from slmops.domain.errors import InvalidInputError
from slmops.runtimes.base import WorkerSettings
from slmops.runtimes.continuations import Continuations, open_continuations
from slmops.runtimes.llamacpp_continuations import LlamaCppContinuations
from slmops.testing.tiny_gguf import write_tiny_llama

PROMPT = [1, 40, 41, 42, 43, 44, 45]


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Continuations]:
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    write_tiny_llama(path)
    found = open_continuations(
        "llamacpp", path, WorkerSettings(threads=1, context_tokens=128)
    )
    yield found
    found.close()


def one_by_one(
    scorer: Continuations, prompt: list[int], tokens: list[int]
) -> list[float]:
    logits = scorer.logits([*prompt, *tokens]).astype(np.float64)
    logprobs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    begin = len(prompt) - 1
    return [float(logprobs[begin + at, token]) for at, token in enumerate(tokens)]


def test_a_tree_scores_as_each_continuation_alone(scorer: Continuations) -> None:
    continuations = [[50, 51, 2], [50, 52, 2], [50, 2], [60], [61, 62, 63, 64, 2]]
    found = scorer.score(PROMPT, continuations)
    for scores, tokens in zip(found, continuations, strict=True):
        assert scores.tolist() == pytest.approx(
            one_by_one(scorer, PROMPT, tokens), abs=1e-4
        )


def test_more_continuations_than_sequences_score_the_same(
    scorer: Continuations,
) -> None:
    continuations = [[first, 80, 2] for first in range(10, 200)]
    found = scorer.score(PROMPT, continuations)
    assert len(found) == 190
    for at in (0, 63, 64, 189):
        assert found[at].tolist() == pytest.approx(
            one_by_one(scorer, PROMPT, continuations[at]), abs=1e-4
        )


def test_what_was_scored_before_changes_nothing(scorer: Continuations) -> None:
    scorer.hold(PROMPT[:3])
    first = scorer.score(PROMPT, [[50, 51], [52, 53]])
    scorer.score([*PROMPT[:3], 99, 98], [[70, 71, 72]])
    again = scorer.score(PROMPT, [[50, 51], [52, 53]])
    assert [each.tolist() for each in first] == [each.tolist() for each in again]
    other = scorer.score([9, 9, 9], [[50, 51]])
    assert other[0].tolist() == pytest.approx(
        one_by_one(scorer, [9, 9, 9], [50, 51]), abs=1e-4
    )


def test_the_greedy_continuation_is_known_as_such(scorer: Continuations) -> None:
    written: list[int] = []
    for _ in range(3):
        written.append(int(scorer.logits([*PROMPT, *written])[-1].argmax()))
    other = [*written[:2], (written[2] + 1) % 300]
    scorer.score(PROMPT, [written, other, [(written[0] + 1) % 300]])
    assert scorer.greedy == [True, False, False]


def test_a_margin_keeps_the_likeliest_exact_and_bounds_the_rest(
    scorer: Continuations,
) -> None:
    short = [[first] for first in range(10, 20)]
    long = [[first, 80, 81, 2] for first in range(30, 60)]
    continuations = [*short, *long]
    whole = [each.sum() for each in scorer.score(PROMPT, continuations)]
    cut = scorer.score(PROMPT, continuations, margin=2.0)
    best, left_off = max(whole), 0
    for full, part, tokens in zip(whole, cut, continuations, strict=True):
        if len(part) == len(tokens):
            assert part.sum() == pytest.approx(full, abs=1e-4)
        else:
            left_off += 1
            assert full - 1e-4 <= part.sum() < best - 2.0 + 1e-4
    assert left_off == len(long)
    assert int(np.argmax([each.sum() for each in cut])) == int(np.argmax(whole))


@pytest.mark.parametrize(
    ("prompt", "continuations"),
    [
        (PROMPT, []),
        (PROMPT, [[5], []]),
        (PROMPT, [[300]]),
        ([], [[5]]),
        ([5] * 127, [[5, 6]]),
        (PROMPT, [[5] * 300]),
    ],
)
def test_what_cannot_be_scored_is_refused(
    scorer: Continuations, prompt: list[int], continuations: list[list[int]]
) -> None:
    with pytest.raises(InvalidInputError, match="must"):
        scorer.score(prompt, continuations)


def test_the_end_of_a_turn_is_what_the_template_writes(scorer: Continuations) -> None:
    assert scorer.end_of_turn("<|im_end|>\n<|im_start|>user\n") == 2


def test_a_runtime_without_continuations_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="ask with method generate"):
        open_continuations("echo", tmp_path / "a", WorkerSettings())


class _Watched(LlamaCppContinuations):
    """Remembers how many tokens each batch had."""

    sizes: list[int]

    def __init__(self, artefact: Path, settings: WorkerSettings) -> None:
        self.sizes = []
        super().__init__(artefact, settings)

    def _run(self, rows: Sequence[tuple[int, int, tuple[int, ...], bool]]) -> None:
        self.sizes.append(len(rows))
        super()._run(rows)


def _labels(seed: int) -> list[list[int]]:
    """Twenty answers of 2 to 6 tokens that share beginnings as names of intents do."""
    chance = np.random.default_rng(seed)
    found: list[list[int]] = []
    while len(found) < 20:
        begin = [int(chance.integers(8))]
        if found and chance.random() < 0.6:
            begin = found[int(chance.integers(len(found)))][:2]
        tail = chance.integers(10, 60, int(chance.integers(1, 5))).tolist()
        if [*begin, *tail] not in found:
            found.append([*begin, *tail])
    return [[*each, 2] for each in found]


@pytest.mark.parametrize("seed", range(4))
def test_a_margin_changes_no_likeliest_answer_whatever_they_share(
    scorer: Continuations, seed: int
) -> None:
    answers = _labels(seed)
    whole = [sum(one_by_one(scorer, PROMPT, tokens)) for tokens in answers]
    for margin in (0.0, 1.0, 9.0):
        cut = scorer.score(PROMPT, answers, margin=margin)
        best = int(np.argmax(whole))
        assert int(np.argmax([each.sum() for each in cut])) == best
        for full, part, tokens in zip(whole, cut, answers, strict=True):
            if full >= whole[best] - margin:
                assert len(part) == len(tokens)
            rounding = 1e-4 * len(tokens)
            assert part.sum() >= full - rounding
            if len(part) == len(tokens):
                assert part.sum() == pytest.approx(full, abs=rounding)


def test_labels_are_computed_in_few_full_batches(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_tiny_llama(path)
    watched = _Watched(path, WorkerSettings(threads=1, context_tokens=128))
    try:
        watched.hold(PROMPT[:-1])
        answers = _labels(7)
        nodes = len({tuple(a[:end]) for a in answers for end in range(1, len(a))})
        assert nodes > 32
        watched.sizes = []
        watched.score(PROMPT, answers, margin=9.0)
        # The prompt's own token, then batches of 16: it is small ones that are dear.
        assert watched.sizes[0] == 1
        assert watched.sizes[1:3] == [16, 16]
        assert sum(watched.sizes[1:]) <= nodes
        watched.sizes = []
        watched.score(PROMPT, answers)
        assert watched.sizes == [1, nodes], "without a margin nothing is to be awaited"
    finally:
        watched.close()
