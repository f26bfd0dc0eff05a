"""Vocabulary trimming: what stays the same, what may not be lost, what is refused."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slmops.domain.errors import InvalidInputError
from slmops.runtimes.base import WorkerSettings, load_runtime
from slmops.testing.structure_samples import WORDS, OpenScorer, RunJob
from slmops.testing.tiny_gguf import byte_letters, write_tiny_llama
from slmops.workshop.gguf_file import read_header
from slmops.workshop.gguf_writer import metadata_entry
from slmops.workshop.model_shape import read_shape
from slmops.workshop.structure.model_edit import (
    copied,
    read_source,
    with_changes,
    write_model,
)
from slmops.workshop.structure.token_rules import read_rules, read_vocabulary
from slmops.workshop.structure.vocabulary import (
    TokenMap,
    choose_tokens,
    trim_vocabulary,
)

TEXT = "the river rises in the old market town and the traders sell grain\n" * 3


@pytest.fixture
def trimmed(bpe_model: Path, run_job: RunJob, tmp_path: Path) -> tuple[Path, TokenMap]:
    """The tiny model with 384 of its 448 tokens, and its token map."""
    return _trim(bpe_model, run_job, tmp_path, TEXT, 384)


def _trim(
    model: Path, run_job: RunJob, folder: Path, text: str, tokens: int
) -> tuple[Path, TokenMap]:
    corpus = folder / "corpus.txt"
    corpus.write_text(text, encoding="utf-8")
    made = run_job(trim_vocabulary, {"model": model, "text": corpus}, tokens=tokens)
    return made["model"], np.load(made["token_map"])


def test_text_of_kept_tokens_gets_the_same_tokens_and_the_same_logits(
    bpe_model: Path, trimmed: tuple[Path, TokenMap], open_scorer: OpenScorer
) -> None:
    model, token_map = trimmed
    old, new = open_scorer(bpe_model), open_scorer(model)
    before, after = old.tokenize(TEXT), new.tokenize(TEXT)
    assert token_map[after].tolist() == before
    assert max(after) > 258, "the text should use merged tokens"
    expected = old.logits(before)[:, token_map]
    assert np.array_equal(new.logits(after), expected)


def test_any_text_survives_the_trimmed_tokenizer(
    trimmed: tuple[Path, TokenMap],
) -> None:
    scorer = load_runtime("llamacpp").open_scorer(trimmed[0], WorkerSettings())
    alphabet = st.characters(exclude_categories=["Cs"], exclude_characters="\0")

    @settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
    @given(st.text(alphabet, max_size=60) | st.sampled_from(WORDS.split()))
    def survives(text: str) -> None:
        tokens = scorer.tokenize(text)
        assert b"".join(map(scorer.piece, tokens)) == text.encode()

    survives()
    scorer.close()


def test_every_byte_and_every_special_token_stays(
    trimmed: tuple[Path, TokenMap],
) -> None:
    vocabulary = read_vocabulary(read_header(trimmed[0]))
    assert set(byte_letters()) <= set(vocabulary.texts)
    assert vocabulary.texts[:3] == ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    assert vocabulary.types[:3] == (3, 3, 3)


def test_every_kept_token_can_still_be_built(
    trimmed: tuple[Path, TokenMap],
) -> None:
    header = read_header(trimmed[0])
    vocabulary = read_vocabulary(header)
    rules = read_rules(header, vocabulary)
    normal = [t for t, kind in enumerate(vocabulary.types) if kind == 1]
    assert all(rules.steps(token) is not None for token in normal)


def test_ids_and_sizes_in_the_metadata_follow(
    bpe_model: Path, run_job: RunJob, tmp_path: Path
) -> None:
    source = read_source(bpe_model)
    changes = [metadata_entry("tokenizer.ggml.eot_token_id", 447, "UINT32")]
    edits = [copied(tensor) for tensor in source.header.tensors]
    metadata = with_changes(source, changes)
    model = write_model(source, metadata, edits, tmp_path / "eot.gguf")
    path, token_map = _trim(model, run_job, tmp_path, TEXT, 384)
    header = read_header(path)
    moved = header.find("tokenizer.ggml.eot_token_id")
    assert moved is not None
    assert token_map[int(moved.scalar())] == 447
    size = header.find("llama.vocab_size")
    assert size is not None
    assert size.scalar() == len(token_map) == read_shape(header).vocabulary == 384


def test_the_same_inputs_give_the_same_bytes(
    bpe_model: Path, run_job: RunJob, tmp_path: Path
) -> None:
    first, _ = _trim(bpe_model, run_job, tmp_path, TEXT, 320)
    second, _ = _trim(bpe_model, run_job, tmp_path, TEXT, 320)
    assert first.read_bytes() == second.read_bytes()


def test_a_token_is_kept_with_all_it_is_built_from(bpe_model: Path) -> None:
    header = read_header(bpe_model)
    vocabulary = read_vocabulary(header)
    rules = read_rules(header, vocabulary)
    longest = max(
        range(448), key=lambda token: len(vocabulary.texts[token]) * (token > 2)
    )
    steps = rules.steps(longest)
    assert steps is not None
    assert len(steps) > 4
    counts = np.zeros(448, np.int64)
    counts[longest] = 1
    must = rules.base_tokens()
    kept = choose_tokens(rules, counts, must, 256 + len(steps - must))
    assert set(kept.tolist()) == must | steps


def test_more_tokens_than_there_are_and_too_few_are_refused(
    bpe_model: Path, run_job: RunJob, tmp_path: Path
) -> None:
    for tokens in (512, 256, 0):
        with pytest.raises(InvalidInputError, match="tokens must be"):
            _trim(bpe_model, run_job, tmp_path, TEXT, tokens)


def test_a_text_that_is_not_utf8_is_refused_with_the_place(
    bpe_model: Path, run_job: RunJob, tmp_path: Path
) -> None:
    corpus = tmp_path / "latin1.txt"
    corpus.write_bytes(b"abc\xff")
    with pytest.raises(InvalidInputError, match="not UTF-8 at byte 3"):
        run_job(trim_vocabulary, {"model": bpe_model, "text": corpus}, tokens=384)


def test_an_unknown_kind_of_tokenizer_is_refused(
    run_job: RunJob, tmp_path: Path
) -> None:
    source = read_source(write_tiny_llama(tmp_path / "tiny.gguf"))
    changes = [metadata_entry("tokenizer.ggml.model", "bert", "STRING")]
    edits = [copied(tensor) for tensor in source.header.tensors]
    model = write_model(
        source, with_changes(source, changes), edits, tmp_path / "bert.gguf"
    )
    with pytest.raises(InvalidInputError, match="not 'bert'"):
        _trim(model, run_job, tmp_path, TEXT, 256)
