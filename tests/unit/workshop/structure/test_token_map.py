"""Fidelity across vocabularies: equal where nothing was dropped, fair where it was."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmops.domain.errors import InvalidInputError
from slmops.testing.structure_samples import WORDS, OpenScorer, RunJob
from slmops.testing.tiny_gguf import write_tiny_llama
from slmops.workshop.score_file import (
    CandidateScores,
    ReferenceScores,
    cut_windows,
    divergence,
    load_scores,
    log_softmax,
    save_scores,
    top_of,
)
from slmops.workshop.score_job import reference_scores, score_candidate, score_reference
from slmops.workshop.structure.vocabulary import trim_vocabulary
from slmops.workshop.token_map import (
    carried_divergence,
    filled,
    load_token_map,
    match_reference,
    spread_losses,
)

SIZES = {"runtime": "llamacpp", "window_tokens": 64, "max_tokens": 96}
RARE = "Überraschung! the river's 7 hills \u00bfqu\u00e9? "


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text((WORDS + RARE) * 4, encoding="utf-8")
    return path


@pytest.fixture
def reference(bpe_model: Path, text: Path, run_job: RunJob) -> Path:
    return run_job(score_reference, {"artefact": bpe_model, "text": text}, **SIZES)[
        "scores"
    ]


def _scores(
    run_job: RunJob, model: Path, reference: Path, token_map: Path | None = None
) -> CandidateScores:
    inputs = {"artefact": model, "reference": reference}
    if token_map is not None:
        inputs["token_map"] = token_map
    made = run_job(score_candidate, inputs, runtime="llamacpp")
    return load_scores(made["scores"], CandidateScores)


def test_a_map_that_drops_nothing_changes_no_figure(
    bpe_model: Path, reference: Path, run_job: RunJob, tmp_path: Path
) -> None:
    other = write_tiny_llama(tmp_path / "other.gguf", seed=9, vocabulary=448)
    whole = tmp_path / "all.npy"
    np.save(whole, np.arange(448, dtype=np.int32))
    plain = _scores(run_job, other, reference)
    mapped = _scores(run_job, other, reference, whole)
    assert plain.kld.mean() > 0.05
    assert np.allclose(mapped.kld, plain.kld, rtol=1e-5, atol=1e-7)
    assert np.array_equal(mapped.same_top1, plain.same_top1)
    assert np.array_equal(mapped.nll, plain.nll)


def test_dropping_tokens_that_nobody_expects_costs_their_mass_only(
    bpe_model: Path, text: Path, reference: Path, run_job: RunJob
) -> None:
    """All tokens of the text are kept: positions, contexts and logits are the same."""
    made = run_job(trim_vocabulary, {"model": bpe_model, "text": text}, tokens=384)
    scores = _scores(run_job, made["model"], reference, made["token_map"])
    expected = load_scores(reference, ReferenceScores)
    kept = np.load(made["token_map"])
    assert set(np.unique(expected.tokens)) <= set(kept.tolist())
    # The candidate renormalizes over what was kept: log q = log p - log(kept mass).
    gain = expected.nll - scores.nll
    assert (gain > 0).all()
    assert gain.mean() < 0.35
    # 64 of 448 nearly equally likely tokens are gone: -log(384 / 448) = 0.154.
    assert gain.mean() == pytest.approx(0.154, abs=0.05)
    # What dropped tokens began with got their mass in the reference, not here.
    assert 0.05 < scores.kld.mean() < 0.4


def test_dropped_tokens_of_the_text_are_read_in_pieces_at_the_same_bytes(
    bpe_model: Path,
    reference: Path,
    run_job: RunJob,
    tmp_path: Path,
    open_scorer: OpenScorer,
) -> None:
    corpus = tmp_path / "other.txt"
    corpus.write_text("A0 B1 the old mill")
    made = run_job(trim_vocabulary, {"model": bpe_model, "text": corpus}, tokens=320)
    expected = load_scores(reference, ReferenceScores)
    scorer = open_scorer(made["model"])
    token_map = load_token_map(made["token_map"], scorer.vocabulary)
    matched = match_reference(expected, token_map, scorer)
    assert matched.longest > expected.tokens.shape[1]
    assert 0.9 < matched.matched_share <= 1
    pieces = expected.pieces()
    for window, match in zip(expected.tokens, matched.windows, strict=True):
        ends = np.cumsum([len(pieces[token]) for token in window.tolist()])
        lengths = [len(scorer.piece(token)) for token in match.tokens.tolist()]
        lost = int(ends[-1]) - sum(lengths)
        assert 0 <= lost < 4, "at most a cut-off character at each end"
        begins = np.cumsum([0, *lengths])
        found = match.begins != -1
        places = np.flatnonzero(found) + 16
        assert np.ptp(ends[places - 1] - begins[match.begins[found]]) == 0
    scores = _scores(run_job, made["model"], reference, made["token_map"])
    assert len(scores.kld) == len(expected.nll)
    assert np.isfinite(scores.kld).all()
    # More tokens for the same bytes: more loss for each of the reference's tokens.
    assert scores.nll.mean() > expected.nll.mean() + 0.3


def test_a_candidate_that_says_the_same_in_its_own_tokens_has_no_divergence() -> None:
    """Old tokens: a, b, ab, ac; new: a, b. P(ab) and P(ac) are P'(a)."""
    old = np.log(np.array([[0.1, 0.3, 0.4, 0.2]]))
    ids, best, rest = top_of(old)
    carried = np.array([0, 1, 0, 0])
    fair = np.log(np.array([[0.7, 0.3]]))
    assert carried_divergence((ids, best), rest, carried, fair)[0] < 1e-6
    renormalized = np.log(np.array([[0.25, 0.75]]))
    wanted = 0.7 * np.log(0.7 / 0.25) + 0.3 * np.log(0.3 / 0.75)
    found = carried_divergence((ids, best), rest, carried, renormalized)
    assert found[0] == pytest.approx(wanted, rel=1e-5)


def test_listed_tokens_of_unknown_beginning_join_the_rest() -> None:
    old = np.log(np.array([[0.6, 0.4]]))
    ids, best, rest = top_of(old)
    carried = np.array([0, -1])
    candidate = np.log(np.array([[0.5, 0.3, 0.2]]))
    wanted = 0.6 * np.log(0.6 / 0.5) + 0.4 * np.log(0.4 / 0.5)
    found = carried_divergence((ids, best), rest, carried, candidate)
    assert found[0] == pytest.approx(wanted, rel=1e-5)


@given(st.integers(0, 2**32 - 1), st.integers(2, 400))
def test_carrying_every_token_to_itself_is_the_plain_divergence(
    seed: int, vocabulary: int
) -> None:
    chance = np.random.default_rng(seed)
    logits = chance.normal(0, 3, (2, 3, vocabulary)).astype(np.float32)
    reference, candidate = log_softmax(logits[0]), log_softmax(logits[1])
    ids, best, rest = top_of(reference)
    listed = np.take_along_axis(candidate, ids.astype(np.int64), axis=1)
    plain = divergence(best, rest, listed)
    found = carried_divergence((ids, best), rest, np.arange(vocabulary), candidate)
    assert np.allclose(found, plain, rtol=1e-5, atol=1e-6)


@given(
    st.lists(st.booleans(), min_size=1, max_size=20).filter(any),
    st.integers(0, 2**32 - 1),
)
def test_losses_are_spread_without_losing_any(own: list[bool], seed: int) -> None:
    chance = np.random.default_rng(seed)
    begins = np.where(own, np.cumsum(chance.integers(1, 4, len(own))), -1)
    losses = chance.random(int(begins.max()) + 3)
    spread = spread_losses(losses, begins)
    first = int(begins[begins != -1].min())
    assert spread.sum() == pytest.approx(losses[first:].sum(), rel=1e-5)
    assert (spread[~np.array(own)] == 0).all()


def test_positions_inside_a_token_repeat_its_value() -> None:
    begins = np.array([-1, 4, -1, 6, -1])
    values = np.array([0.5, 2.0], np.float32)
    assert filled(values, begins).tolist() == [0.5, 0.5, 0.5, 2.0, 2.0]


def test_what_tokens_write_is_kept_with_the_scores(
    bpe_model: Path, open_scorer: OpenScorer, tmp_path: Path
) -> None:
    scorer = open_scorer(bpe_model)
    text = WORDS * 8
    windows = cut_windows(scorer.tokenize(text), 64, 96)
    scores = reference_scores(scorer, windows, lambda done, total: None)
    save_scores(scores, tmp_path / "scores.npz")
    pieces = load_scores(tmp_path / "scores.npz", ReferenceScores).pieces()
    written = b"".join(pieces[token] for token in windows[0].tolist())
    assert text.encode().startswith(written)
    assert set(scores.top_ids.ravel().tolist()) <= set(pieces)


@pytest.mark.parametrize(
    "bad",
    [
        np.arange(5, dtype=np.int32),
        np.arange(4, dtype=np.int64),
        np.array([0, 2, 2, 3], np.int32),
        np.array([-1, 0, 1, 2], np.int32),
    ],
)
def test_a_map_of_another_model_is_refused(tmp_path: Path, bad: np.ndarray) -> None:
    np.save(tmp_path / "map.npy", bad)
    with pytest.raises(InvalidInputError, match="token map"):
        load_token_map(tmp_path / "map.npy", 4)
    (tmp_path / "map.npy").write_bytes(b"no array")
    with pytest.raises(InvalidInputError, match="not a token map"):
        load_token_map(tmp_path / "map.npy", 4)
