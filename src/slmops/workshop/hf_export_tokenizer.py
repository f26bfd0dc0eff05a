"""A GGUF file's tokenizer as ``tokenizer.json``, with what transformers needs beside.

Two kinds are written: byte-level BPE (``gpt2`` in a GGUF file), and SentencePiece as
BPE with byte fallback (``llama``). What counts is that the text that a model is trained on is cut as the
runtime will cut it, so the rules are llama.cpp's: no normalization that it does not do.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from slmops.domain.errors import InvalidInputError
from slmops.wire.codec import encode_json, encode_json_pretty
from slmops.workshop.gguf_file import GgufHeader, MetadataEntry, Scalar
from slmops.workshop.hf_sentencepiece import (
    CONTROL,
    MARK,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Piece,
    pieces_message,
    score_merges,
)
from slmops.workshop.hf_tokenizer import SPECIAL, SPLIT_RULES

_LETTERS = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
}
_DIGITS = {"type": "Digits", "individual_digits": True}
_SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": MARK}
_SPACES_BACK = {"type": "Replace", "pattern": {"String": MARK}, "content": " "}

Tree = dict[str, Any]


def export_tokenizer(header: GgufHeader, folder: Path) -> None:
    """Write ``tokenizer.json``, ``tokenizer_config.json`` and the chat template.

    Args:
        header: of a model file.
        folder: exists.

    Raises:
        InvalidInputError: a kind of tokenizer that is not supported, or a vocabulary
            that contradicts its merges.
    """
    vocabulary = _Vocabulary.read(header)
    (folder / "tokenizer.json").write_bytes(encode_json(_tokenizer(vocabulary)))
    settings = _settings(header, vocabulary)
    (folder / "tokenizer_config.json").write_text(encode_json_pretty(settings))
    if vocabulary.kind == "llama":
        (folder / "tokenizer.model").write_bytes(_sentencepiece_file(vocabulary))
    template = header.text("tokenizer.chat_template")
    if template:
        (folder / "chat_template.jinja").write_text(template)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Vocabulary:
    header: GgufHeader
    kind: str
    tokens: Sequence[str]
    types: Sequence[int]

    @classmethod
    def read(cls, header: GgufHeader) -> "_Vocabulary":
        tokens = [str(token) for token in _items(header, "tokens")]
        types = [int(kind) for kind in _items(header, "token_type")]
        kind = header.text("tokenizer.ggml.model") or "(none)"
        return cls(
            header=header,
            kind=kind,
            tokens=tokens,
            types=types or [NORMAL] * len(tokens),
        )

    def ids(self) -> dict[str, int]:
        """Tokens by text, without the gaps that an import filled."""
        ids: dict[str, int] = {}
        for index, token in enumerate(self.tokens):
            if self.types[index] == UNUSED and token == f"[PAD{index}]":
                continue
            token = self.written(index)
            if token in ids:
                self.refuse(f"token {token!r} is given twice")
            ids[token] = index
        return ids

    def written(self, index: int) -> str:
        """Return a token as ``tokenizer.json`` has it: SentencePiece marks spaces."""
        token = self.tokens[index]
        return token.replace(" ", MARK) if self.kind == "llama" else token

    def added(self) -> list[Tree]:
        return [
            {
                "id": index,
                "content": self.written(index),
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                # Looked for where spaces are marked already.
                "normalized": self.written(index) != token,
                "special": self.types[index] == CONTROL,
            }
            for index, token in enumerate(self.tokens)
            if self.types[index] in {CONTROL, USER_DEFINED}
        ]

    def special(self, name: str) -> int | None:
        entry = self.header.find(f"tokenizer.ggml.{name}_token_id")
        return int(entry.scalar()) if entry else None

    def flag(self, name: str) -> bool:
        entry = self.header.find(f"tokenizer.ggml.{name}")
        return bool(entry and entry.scalar())

    def refuse(self, reason: str) -> NoReturn:
        raise InvalidInputError(f"{self.header.path}: {reason}")


def _tokenizer(vocabulary: _Vocabulary) -> Tree:
    if vocabulary.kind == "llama":
        return _sentencepiece_tokenizer(vocabulary)
    if vocabulary.kind != "gpt2":
        vocabulary.refuse(
            f"tokenizer {vocabulary.kind!r} cannot be exported; only gpt2 and llama can"
        )
    return _Document(
        added_tokens=vocabulary.added(),
        pre_tokenizer=_splitting(vocabulary),
        post_processor=_post_processor(vocabulary, _LETTERS),
        decoder=_LETTERS,
        model=_byte_level_model(vocabulary),
    ).tree()


def _sentencepiece_tokenizer(vocabulary: _Vocabulary) -> Tree:
    prefix = vocabulary.header.find("tokenizer.ggml.add_space_prefix")
    if prefix is None or prefix.scalar():
        vocabulary.refuse("a SentencePiece tokenizer that begins texts with a space")
    return _Document(
        added_tokens=vocabulary.added(),
        normalizer=_SPACES,
        post_processor=_post_processor(vocabulary, None),
        decoder={
            "type": "Sequence",
            "decoders": [_SPACES_BACK, {"type": "ByteFallback"}, {"type": "Fuse"}],
        },
        model=_sentencepiece_model(vocabulary),
    ).tree()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Document:
    """The parts of a ``tokenizer.json``."""

    added_tokens: list[Tree]
    model: Tree
    decoder: Tree
    post_processor: Tree | None
    normalizer: Tree | None = None
    pre_tokenizer: Tree | None = None

    def tree(self) -> Tree:
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": self.added_tokens,
            "normalizer": self.normalizer,
            "pre_tokenizer": self.pre_tokenizer,
            "post_processor": self.post_processor,
            "decoder": self.decoder,
            "model": self.model,
        }


def _splitting(vocabulary: _Vocabulary) -> Tree:
    name = vocabulary.header.text("tokenizer.ggml.pre") or "(none)"
    if name == "gpt-2":
        return _LETTERS
    if name == "smollm":
        return {"type": "Sequence", "pretokenizers": [_DIGITS, _LETTERS]}
    for rule, rule_name in SPLIT_RULES.items():
        if rule_name == name:
            split = {
                "type": "Split",
                "pattern": {"Regex": rule},
                "behavior": "Isolated",
                "invert": False,
            }
            letters = _LETTERS | {"use_regex": False}
            return {"type": "Sequence", "pretokenizers": [split, letters]}
    return vocabulary.refuse(f"splitting rules {name!r} cannot be exported")


def _byte_level_model(vocabulary: _Vocabulary) -> Tree:
    ids = vocabulary.ids()
    merges = []
    for merge in _items(vocabulary.header, "merges"):
        left, _, right = str(merge).partition(" ")
        missing = [part for part in (left, right, left + right) if part not in ids]
        if missing:
            vocabulary.refuse(
                f"merge {merge!r} needs {missing[0]!r}, which is not in the vocabulary"
            )
        merges.append([left, right])
    # llama.cpp looks a whole word up before it merges, for Llama 3 alone.
    whole_words = vocabulary.header.text("tokenizer.ggml.pre") == "llama-bpe"
    return _bpe(ids, merges) | {"ignore_merges": whole_words}


def _sentencepiece_model(vocabulary: _Vocabulary) -> Tree:
    scores = _scores(vocabulary)
    joined = {
        vocabulary.tokens[index]: score
        for index, score in enumerate(scores)
        if vocabulary.types[index] == NORMAL
    }
    unknown = vocabulary.special("unknown")
    if unknown is None and UNKNOWN in vocabulary.types:
        unknown = list(vocabulary.types).index(UNKNOWN)
    return _bpe(vocabulary.ids(), list(score_merges(joined))) | {
        "unk_token": None if unknown is None else vocabulary.tokens[unknown],
        "fuse_unk": True,
        "byte_fallback": True,
    }


def _bpe(ids: Mapping[str, int], merges: list[list[str]]) -> Tree:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": ids,
        "merges": merges,
    }


def _sentencepiece_file(vocabulary: _Vocabulary) -> bytes:
    scores = _scores(vocabulary)
    special = {short: vocabulary.special(name) for short, name in SPECIAL.items()}
    pieces = [
        Piece(
            text=vocabulary.written(index),
            score=score,
            # SentencePiece wants its one unknown token to be marked as that.
            kind=UNKNOWN if index == special["unk"] else vocabulary.types[index],
        )
        for index, score in enumerate(scores)
    ]
    ids = {short: index for short, index in special.items() if index is not None}
    return pieces_message(pieces, ids)


def _scores(vocabulary: _Vocabulary) -> list[float]:
    scores = [float(score) for score in _items(vocabulary.header, "scores")]
    if not scores:
        vocabulary.refuse("tokenizer.ggml.scores is missing")
    return scores


def _post_processor(vocabulary: _Vocabulary, otherwise: Tree | None) -> Tree | None:
    bos = vocabulary.special("bos")
    if bos is None or not vocabulary.flag("add_bos_token"):
        return otherwise
    token = vocabulary.tokens[bos]
    first = {"SpecialToken": {"id": token, "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [first, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [
            first,
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": token, "type_id": 1}},
            {"Sequence": {"id": "B", "type_id": 1}},
        ],
        "special_tokens": {token: {"id": token, "ids": [bos], "tokens": [token]}},
    }


def _settings(header: GgufHeader, vocabulary: _Vocabulary) -> Tree:
    named = {
        f"{short}_token": vocabulary.special(name) for short, name in SPECIAL.items()
    }
    context = header.find(f"{header.text('general.architecture')}.context_length")
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": int(context.scalar()) if context else None,
        "clean_up_tokenization_spaces": False,
        "add_bos_token": vocabulary.flag("add_bos_token"),
        "add_prefix_space": False,
    } | {
        key: vocabulary.tokens[index]
        for key, index in named.items()
        if index is not None
    }


def _items(header: GgufHeader, name: str) -> Sequence[Scalar]:
    entry: MetadataEntry | None = header.find(f"tokenizer.ggml.{name}")
    return list(entry.items()) if entry is not None else []
