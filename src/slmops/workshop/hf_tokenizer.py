"""A Hugging Face ``tokenizer.json`` as GGUF metadata.

Byte-level BPE vocabularies, and SentencePiece ones that are written as BPE with byte
fallback (see `hf_sentencepiece`).

llama.cpp has the splitting rules of known tokenizers built in, and a file names which.
The name follows from the ``pre_tokenizer`` part, and an unknown one is refused: with
the wrong rules a model loads, and answers worse without anyone being told.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from slmops.domain.errors import InvalidInputError
from slmops.workshop.gguf_file import MetadataEntry
from slmops.workshop.gguf_writer import metadata_entry
from slmops.workshop.hf_files import CheckpointFolder
from slmops.workshop.hf_sentencepiece import (
    ADDED_SCORE,
    BYTE,
    CONTROL,
    MARK,
    NORMAL,
    UNUSED,
    USER_DEFINED,
    is_byte,
    ranked_scores,
    read_pieces,
)

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLIT_RULES = {_WORDS % r"\p{N}": "qwen2", _WORDS % r"\p{N}{1,3}": "llama-bpe"}
"""Splitting expression of a checkpoint → what llama.cpp calls these rules."""
SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
"""Special token as transformers names it → as a GGUF file does."""

Tree = Mapping[str, Any]


def tokenizer_metadata(
    folder: CheckpointFolder, config: Tree
) -> tuple[MetadataEntry, ...]:
    """Turn a folder's tokenizer and chat template into metadata.

    Args:
        folder: holds ``tokenizer.json`` and, mostly, ``tokenizer_config.json``.
        config: the model's ``config.json``.

    Raises:
        InvalidInputError: no tokenizer, a kind that is not supported, or a vocabulary
            that does not fit the model.
    """
    tokenizer = folder.json("tokenizer.json")
    if tokenizer is None:
        raise InvalidInputError(f"{folder.path}: tokenizer.json is missing")
    return _TokenizerReader(folder, tokenizer, config).read()


class _TokenizerReader:
    def __init__(self, folder: CheckpointFolder, tokenizer: Tree, config: Tree) -> None:
        self._folder = folder
        self._where = folder.path / "tokenizer.json"
        self._tokenizer = tokenizer
        self._settings: Tree = folder.json("tokenizer_config.json") or {}
        self._config = config

    def read(self) -> tuple[MetadataEntry, ...]:
        model = self._tokenizer.get("model")
        if not isinstance(model, dict) or model.get("type") != "BPE":
            self._refuse(
                "only BPE tokenizers are supported: byte-level BPE or with byte fallback"
            )
        tokens, kinds = self._vocabulary(model)
        ids = {token: index for index, token in enumerate(tokens)}
        if model.get("byte_fallback"):
            kind = self._sentencepiece(model, tokens, kinds)
        else:
            kind = self._byte_level(model, tokens, kinds)
        entries = [
            *kind,
            *self._special_tokens(ids),
            metadata_entry("tokenizer.ggml.add_bos_token", self._adds_bos(), "BOOL"),
            metadata_entry("tokenizer.ggml.add_space_prefix", value=False, kind="BOOL"),
        ]
        template = self._chat_template()
        if template:
            entries.append(
                metadata_entry("tokenizer.chat_template", template, "STRING")
            )
        return tuple(entries)

    def _byte_level(
        self, model: Tree, tokens: list[str], kinds: list[int]
    ) -> Iterator[MetadataEntry]:
        yield metadata_entry("tokenizer.ggml.model", "gpt2", "STRING")
        yield metadata_entry("tokenizer.ggml.pre", self._pre_tokenizer(), "STRING")
        yield metadata_entry("tokenizer.ggml.tokens", tokens, "STRING")
        yield metadata_entry("tokenizer.ggml.token_type", kinds, "INT32")
        yield metadata_entry("tokenizer.ggml.merges", self._merges(model), "STRING")

    def _sentencepiece(
        self, model: Tree, tokens: list[str], kinds: list[int]
    ) -> Iterator[MetadataEntry]:
        self._check_marked_spaces()
        scores = self._scores(model, tokens)
        for index, token in enumerate(tokens):
            if kinds[index] == NORMAL and is_byte(token):
                kinds[index] = BYTE
            elif kinds[index] == USER_DEFINED:
                if token.startswith("<unused"):
                    # Never in a text: llama.cpp's converter takes them for control too.
                    kinds[index] = CONTROL
                # llama.cpp looks for them in the text as it comes.
                tokens[index] = token.replace(MARK, " ")
            if kinds[index] in {CONTROL, USER_DEFINED}:
                scores[index] = ADDED_SCORE
        yield metadata_entry("tokenizer.ggml.model", "llama", "STRING")
        yield metadata_entry("tokenizer.ggml.pre", "default", "STRING")
        yield metadata_entry("tokenizer.ggml.tokens", tokens, "STRING")
        yield metadata_entry("tokenizer.ggml.scores", scores, "FLOAT32")
        yield metadata_entry("tokenizer.ggml.token_type", kinds, "INT32")

    def _check_marked_spaces(self) -> None:
        replace = self._tokenizer.get("normalizer") or {}
        if replace.get("type") != "Replace" or replace.get("content") != MARK:
            self._refuse(
                "the normalizer of a SentencePiece tokenizer must replace spaces"
            )
        # Gemma's splits at spaces, of which the normalizer has left none.
        part = self._tokenizer.get("pre_tokenizer") or {}
        if part and (part.get("type"), part.get("pattern")) != (
            "Split",
            {"String": " "},
        ):
            self._refuse(
                f"the pre-tokenizer {part.get('type')!r} of a SentencePiece tokenizer is"
                " not supported"
            )

    def _scores(self, model: Tree, tokens: list[str]) -> list[float]:
        path = self._folder.file("tokenizer.model")
        if path is None:
            scores = ranked_scores(dict(self._pairs(model)), self._merges(model))
            return scores + [ADDED_SCORE] * (len(tokens) - len(scores))
        pieces = read_pieces(path)[: len(tokens)]
        for index, piece in enumerate(pieces):
            if piece.kind == NORMAL and tokens[index] != piece.text:
                self._refuse(
                    f"token {index} must be {piece.text!r} as in tokenizer.model,"
                    f" got {tokens[index]!r}"
                )
        scores = [piece.score for piece in pieces]
        return scores + [ADDED_SCORE] * (len(tokens) - len(scores))

    def _pre_tokenizer(self) -> str:
        part = self._tokenizer.get("pre_tokenizer") or {}
        steps = part.get("pretokenizers", [part])
        names = [step.get("type") for step in steps]
        if names == ["ByteLevel"]:
            return "gpt-2"
        if names == ["Digits", "ByteLevel"] and steps[0].get("individual_digits"):
            return "smollm"
        if names == ["Split", "ByteLevel"]:
            rule = str((steps[0].get("pattern") or {}).get("Regex"))
            if rule in SPLIT_RULES:
                return SPLIT_RULES[rule]
        return self._refuse(
            f"the pre-tokenizer {'+'.join(map(str, names))} is not one of gpt-2, smollm,"
            " qwen2, llama-bpe; a GGUF file of the model can be imported instead"
        )

    def _vocabulary(self, model: Tree) -> tuple[list[str], list[int]]:
        size = self._config.get("vocab_size")
        if not isinstance(size, int) or not 1 <= size <= 1 << 22:
            self._refuse(f"config.json's vocab_size must be 1 to 4194304, got {size!r}")
        tokens = [f"[PAD{index}]" for index in range(size)]
        kinds = [UNUSED] * size
        for token, index in self._pairs(model):
            self._check_id(token, index, size)
            tokens[index], kinds[index] = token, NORMAL
        for added in self._tokenizer.get("added_tokens") or []:
            self._check_id(added.get("content"), added.get("id"), size)
            tokens[added["id"]] = added["content"]
            kinds[added["id"]] = CONTROL if added.get("special") else USER_DEFINED
        return tokens, kinds

    def _pairs(self, model: Tree) -> Any:  # noqa: ANN401 - checked one by one
        vocabulary = model.get("vocab")
        if not isinstance(vocabulary, dict) or not vocabulary:
            self._refuse("model.vocab must be an object of token to id")
        return vocabulary.items()

    def _check_id(self, token: object, index: object, size: int) -> None:
        valid = isinstance(index, int) and 0 <= index < size
        if not valid or not isinstance(token, str):
            self._refuse(f"token {token!r} must have an id below {size}, got {index!r}")

    def _merges(self, model: Tree) -> list[str]:
        merges = model.get("merges") or []
        joined = [
            " ".join(merge) if isinstance(merge, list) else merge for merge in merges
        ]
        for merge in joined:
            if not isinstance(merge, str) or merge.count(" ") != 1:
                self._refuse(f"a merge must be two tokens, got {merge!r}")
        return joined

    def _special_tokens(self, ids: Mapping[str, int]) -> list[MetadataEntry]:
        entries = []
        for short, name in SPECIAL.items():
            index = self._special_id(short, ids)
            if index is not None:
                key = f"tokenizer.ggml.{name}_token_id"
                entries.append(metadata_entry(key, index, "UINT32"))
        return entries

    def _special_id(self, short: str, ids: Mapping[str, int]) -> int | None:
        token = self._settings.get(f"{short}_token")
        if isinstance(token, dict):
            token = token.get("content")
        if isinstance(token, str) and token in ids:
            return ids[token]
        index = self._config.get(f"{short}_token_id")
        if isinstance(index, list):
            index = index[0] if index else None
        return index if isinstance(index, int) and 0 <= index < len(ids) else None

    def _adds_bos(self) -> bool:
        setting = self._settings.get("add_bos_token")
        if isinstance(setting, bool):
            return setting
        part = self._tokenizer.get("post_processor") or {}
        for step in part.get("processors", [part]):
            if step.get("type") == "TemplateProcessing" and step.get("single"):
                return "SpecialToken" in step["single"][0]
        return False

    def _chat_template(self) -> str | None:
        text = self._folder.text("chat_template.jinja")
        if text:
            return text
        template = (self._folder.json("chat_template.json") or self._settings).get(
            "chat_template"
        )
        if isinstance(template, list):
            named = {part.get("name"): part.get("template") for part in template}
            template = named.get("default")
        return template if isinstance(template, str) else None

    def _refuse(self, reason: str) -> NoReturn:
        raise InvalidInputError(f"{self._where}: {reason}")


def tokenizer_files(folder: Path) -> tuple[str, ...]:
    """Name the files a tokenizer may consist of, for the source's digest."""
    names = (
        "tokenizer.json",
        "tokenizer_config.json",
        "tokenizer.model",
        "chat_template.jinja",
        "chat_template.json",
    )
    return tuple(name for name in names if (folder / name).is_file())
