"""How likely llama.cpp finds each of several continuations of one prompt.

The prompt is computed once; the continuations, as a tree of shared beginnings, in one
batch behind it. A node of the tree belongs to every sequence that passes through it,
which the unified key-value cache allows, so nothing is computed twice. The last token
of a continuation is only looked up, never computed.
"""

import ctypes
import itertools
import math
from collections.abc import Iterator, Sequence
from ctypes import POINTER, c_bool, c_int8, c_int32, c_void_p
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmops.domain.errors import InvalidInputError, UnavailableError
from slmops.runtimes.base import WorkerSettings
from slmops.runtimes.llamacpp_scorer import LlamaCppScorer, _Batch, _ContextParams

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

MAX_SEQUENCES = 65
"""The prompt's own and those of 64 continuations; more are computed in several batches."""
_TREE_TOKENS = 256
_WAVE_TOKENS = 16
"""Most nodes computed before it is looked at again which are still likely enough."""
_GUESS_NATS = 2.0
"""What a token is taken to cost its continuation where that is not known yet."""
_UNIFIED, _FLAGS = 29, slice(24, 30)
"""Of the context's structure behind its named fields: embeddings, offload_kqv, no_perf,
op_offload, swa_full, kv_unified."""
_FLAG_DEFAULTS = [0, 1, 1, 1, 1, 0]


@dataclass(slots=True)
class _Node:
    """One token of a continuation, or several continuations' shared one."""

    token: int
    depth: int
    sequences: list[int]
    """The continuations through it that go on behind it, from 1."""
    below: "list[_Node]"
    bound: float = -math.inf
    """log p of the tokens down to here: none of its continuations is likelier."""
    taken: bool = False


class _Tree:
    """Continuations by what they begin with; computed along what is likely enough."""

    def __init__(
        self,
        continuations: Sequence[Sequence[int]],
        first: "npt.NDArray[np.float64]",
    ) -> None:
        self._continuations = continuations
        self.scores: list[list[float]] = [[] for _ in continuations]
        self.greedy = [True for _ in continuations]
        sequences = range(1, len(continuations) + 1)
        self._waiting = _grow(continuations, sequences, 0)
        self.best = self._look_up(sequences, self._waiting, (0, 0.0), first)

    def next_wave(self, least: float, most: int) -> list[_Node]:
        """Take at most `most` nodes to compute together, none known to be below `least`.

        The likeliest come first. A node behind one of the wave is taken on a guess, so
        that the wave is full: small batches cost far more a token than large ones.
        """
        order = itertools.count()
        heap = [
            (-node.bound, next(order), node)
            for node in self._waiting
            if node.bound >= least
        ]
        heapify(heap)
        wave: list[_Node] = []
        while heap and len(wave) < most:
            guess, _, node = heappop(heap)
            node.taken = True
            wave.append(node)
            for below in node.below:
                if least <= -guess - _GUESS_NATS:
                    heappush(heap, (guess + _GUESS_NATS, next(order), below))
        self._waiting = [node for node in self._waiting if not node.taken]
        return wave

    def follow(self, node: _Node, logprobs: "npt.NDArray[np.float64]") -> float:
        """Add what follows a node and return log p of the likeliest that ends there."""
        at = (node.depth + 1, node.bound)
        best = self._look_up(node.sequences, node.below, at, logprobs)
        self._waiting += [below for below in node.below if not below.taken]
        return best

    def _look_up(
        self,
        sequences: Sequence[int],
        nodes: Sequence[_Node],
        at: tuple[int, float],
        logprobs: "npt.NDArray[np.float64]",
    ) -> float:
        depth, bound = at
        best, top = -math.inf, float(logprobs.max())
        for sequence in sequences:
            tokens = self._continuations[sequence - 1]
            score = float(logprobs[tokens[depth]])
            self.scores[sequence - 1].append(score)
            self.greedy[sequence - 1] &= score >= top
            if len(tokens) == depth + 1:
                best = max(best, bound + score)
        for node in nodes:
            node.bound = bound + float(logprobs[node.token])
        return best


def _grow(
    continuations: Sequence[Sequence[int]], sequences: Sequence[int], depth: int
) -> list[_Node]:
    """Return the nodes at a depth, with all below; last tokens are none."""
    through: dict[int, list[int]] = {}
    for sequence in sequences:
        tokens = continuations[sequence - 1]
        if len(tokens) > depth + 1:
            through.setdefault(tokens[depth], []).append(sequence)
    return [
        _Node(
            token=token,
            depth=depth,
            sequences=members,
            below=_grow(continuations, members, depth + 1),
        )
        for token, members in through.items()
    ]


class LlamaCppContinuations(LlamaCppScorer):
    """A scorer that also ranks continuations; see `slmops.runtimes.continuations.Continuations`."""

    def __init__(self, artefact: Path, settings: WorkerSettings) -> None:
        super().__init__(artefact, settings)
        for name, result, arguments in _PROTOTYPES:
            function = getattr(self._lib, name)
            function.restype, function.argtypes = result, arguments
        self._memory = self._lib.llama_get_memory(self._context)
        self._held: list[int] = []
        self.greedy: list[bool] = []

    def end_of_turn(self, following: str) -> int:
        """Return the token that ends an answer.

        Args:
            following: what the model's chat template writes behind an answer; its first
                token that ends generation is the one. Without any, the model's own end.
        """
        for token in self.tokenize_prompt(following):
            if self._lib.llama_vocab_is_eog(self._vocab, token):
                return token
        return int(self._lib.llama_vocab_eos(self._vocab))

    def tokenize_prompt(self, text: str) -> list[int]:
        """Return token ids of a rendered prompt: special tokens are parsed and added."""
        raw = text.encode()
        room = len(raw) + 8
        tokens = (c_int32 * room)()
        count = self._lib.llama_tokenize(
            self._vocab, raw, len(raw), tokens, room, True, True
        )
        if count < 0:
            raise InvalidInputError(
                f"prompt of {len(raw)} bytes could not be tokenized"
            )
        return list(tokens[:count])

    def hold(self, tokens: Sequence[int]) -> None:
        """Compute the beginning that all prompts share, once."""
        self._lib.llama_memory_clear(self._memory, True)
        self._held = list(tokens)
        if self._held:
            self._compute(self._held, 0)

    def score(
        self,
        prompt: Sequence[int],
        continuations: Sequence[Sequence[int]],
        *,
        margin: float = math.inf,
    ) -> "list[npt.NDArray[np.float64]]":
        """Return the log-probability of each token of each continuation, nats.

        What comes out does not depend on what was scored before.

        Args:
            prompt: 1 or more tokens.
            continuations: each of 1 or more tokens, behind the prompt.
            margin: nats, >= 0. A continuation that is certainly so much less likely than
                the likeliest may be left off early: its array is shorter, and what is
                there adds up to an upper bound.

        Raises:
            InvalidInputError: a token outside the vocabulary, nothing to score, or a
                prompt and its longest continuation longer than the context.
            UnavailableError: the engine failed.
        """
        self._check_all(prompt, continuations)
        kept = len(self._held)
        if not (kept < len(prompt) and list(prompt[:kept]) == self._held):
            self.hold([])
            kept = 0
        first = self._compute(prompt[kept:], kept)
        found, best = [], -math.inf
        self.greedy = []
        for part in _parts(continuations):
            tree = _Tree(part, first)
            best = max(best, tree.best)
            found += self._score_tree(tree, len(prompt), best, margin)
            best = max([best, *_complete(found, continuations)])
            self.greedy += tree.greedy
        self._lib.llama_memory_seq_rm(self._memory, 0, kept, -1)
        return found

    def logits(self, tokens: Sequence[int]) -> "npt.NDArray[np.float32]":
        """Score one window from empty context; see `slmops.runtimes.base.Scorer`."""
        scores = super().logits(tokens)
        self.hold([])
        return scores

    def _context_params(self, settings: WorkerSettings) -> _ContextParams:
        parameters = super()._context_params(settings)
        if list(parameters.rest[_FLAGS]) != _FLAG_DEFAULTS:
            raise UnavailableError(
                f"the context's flags must default to {_FLAG_DEFAULTS}, got"
                f" {list(parameters.rest[_FLAGS])}: llama.cpp's structures have changed"
            )
        parameters.rest[_UNIFIED] = 1
        parameters.n_seq_max = MAX_SEQUENCES
        parameters.n_ctx = settings.context_tokens + _TREE_TOKENS
        parameters.n_batch = parameters.n_ubatch = _TREE_TOKENS
        parameters.n_outputs_max = parameters.n_outputs_max_per_seq = _TREE_TOKENS
        return parameters

    def _check_all(
        self, prompt: Sequence[int], continuations: Sequence[Sequence[int]]
    ) -> None:
        if not continuations or not all(continuations):
            raise InvalidInputError("continuations must have at least one token each")
        longest = max(map(len, continuations))
        if longest > _TREE_TOKENS:
            raise InvalidInputError(
                f"a continuation must have at most {_TREE_TOKENS} tokens, got {longest}"
            )
        self._check(prompt)
        for tokens in continuations:
            self._check(tokens)
        if len(prompt) + longest > self._limit:
            raise InvalidInputError(
                f"a prompt and its continuation must have at most {self._limit} tokens,"
                f" got {len(prompt)} and {longest}"
            )

    def _compute(self, tokens: Sequence[int], begin: int) -> "npt.NDArray[np.float64]":
        """Compute tokens of sequence 0 and return log-probabilities behind the last."""
        for first in range(0, len(tokens), _TREE_TOKENS):
            part = tokens[first : first + _TREE_TOKENS]
            last = first + len(part) - 1 if first + len(part) == len(tokens) else -1
            self._run(
                [
                    (token, begin + at, (0,), at == last)
                    for at, token in enumerate(part, start=first)
                ]
            )
        return self._row(-1)

    def _score_tree(
        self, tree: "_Tree", begin: int, best: float, margin: float
    ) -> "list[npt.NDArray[np.float64]]":
        """Compute a tree in waves, the likeliest nodes first, what precedes before it."""
        import numpy as np

        sequences = range(1, len(tree.scores) + 1)
        for sequence in sequences:
            self._lib.llama_memory_seq_cp(self._memory, 0, sequence, -1, -1)
        # What nothing can rule out is computed at once.
        most = _WAVE_TOKENS if math.isfinite(margin) else _TREE_TOKENS
        while wave := tree.next_wave(best - margin, most):
            self._run(
                [
                    (node.token, begin + node.depth, tuple(node.sequences), True)
                    for node in wave
                ]
            )
            for row, node in enumerate(wave):
                best = max(best, tree.follow(node, self._row(row)))
        for sequence in sequences:
            self._lib.llama_memory_seq_rm(self._memory, sequence, -1, -1)
        return [np.array(scores) for scores in tree.scores]

    def _row(self, row: int) -> "npt.NDArray[np.float64]":
        import numpy as np

        found = self._lib.llama_get_logits_ith(self._context, row)
        if not found:
            raise UnavailableError("llama.cpp gave no logits")
        logits = np.ctypeslib.as_array(found, (self.vocabulary,))
        top = float(logits.max())
        if not np.isfinite(top):
            raise InvalidInputError(
                "the model's logits are not finite: its weights are bad"
            )
        total = float(np.exp(logits - top).sum(dtype=np.float64))
        shifted: npt.NDArray[np.float64] = np.asarray(logits, np.float64) - top
        return shifted - math.log(total)

    def _run(self, rows: Sequence[tuple[int, int, tuple[int, ...], bool]]) -> None:
        """Decode rows of token, position, sequences, and whether logits are wanted."""
        count = len(rows)
        sequences = [(c_int32 * len(row[2]))(*row[2]) for row in rows]
        batch = _Batch(
            n_tokens=count,
            token=(c_int32 * count)(*(row[0] for row in rows)),
            pos=(c_int32 * count)(*(row[1] for row in rows)),
            n_seq_id=(c_int32 * count)(*(len(row[2]) for row in rows)),
            seq_id=(POINTER(c_int32) * count)(
                *(ctypes.cast(each, POINTER(c_int32)) for each in sequences)
            ),
            logits=(c_int8 * count)(*(row[3] for row in rows)),
        )
        code = self._lib.llama_decode(self._context, batch)
        if code != 0:
            raise UnavailableError(f"llama_decode failed ({code})")


def _parts(continuations: Sequence[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
    """Cut continuations into parts whose trees fit one batch."""
    part: list[Sequence[int]] = []
    size = 0
    for tokens in continuations:
        full = len(part) == MAX_SEQUENCES - 1 or size + len(tokens) > _TREE_TOKENS
        if part and full:
            yield part
            part, size = [], 0
        part.append(tokens)
        size += len(tokens)
    if part:
        yield part


def _complete(
    found: "Sequence[npt.NDArray[np.float64]]", continuations: Sequence[Sequence[int]]
) -> Iterator[float]:
    """Yield log p of what was scored to its end."""
    for scores, tokens in zip(found, continuations, strict=False):
        if len(scores) == len(tokens):
            yield float(scores.sum())


_PROTOTYPES: tuple[tuple[str, Any, list[Any]], ...] = (
    ("llama_memory_seq_rm", c_bool, [c_void_p, c_int32, c_int32, c_int32]),
    ("llama_memory_seq_cp", None, [c_void_p, c_int32, c_int32, c_int32, c_int32]),
    ("llama_vocab_is_eog", c_bool, [c_void_p, c_int32]),
    ("llama_vocab_eos", c_int32, [c_void_p]),
)
