"""Scores: windows, divergences over listed tokens and rest, and archives nobody can fool."""

import io
import zipfile
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmops.domain.errors import InvalidInputError
from slmops.workshop.score_file import (
    TOP_K,
    CandidateScores,
    ReferenceScores,
    context_of,
    cut_windows,
    divergence,
    load_scores,
    log_softmax,
    save_scores,
    top_of,
)

SEEDS = st.integers(0, 2**32 - 1)
Wide = npt.NDArray[np.float64]


def some_logprobs(seed: int, *, rows: int = 6, vocabulary: int = 1000) -> Wide:
    chance = np.random.default_rng(seed)
    spread = chance.uniform(0.5, 8.0)
    logits = chance.normal(0, spread, (rows, vocabulary)).astype(np.float32)
    return log_softmax(logits)


def nudged(logprobs: Wide, seed: int, by: float) -> Wide:
    noise = np.random.default_rng(seed).normal(0, by, logprobs.shape)
    return log_softmax((logprobs + noise).astype(np.float32))


def full_divergence(reference: Wide, candidate: Wide) -> Wide:
    total: Wide = (np.exp(reference) * (reference - candidate)).sum(axis=1)
    return total


def listed_divergence(reference: Wide, candidate: Wide) -> Wide:
    ids, best, rest = top_of(reference)
    listed = np.take_along_axis(candidate, ids.astype(np.int64), axis=1)
    return divergence(best, rest, listed).astype(np.float64)


@given(SEEDS, SEEDS, st.floats(0.0, 4.0))
@settings(max_examples=60, deadline=None)
def test_the_listed_divergence_is_a_lower_bound_and_never_negative(
    seed: int, other: int, by: float
) -> None:
    reference = some_logprobs(seed)
    candidate = nudged(reference, other, by)
    found, full = (
        listed_divergence(reference, candidate),
        full_divergence(reference, candidate),
    )
    assert (found >= 0).all()
    # Scores are float32: rounding may lift the bound by its last digits.
    assert (found <= full + 1e-5 + 1e-5 * full).all()


@given(SEEDS)
@settings(max_examples=20, deadline=None)
def test_a_model_does_not_diverge_from_itself(seed: int) -> None:
    reference = some_logprobs(seed)
    assert listed_divergence(reference, reference).max() < 1e-5


@given(SEEDS, SEEDS)
@settings(max_examples=20, deadline=None)
def test_with_every_token_listed_the_bound_is_the_divergence(
    seed: int, other: int
) -> None:
    reference = some_logprobs(seed, vocabulary=TOP_K)
    candidate = nudged(reference, other, 1.0)
    np.testing.assert_allclose(
        listed_divergence(reference, candidate),
        full_divergence(reference, candidate),
        rtol=1e-3,
        atol=1e-5,
    )


def test_a_token_the_candidate_calls_impossible_gives_a_large_finite_divergence() -> (
    None
):
    reference = log_softmax(np.array([[5.0, 1.0, 0.0]], np.float32))
    candidate = log_softmax(np.array([[-200.0, 1.0, 0.0]], np.float32))
    found = listed_divergence(reference, candidate)
    assert np.isfinite(found).all()
    assert found[0] > 50


@given(SEEDS)
@settings(max_examples=20, deadline=None)
def test_log_probabilities_sum_to_one_and_ignore_a_shift(seed: int) -> None:
    logits = np.random.default_rng(seed).normal(0, 10, (4, 300)).astype(np.float32)
    found = log_softmax(logits)
    np.testing.assert_allclose(np.exp(found).sum(axis=1), 1.0, rtol=1e-12)
    np.testing.assert_allclose(log_softmax(logits + 64), found, atol=1e-4)


def test_huge_logits_do_not_overflow() -> None:
    found = log_softmax(np.array([[3e38, -3e38, 0.0]], np.float32))
    assert np.isfinite(found).all()
    assert found[0, 0] == 0.0


@given(SEEDS)
@settings(max_examples=20, deadline=None)
def test_the_listed_tokens_are_the_best_in_order_with_the_mass_of_the_rest(
    seed: int,
) -> None:
    logprobs = some_logprobs(seed)
    ids, best, rest = top_of(logprobs)
    assert ids.shape == best.shape == (6, TOP_K)
    order = np.sort(logprobs, axis=1)[:, ::-1][:, :TOP_K]
    np.testing.assert_allclose(best, order, rtol=1e-6, atol=1e-6)
    assert (ids[:, 0] == logprobs.argmax(axis=1)).all()
    mass = np.exp(logprobs).sum(axis=1) - np.exp(order).sum(axis=1)
    np.testing.assert_allclose(np.exp(rest.astype(float)), mass, atol=1e-6)


def test_equal_log_probabilities_are_listed_by_token() -> None:
    ids, _, _ = top_of(np.full((1, 8), np.log(1 / 8)))
    assert ids.tolist() == [list(range(8))]


@given(st.integers(32, 96), st.integers(32, 600), st.integers(0, 800))
def test_every_token_is_scored_at_most_once_with_its_context(
    window: int, scored: int, length: int
) -> None:
    context = context_of(window)
    try:
        windows = cut_windows(list(range(length)), window, scored)
    except InvalidInputError:
        assert length < context + 2 * (window - context)
        return
    predicted = windows[:, context:].ravel().tolist()
    assert predicted == list(range(context, context + len(predicted)))
    assert len(windows) >= 2
    assert len(predicted) <= max(scored, 2 * (window - context))


def test_a_short_text_is_refused_with_its_length() -> None:
    with pytest.raises(InvalidInputError, match=r"at least 448 tokens.*got 20"):
        cut_windows(list(range(20)), 256, 768)


def reference_scores() -> ReferenceScores:
    logprobs = some_logprobs(1, rows=4)
    ids, best, rest = top_of(logprobs)
    return ReferenceScores(
        tokens=np.arange(8, dtype=np.int32).reshape(2, 4),
        top_ids=ids,
        top_logprobs=best,
        rest_logprob=rest,
        nll=np.ones(4, np.float32),
    )


def candidate_scores() -> CandidateScores:
    return CandidateScores(
        kld=np.linspace(0, 1, 4).astype(np.float32),
        same_top1=np.array([True, False, True, True]),
        nll=np.ones(4, np.float32),
    )


def test_saved_scores_come_back_and_equal_scores_have_equal_bytes(
    tmp_path: Path,
) -> None:
    paths = [tmp_path / "one", tmp_path / "two"]
    for path in paths:
        save_scores(reference_scores(), path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    found = load_scores(paths[0], ReferenceScores)
    for field in fields(found):
        np.testing.assert_array_equal(
            getattr(found, field.name), getattr(reference_scores(), field.name)
        )


def test_scores_of_the_other_kind_are_refused(tmp_path: Path) -> None:
    save_scores(candidate_scores(), tmp_path / "scores")
    with pytest.raises(InvalidInputError, match="scores must hold"):
        load_scores(tmp_path / "scores", ReferenceScores)


def test_scores_of_different_lengths_are_refused(tmp_path: Path) -> None:
    short = replace(candidate_scores(), kld=np.zeros(3, np.float32))
    save_scores(short, tmp_path / "scores")
    with pytest.raises(InvalidInputError, match="kld must have 4 rows, got 3"):
        load_scores(tmp_path / "scores", CandidateScores)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no archive at all"])
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "scores"
    path.write_bytes(content)
    with pytest.raises(InvalidInputError, match="not a score archive"):
        load_scores(path, CandidateScores)


def test_a_cut_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "scores"
    save_scores(candidate_scores(), path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InvalidInputError, match="not a score archive"):
        load_scores(path, CandidateScores)


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('a pickle ran')",)


def test_a_pickle_inside_an_archive_never_runs(tmp_path: Path) -> None:
    path = tmp_path / "scores"
    save_scores(candidate_scores(), path)
    bomb = io.BytesIO()
    np.save(bomb, np.array([Bomb()] * 4), allow_pickle=True)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["kld.npy"] = bomb.getvalue()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(InvalidInputError, match="not a score archive"):
        load_scores(path, CandidateScores)


def test_texts_are_no_scores(tmp_path: Path) -> None:
    path = tmp_path / "scores"
    np.savez(path, kld=["a"] * 4, same_top1=[True] * 4, nll=[1.0] * 4)
    with pytest.raises(InvalidInputError, match="kld must be numbers"):
        load_scores(path.with_suffix(".npz"), CandidateScores)
