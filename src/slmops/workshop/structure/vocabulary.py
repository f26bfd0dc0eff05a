"""Vocabulary trimming: keep the tokens a text uses, and cut the rest's rows.

In a small model the embedding is a large part of all weights, and the output rows are
read for every token that is generated. Tokens that the users' language never needs
cost bytes and time for nothing.

Nothing becomes unwritable: the byte tokens stay, so a text that had tokens still has,
only more of them. Text whose tokens are all kept gets the very same tokens
(`token_rules` says why) and the very same logits over them.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from slmops.domain.errors import InvalidInputError
from slmops.runtimes.base import WorkerSettings, load_runtime
from slmops.workshop.gguf_file import GgufHeader, MetadataEntry, TensorEntry
from slmops.workshop.gguf_writer import metadata_entry
from slmops.workshop.jobs.job import Job, Report
from slmops.workshop.structure.model_edit import (
    SourceModel,
    TensorEdit,
    array_like,
    copied,
    read_source,
    read_text,
    scalar_like,
    selected,
    with_changes,
    write_model,
)
from slmops.workshop.structure.token_rules import (
    NORMAL,
    UNUSED,
    TokenRules,
    Vocabulary,
    read_rules,
    read_vocabulary,
    split_merge,
)

MODEL, TOKEN_MAP = "model", "token_map"
"""Roles of the outputs."""

ROW_MULTIPLE = 64
"""Vocabularies are rounded down to this. No block format asks for it, rows are whole;
kernels that take 8 or 16 rows at a time, and those of GPUs, run without a remainder,
and it costs at most 63 tokens."""

TokenMap = npt.NDArray[np.int32]
"""(tokens kept,) new id → old id, ascending."""

_ROWS = ("token_embd.weight", "output.weight", "output.bias")
_STALE = frozenset({"tokenizer.huggingface.json"})
_PLACEHOLDER = re.compile(r"<unused\d+>|\[PAD\d+\]|<\|reserved_special_token_\d+\|>")
_CHUNK_CHARACTERS = 1 << 17


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenUse:
    """What a text says about a vocabulary."""

    counts: npt.NDArray[np.int64]
    """(vocabulary,) how often each token occurs in the text."""
    template: frozenset[int]
    """Tokens of the chat template."""


def trim_vocabulary(job: Job) -> Mapping[str, Path]:
    """Make a model with fewer tokens.

    Inputs: ``model``, a 16-bit GGUF; ``text``, UTF-8, as the users write and read it.
    Parameters: ``tokens``, the most tokens to keep (rounded down to a multiple of 64).

    Returns:
        ``model``, and ``token_map``: a NumPy array, new id → old id.

    Raises:
        InvalidInputError: a tokenizer of another kind, a text that is not UTF-8, or a
            number of tokens that the must-haves exceed or the vocabulary has not.
    """
    source = read_source(job.inputs["model"])
    vocabulary = read_vocabulary(source.header)
    rules = read_rules(source.header, vocabulary)
    use = count_use(source.header, read_text(job.inputs["text"]), job.report)
    must = required_tokens(source.header, vocabulary, rules) | use.template
    kept = choose_tokens(
        rules, use.counts, must, _rounded(job.parameter("tokens", int))
    )
    model, token_map = job.output / "model.gguf", job.output / "token_map.npy"
    write_trimmed(source, vocabulary, kept, model, job.report)
    np.save(token_map, kept)
    return {MODEL: model, TOKEN_MAP: token_map}


def count_use(header: GgufHeader, text: str, report: Report) -> TokenUse:
    """Tokenize a text and the model's chat template, as the runtime will.

    Long texts are cut at line ends, so a token across such a cut is not counted.
    """
    settings = WorkerSettings(context_tokens=32)
    scorer = load_runtime("llamacpp").open_scorer(header.path, settings)
    try:
        counts = np.zeros(scorer.vocabulary, np.int64)
        done = 0
        for chunk in _chunks(text):
            tokens = scorer.tokenize(chunk)
            counts += np.bincount(tokens, minlength=scorer.vocabulary)
            done += len(chunk)
            report(done, 2 * len(text))
        template = header.text("tokenizer.chat_template") or ""
        return TokenUse(counts=counts, template=frozenset(scorer.tokenize(template)))
    finally:
        scorer.close()


def required_tokens(
    header: GgufHeader, vocabulary: Vocabulary, rules: TokenRules
) -> set[int]:
    """Return the tokens no trimming may drop, those of a text aside.

    The bytes; all that are special (control, user-defined, unknown), because templates
    and runtimes look for them by text; those the metadata names by id. Placeholders
    such as ``<unused17>`` are special only when the chat template says their name.
    """
    template = header.text("tokenizer.chat_template") or ""
    special = {
        token
        for token, (text, kind) in enumerate(
            zip(vocabulary.texts, vocabulary.types, strict=True)
        )
        if kind not in {NORMAL, UNUSED}
        and (not _PLACEHOLDER.fullmatch(text) or text in template)
    }
    named = {int(entry.scalar()) for entry in _token_ids(header)}
    return rules.base_tokens() | special | named


def choose_tokens(
    rules: TokenRules, counts: npt.NDArray[np.int64], must: Iterable[int], room: int
) -> TokenMap:
    """Keep the tokens used most, each with all it is built from.

    Tokens that the text does not use fill what is left, lower ids first: tokenizers
    learn their tokens in order of how frequent they were.

    Args:
        rules: of the tokenizer.
        counts: (vocabulary,) uses of each token.
        must: kept in any case.
        room: tokens to keep.

    Returns:
        Exactly `room` ids, ascending.

    Raises:
        InvalidInputError: more must be kept than there is room, or there are fewer.
    """
    kept: set[int] = set()
    for token in must:
        kept |= rules.steps(token) or {token}
    if not len(kept) <= room <= len(counts):
        raise InvalidInputError(
            f"tokens must be {len(kept)} (bytes, special tokens, chat template) to"
            f" {len(counts)}, got {room} after rounding to a multiple of {ROW_MULTIPLE}"
        )
    order = np.lexsort((np.arange(len(counts)), -counts)).tolist()
    unbuilt = []
    for token in order:
        if len(kept) == room:
            break
        steps = rules.steps(token)
        if steps is None and counts[token] == 0:
            unbuilt.append(token)
        elif len(kept) + len((steps or {token}) - kept) <= room:
            kept |= steps or {token}
    fill = [token for token in unbuilt if token not in kept][: room - len(kept)]
    return np.array(sorted(kept | set(fill)), np.int32)


def write_trimmed(
    source: SourceModel,
    vocabulary: Vocabulary,
    kept: TokenMap,
    path: Path,
    report: Report,
) -> Path:
    """Write the model with only the `kept` tokens, in their old order."""
    changes = [*_trimmed_arrays(source, vocabulary, kept), *_moved_ids(source, kept)]
    key = source.key("vocab_size")
    changes.append(metadata_entry(key, len(kept), "UINT32"))
    metadata = with_changes(source, changes, without=_STALE.__contains__)
    edits = [_edit(tensor, kept) for tensor in source.header.tensors]
    return write_model(source, metadata, edits, path, report)


def _edit(tensor: TensorEntry, kept: TokenMap) -> TensorEdit:
    rows = kept.astype(np.int64)
    if tensor.name not in _ROWS:
        return copied(tensor)
    if len(tensor.shape) == 1:
        return selected(tensor, columns=rows)
    return selected(tensor, rows=rows)


def _trimmed_arrays(
    source: SourceModel, vocabulary: Vocabulary, kept: TokenMap
) -> Iterator[MetadataEntry]:
    texts = {vocabulary.texts[token] for token in kept}
    for entry in source.header.metadata:
        if not entry.key.startswith("tokenizer.ggml.") or not entry.is_array:
            continue
        if entry.key == "tokenizer.ggml.merges":
            merges = [str(merge) for merge in entry.items()]
            left = [merge for merge in merges if _is_possible(merge, texts)]
            yield array_like(entry, left)
        elif entry.length == len(vocabulary.texts):
            items = list(entry.items())
            yield array_like(entry, [items[token] for token in kept])


def _is_possible(merge: str, texts: set[str]) -> bool:
    left, right = split_merge(merge)
    return left in texts and right in texts and left + right in texts


def _moved_ids(source: SourceModel, kept: TokenMap) -> Iterator[MetadataEntry]:
    for entry in _token_ids(source.header):
        new = int(np.searchsorted(kept, int(entry.scalar())))
        yield scalar_like(entry, new)


def _token_ids(header: GgufHeader) -> list[MetadataEntry]:
    limit = header.find("tokenizer.ggml.tokens")
    return [
        entry
        for entry in header.metadata
        if entry.key.startswith("tokenizer.ggml.")
        and entry.key.endswith("_token_id")
        and limit is not None
        and 0 <= int(entry.scalar()) < limit.length
    ]


def _rounded(tokens: int) -> int:
    if tokens < ROW_MULTIPLE:
        raise InvalidInputError(f"tokens must be at least {ROW_MULTIPLE}, got {tokens}")
    return tokens // ROW_MULTIPLE * ROW_MULTIPLE


def _chunks(text: str) -> Iterator[str]:
    at = 0
    while at < len(text):
        end = text.rfind("\n", at, at + _CHUNK_CHARACTERS) + 1
        if at + _CHUNK_CHARACTERS >= len(text) or end <= at:
            end = at + _CHUNK_CHARACTERS
        yield text[at:end]
        at = end
