"""How a tokenizer builds a token, so that a smaller vocabulary can still build it.

Two kinds, as llama.cpp runs them. *Byte-level BPE* (``gpt2``) applies ranked merges to
byte letters. *SentencePiece-style* (``llama``) joins neighbours whose text is a token,
best score first, and falls back to byte tokens.

Both are greedy, and that gives the rule this package rests on. A text's run picks, at
each step, the best pair it has. Let a smaller vocabulary keep the text's final tokens
and every token on the way to them: all merges of the run still exist, fewer compete,
so each is still the best, and the text gets the same tokens. Within one final token
the run is the run on that token's text alone, because no merge crosses its border;
`TokenRules.steps` is that run.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from slmops.domain.errors import InvalidInputError
from slmops.workshop.gguf_file import GgufHeader, Scalar

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Token types, as ``tokenizer.ggml.token_type`` numbers them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Vocabulary:
    """A model's tokens as its file lists them."""

    texts: tuple[str, ...]
    """Token id → text: byte letters (BPE), or with ``▁`` for a space."""
    types: tuple[int, ...]
    """Token id → type."""
    ids: Mapping[str, int]
    """Text → token id, the first where a text is listed twice."""


class TokenRules(Protocol):
    """One kind of tokenizer."""

    def base_tokens(self) -> set[int]:
        """Return the tokens of single bytes: what any other token can be split into."""
        ...

    def steps(self, token: int) -> set[int] | None:
        """Return all tokens its building passes through, with itself; None if none does.

        None means that the tokenizer never makes this token out of its text.
        """
        ...


def read_vocabulary(header: GgufHeader) -> Vocabulary:
    """Read a model's tokens.

    Raises:
        InvalidInputError: none, or they have no types.
    """
    texts = tuple(str(item) for item in _array(header, "tokens"))
    types = tuple(int(item) for item in _array(header, "token_type"))
    ids: dict[str, int] = {}
    for token, text in enumerate(texts):
        ids.setdefault(text, token)
    return Vocabulary(texts=texts, types=types, ids=ids)


def read_rules(header: GgufHeader, vocabulary: Vocabulary) -> TokenRules:
    """Return the rules of a model's tokenizer.

    Raises:
        InvalidInputError: a kind whose rules are not known here.
    """
    kind = header.text("tokenizer.ggml.model")
    if kind == "gpt2":
        return ByteLevelBpe(vocabulary, [str(m) for m in _array(header, "merges")])
    if kind == "llama":
        return SentencePiece(vocabulary, [float(s) for s in _array(header, "scores")])
    raise InvalidInputError(
        f"{header.path}: vocabulary trimming knows byte-level BPE (gpt2) and"
        f" SentencePiece (llama) tokenizers, not {kind!r}"
    )


def byte_letters() -> list[str]:
    """Return one printable letter for each byte: GPT-2's byte-level alphabet.

    >>> byte_letters()[32], byte_letters()[65]
    ('Ġ', 'A')
    """
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    rest = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(rest)) for byte in range(256)]


def split_merge(merge: str) -> tuple[str, str]:
    """Return both sides of a merge as files write it.

    A side may begin with a space in vocabularies that do not write bytes as letters,
    so the border is looked for behind the first character, as llama.cpp does.

    >>> split_merge("Ġ t")
    ('Ġ', 't')
    """
    left, _, right = merge[1:].partition(" ")
    return merge[0] + left, right


class ByteLevelBpe:
    """Ranked merges over byte letters (Sennrich et al. 2016; GPT-2's alphabet)."""

    def __init__(self, vocabulary: Vocabulary, merges: Sequence[str]) -> None:
        self._vocabulary = vocabulary
        self._ranks: dict[tuple[str, str], int] = {}
        for rank, merge in enumerate(merges):
            self._ranks.setdefault(split_merge(merge), rank)

    def base_tokens(self) -> set[int]:
        """Return the tokens of one byte letter."""
        return _byte_tokens(self._vocabulary, byte_letters())

    def steps(self, token: int) -> set[int] | None:
        """Run the merges on the token's text."""
        parts = list(self._vocabulary.texts[token])
        passed = set(parts)
        while len(parts) > 1:
            ranks = [self._ranks.get(pair) for pair in itertools.pairwise(parts)]
            known = [rank for rank in ranks if rank is not None]
            if not known:
                return None
            at = ranks.index(min(known))
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
            passed.add(parts[at])
        return _known(self._vocabulary, passed)


class SentencePiece:
    """Joins by score (Kudo & Richardson 2018, its BPE mode) with byte fallback."""

    def __init__(self, vocabulary: Vocabulary, scores: Sequence[float]) -> None:
        self._vocabulary = vocabulary
        self._scores = scores

    def base_tokens(self) -> set[int]:
        """Return the byte tokens, ``<0x00>`` to ``<0xFF>``."""
        return _byte_tokens(
            self._vocabulary, [f"<0x{byte:02X}>" for byte in range(256)]
        )

    def steps(self, token: int) -> set[int] | None:
        """Run the joins on the token's text; a character may be no token itself."""
        parts = list(self._vocabulary.texts[token])
        passed: set[str] = set()
        while len(parts) > 1:
            scores = [self._score(a + b) for a, b in itertools.pairwise(parts)]
            best = max((score for score in scores if score is not None), default=None)
            if best is None:
                return None
            at = scores.index(best)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
            passed.add(parts[at])
        return _known(self._vocabulary, passed | set(parts))

    def _score(self, text: str) -> float | None:
        token = self._vocabulary.ids.get(text)
        return None if token is None else self._scores[token]


def _known(vocabulary: Vocabulary, texts: set[str]) -> set[int] | None:
    ids = vocabulary.ids
    return {ids[text] for text in texts} if texts <= ids.keys() else None


def _byte_tokens(vocabulary: Vocabulary, texts: Sequence[str]) -> set[int]:
    # Not all 256 everywhere: SmolLM2 has none for 21 that its training text never had.
    ids = vocabulary.ids
    return {ids[text] for text in texts if text in ids}


def _array(header: GgufHeader, name: str) -> Sequence[Scalar]:
    entry = header.find(f"tokenizer.ggml.{name}")
    if entry is None or not entry.is_array:
        raise InvalidInputError(f"{header.path}: tokenizer.ggml.{name} is missing")
    return list(entry.items())
