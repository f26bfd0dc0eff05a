"""Vocabulary trimming: what stays the same, what may not be lost, what is refused."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slmops.domain.blueprint import EvaluationPlan
from slmops.domain.errors import InvalidInputError
from slmops.registry.workspace import Workspace
from slmops.runtimes.base import WorkerSettings, load_runtime
from slmops.testing.structure_samples import (
    WORDS,
    OpenScorer,
    RunJob,
    write_tiny_sentencepiece,
)
from slmops.testing.tiny_gguf import byte_letters, write_tiny_llama
from slmops.workshop.gguf_file import read_header
from slmops.workshop.gguf_writer import metadata_entry
from slmops.workshop.model_shape import read_shape
from slmops.workshop.models import import_model, reference_path
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
from slmops.workshop.text_sources import evaluation_text

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


def test_whatever_has_only_kept_tokens_keeps_them(
    bpe_model: Path, run_job: RunJob, tmp_path: Path, open_scorer: OpenScorer
) -> None:
    """The rule trimming rests on, on words that mix kept and dropped merges."""
    model, token_map = _trim(bpe_model, run_job, tmp_path, TEXT, 320)
    old, new = open_scorer(bpe_model), open_scorer(model)
    kept = set(token_map.tolist())
    parts = st.sampled_from([*WORDS.split(), "er", "th", "tow", "n", " ", "riv", "s"])
    seen = {True: 0, False: 0}

    @settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
    @given(st.lists(parts, min_size=1, max_size=6), st.sampled_from(["", " "]))
    def keeps(words: list[str], between: str) -> None:
        text = between.join(words)
        before, after = old.tokenize(text), new.tokenize(text)
        is_kept = set(before) <= kept
        seen[is_kept] += 1
        if is_kept:
            assert token_map[after].tolist() == before
        else:
            assert len(after) >= len(before)

    keeps()
    assert min(seen.values()) > 20


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


def test_a_sentencepiece_vocabulary_is_trimmed_by_the_same_rules(
    run_job: RunJob, tmp_path: Path, open_scorer: OpenScorer
) -> None:
    whole = write_tiny_sentencepiece(tmp_path / "spm.gguf")
    model, token_map = _trim(whole, run_job, tmp_path, TEXT, 320)
    old, new = open_scorer(whole), open_scorer(model)
    before, after = old.tokenize(TEXT), new.tokenize(TEXT)
    assert token_map[after].tolist() == before
    assert len(before) < len(TEXT) / 2, "the text should use joined pieces"
    assert np.array_equal(new.logits(after), old.logits(before)[:, token_map])
    for text in (WORDS, "Zürich — 7 × 🙂\n\n\t", "zzz qqq"):
        tokens = new.tokenize(text)
        assert b"".join(map(new.piece, tokens)) == text.encode()
    texts = read_vocabulary(read_header(model)).texts
    assert {f"<0x{byte:02X}>" for byte in range(256)} <= set(texts)
    assert texts[:3] == ("<unk>", "<s>", "</s>")


def test_placeholders_go_first_although_they_are_special(
    run_job: RunJob, tmp_path: Path
) -> None:
    whole = write_tiny_sentencepiece(tmp_path / "spm.gguf")
    texts = read_vocabulary(read_header(whole)).texts
    placeholders = sum(text.startswith("<unused") for text in texts)
    assert placeholders > 64
    model, _ = _trim(whole, run_job, tmp_path, TEXT, 448 - 64)
    left = read_vocabulary(read_header(model)).texts
    assert sum(text.startswith("<unused") for text in left) <= placeholders - 64


@pytest.mark.slow
def test_the_real_model_keeps_text_tokens_and_logits(
    smollm2_gguf: Path, run_job: RunJob, tmp_path: Path, open_scorer: OpenScorer
) -> None:
    workspace = Workspace(root=tmp_path / "ws")
    record = import_model(str(smollm2_gguf), workspace)
    whole = reference_path(workspace, record)
    text = evaluation_text(EvaluationPlan(), tmp_path)
    model, token_map = _trim(whole, run_job, tmp_path, text, 8192)
    assert whole.stat().st_size - model.stat().st_size > 2 * 576 * (49152 - 8192)
    old, new = open_scorer(whole), open_scorer(model)
    before, after = old.tokenize(text), new.tokenize(text)
    assert token_map[after].tolist() == before
    expected = old.logits(before[:48])[:, token_map]
    assert np.array_equal(new.logits(after[:48]), expected)

    @settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
    @given(st.text(st.characters(exclude_categories=["Cs"]), max_size=80))
    def loses_no_more_than_the_whole_model(some: str) -> None:
        # SmolLM2 itself has no token for 21 bytes, such as 0x04.
        written = [
            b"".join(map(scorer.piece, scorer.tokenize(some))) for scorer in (old, new)
        ]
        assert written[0] == written[1]

    loses_no_more_than_the_whole_model()
