"""Tiny models for structural edits, and a job run in this process."""

from collections import Counter
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path

from slmops.runtimes.base import Scorer
from slmops.testing.tiny_gguf import (
    SPECIAL_TOKENS,
    TinyLlama,
    byte_letters,
    tiny_metadata,
    write_tiny_llama,
)
from slmops.workshop.gguf_writer import metadata_entry, with_metadata
from slmops.workshop.jobs.job import Job, JobFunction, Value
from slmops.workshop.structure.model_edit import copied, read_source, write_model

WORDS = (
    "the river rises in the northern hills and runs past the old market town "
    "where traders met every spring to sell cloth and grain to the mill owners "
)
"""The text the tiny vocabulary is learned from."""

RunJob = Callable[..., Mapping[str, Path]]
"""Called with a job function, its inputs, and parameters as keywords."""
OpenScorer = Callable[[Path], Scorer]
"""Opens a model in the runtime."""


def run_here(
    folder: Path,
    function: JobFunction,
    inputs: Mapping[str, Path],
    parameters: Mapping[str, Value],
) -> Mapping[str, Path]:
    """Run a job function in this process; `folder` is new or holds its state."""
    output, state = folder / "output", folder / "state"
    output.mkdir(parents=True)
    state.mkdir(exist_ok=True)
    return function(
        Job(inputs=inputs, parameters=parameters, output=output, state=state)
    )


def write_tiny_bpe(path: Path, *, vocabulary: int = 448) -> Path:
    """Write a tiny model whose tokens are merged from merged tokens.

    Its merges are learned from `WORDS`, and filled up with pairs of a letter and a
    digit.
    """
    plain = write_tiny_llama(path.with_suffix(".plain"), vocabulary=vocabulary)
    source = read_source(plain)
    merges = _learned_merges(WORDS, vocabulary - len(SPECIAL_TOKENS) - 256)
    made = [left + right for left, right in merges]
    tokens = [*SPECIAL_TOKENS, *byte_letters(), *made]
    joined = [" ".join(pair) for pair in merges]
    changes = (
        metadata_entry("tokenizer.ggml.tokens", tokens, "STRING"),
        metadata_entry("tokenizer.ggml.merges", joined, "STRING"),
    )
    entries = with_metadata(tiny_metadata(TinyLlama(vocabulary=vocabulary)), changes)
    edits = [copied(tensor) for tensor in source.header.tensors]
    write_model(source, entries, edits, path)
    plain.unlink()
    return path


def _learned_merges(text: str, count: int) -> list[tuple[str, str]]:
    """Learn byte-pair merges as Sennrich et al. (2016) do; fill up with byte pairs."""
    letters = byte_letters()
    words = [[letters[byte] for byte in f" {word}".encode()] for word in text.split()]
    merges: list[tuple[str, str]] = []
    while True:
        pairs = Counter(pair for word in words for pair in pairwise(word))
        if not pairs or len(merges) == count:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        words = [_joined(word, best) for word in words]
    made = {left + right for left, right in merges}
    spare = (
        (a, b) for a in letters[65:91] for b in letters[48:58] if a + b not in made
    )
    return merges + [
        pair for _, pair in zip(range(count - len(merges)), spare, strict=False)
    ]


def _joined(word: list[str], pair: tuple[str, str]) -> list[str]:
    parts = list(word)
    at = 0
    while at < len(parts) - 1:
        if (parts[at], parts[at + 1]) == pair:
            parts[at : at + 2] = ["".join(pair)]
        at += 1
    return parts
