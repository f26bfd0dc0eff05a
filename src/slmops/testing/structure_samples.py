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
from slmops.workshop.structure.token_rules import BYTE, CONTROL, NORMAL, UNKNOWN

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


def write_tiny_sentencepiece(path: Path, *, vocabulary: int = 448) -> Path:
    """Write a tiny model with scored pieces, byte fallback and no merges.

    Its pieces are learned from `WORDS`; what is left over are placeholders.
    """
    plain = write_tiny_llama(path.with_suffix(".plain"), vocabulary=vocabulary)
    source = read_source(plain)
    words = [list(f"▁{word}") for word in WORDS.split()]
    letters = sorted({letter for word in words for letter in word})
    base = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    merges = _learned(words, vocabulary - len(base) - len(letters))
    made = [left + right for left, right in merges]
    spare = vocabulary - len(base) - len(letters) - len(made)
    tokens = [*base, *letters, *made, *(f"<unused{n}>" for n in range(spare))]
    kinds = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256]
    kinds += [NORMAL] * (len(letters) + len(made)) + [CONTROL] * spare
    scores = [0.0] * len(base) + [-1000.0] * len(letters)
    scores += [-float(rank) for rank in range(len(made))] + [0.0] * spare
    changes = (
        metadata_entry("tokenizer.ggml.model", "llama", "STRING"),
        metadata_entry("tokenizer.ggml.pre", "default", "STRING"),
        metadata_entry("tokenizer.ggml.tokens", tokens, "STRING"),
        metadata_entry("tokenizer.ggml.token_type", kinds, "INT32"),
        metadata_entry("tokenizer.ggml.scores", scores, "FLOAT32"),
        metadata_entry("tokenizer.ggml.add_space_prefix", value=False, kind="BOOL"),
    )
    entries = with_metadata(
        tiny_metadata(TinyLlama(vocabulary=vocabulary)),
        changes,
        without=lambda key: key == "tokenizer.ggml.merges",
    )
    edits = [copied(tensor) for tensor in source.header.tensors]
    write_model(source, entries, edits, path)
    plain.unlink()
    return path


def _learned_merges(text: str, count: int) -> list[tuple[str, str]]:
    """Learn byte-pair merges, and fill up with pairs of bytes."""
    letters = byte_letters()
    words = [[letters[byte] for byte in f" {word}".encode()] for word in text.split()]
    merges = _learned(words, count)
    made = {left + right for left, right in merges}
    pairs = ((a, b) for a in letters[65:91] for b in letters[48:58])
    spare = (pair for pair in pairs if "".join(pair) not in made)
    return merges + [
        pair for _, pair in zip(range(count - len(merges)), spare, strict=False)
    ]


def _learned(words: list[list[str]], count: int) -> list[tuple[str, str]]:
    """Join the most frequent pair, again and again (Sennrich et al. 2016)."""
    merges: list[tuple[str, str]] = []
    while len(merges) < count:
        pairs = Counter(pair for word in words for pair in pairwise(word))
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        words = [_joined(word, best) for word in words]
    return merges


def _joined(word: list[str], pair: tuple[str, str]) -> list[str]:
    parts = list(word)
    at = 0
    while at < len(parts) - 1:
        if (parts[at], parts[at + 1]) == pair:
            parts[at : at + 2] = ["".join(pair)]
        at += 1
    return parts
