"""Comparing: a change counts when bounds are apart, and only of what is comparable."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from slmops.domain.errors import InvalidInputError, NotFoundError
from slmops.domain.estimate import Estimate
from slmops.domain.release import Card
from slmops.registry.blobs import BlobStore
from slmops.testing.sample_release import digest_of
from slmops.testing.tiny_gguf import write_tiny_llama
from slmops.wire.codec import decode_json, encode_json
from slmops.workshop.build_result import BuildResult
from slmops.workshop.evidence.compare import (
    BuildComparison,
    compare_builds,
    compare_candidates,
    find_candidate,
)
from slmops.workshop.evidence.figure_changes import (
    FigureChange,
    Verdict,
    compare_figures,
)
from slmops.workshop.evidence.figures import Nature, card_figures
from slmops.workshop.evidence.tensor_changes import compare_tensors
from slmops.workshop.quantize import quantize_gguf


def by_key(changes: tuple[FigureChange, ...]) -> dict[str, FigureChange]:
    return {f"{change.of}/{change.name}".lstrip("/"): change for change in changes}


def with_kld(card: Card, low: float, value: float, high: float) -> Card:
    kld = Estimate(value=value, low=low, high=high)
    return replace(card, fidelity=replace(card.fidelity, mean_kld=kld))


@pytest.fixture
def card(build: BuildResult) -> Card:
    return with_kld(build.candidates[1].card, 0.04, 0.05, 0.06)


@pytest.mark.parametrize(
    ("after", "verdict", "overlapping"),
    [
        ((0.01, 0.02, 0.03), Verdict.BETTER, False),
        ((0.07, 0.08, 0.09), Verdict.WORSE, False),
        ((0.05, 0.055, 0.07), Verdict.UNCLEAR, True),
        ((0.06, 0.07, 0.08), Verdict.UNCLEAR, True),
        ((0.04, 0.05, 0.06), Verdict.EQUAL, None),
    ],
)
def test_a_difference_counts_when_bounds_are_apart(
    after: tuple[float, float, float],
    verdict: Verdict,
    overlapping: bool | None,
    card: Card,
    build: BuildResult,
) -> None:
    found = compare_figures((build, card), (build, with_kld(card, *after)))
    change = by_key(found)["mean_kld_nats"]
    assert change.verdict is verdict
    assert change.is_overlapping is overlapping
    assert change.difference == after[1] - 0.05


def test_more_tokens_per_second_are_better_and_more_bytes_are_worse(
    card: Card, build: BuildResult
) -> None:
    fast = Estimate(value=100.0, low=99.0, high=101.0)
    speed = replace(card.speed[0], decode_tokens_per_s=fast)
    after = replace(card, speed=(speed,), bytes=card.bytes + 1)
    found = by_key(compare_figures((build, card), (build, after)))
    at = "threads 1, context 1024"
    assert found[f"{at}/decode_tokens_per_s"].verdict is Verdict.BETTER
    assert found["bytes"].verdict is Verdict.WORSE
    assert found["bytes"].difference == 1


def test_what_was_observed_once_is_never_called_better(
    card: Card, build: BuildResult
) -> None:
    speed = replace(card.speed[0], load_ms=card.speed[0].load_ms / 2)
    after = replace(card, speed=(speed,))
    found = by_key(compare_figures((build, card), (build, after)))
    assert found["threads 1, context 1024/load_ms"].verdict is Verdict.UNBOUNDED


def _other_text(card: Card) -> Card:
    return replace(card, fidelity=replace(card.fidelity, text_digest=digest_of(b"t2")))


def _fewer_positions(card: Card) -> Card:
    return replace(card, fidelity=replace(card.fidelity, tokens=7))


def _other_reference(card: Card) -> Card:
    return replace(card, reference=digest_of(b"another"))


@pytest.mark.parametrize("change", [_other_text, _fewer_positions, _other_reference])
def test_fidelity_of_other_texts_or_references_is_not_subtracted(
    change: Callable[[Card], Card], card: Card, build: BuildResult
) -> None:
    after = change(with_kld(card, 0.01, 0.02, 0.03))
    found = by_key(compare_figures((build, card), (build, after)))
    assert found["mean_kld_nats"].verdict is Verdict.INCOMPARABLE
    assert found["mean_kld_nats"].difference is None
    assert found["mean_kld_nats"].reason
    assert found["bytes"].verdict is Verdict.EQUAL


def test_speeds_of_another_machine_or_runtime_are_not_subtracted(
    card: Card, build: BuildResult
) -> None:
    elsewhere = replace(build, machine="another machine")
    speed = "threads 1, context 1024/decode_tokens_per_s"
    found = by_key(compare_figures((build, card), (elsewhere, card)))
    assert found[speed].reason == "another machine"
    assert found["mean_kld_nats"].verdict is Verdict.EQUAL
    newer = replace(card, runtime="echo 2")
    found = by_key(compare_figures((build, card), (build, newer)))
    assert found[speed].reason == "another runtime"


def test_tasks_of_other_examples_are_not_subtracted(
    card: Card, build: BuildResult
) -> None:
    task = replace(card.tasks[0], examples_digest=digest_of(b"other examples"))
    after = replace(card, tasks=(task,))
    found = by_key(compare_figures((build, card), (build, after)))
    assert found["task intents/accuracy"].reason == "other examples or prompts"
    without = replace(card, tasks=())
    found = by_key(compare_figures((build, card), (build, without)))
    assert found["task intents/accuracy"].verdict is Verdict.ONE_SIDED


def test_figures_are_unique_and_say_their_nature(card: Card) -> None:
    speed = replace(card.speed[0], extrapolated_mib=20.0)
    figures = card_figures(replace(card, speed=(speed,)))
    assert len({figure.key for figure in figures}) == len(figures)
    modelled = [f for f in figures if f.nature is Nature.MODELLED]
    assert [f.estimate.value for f in modelled] == [speed.peak_rss_mib]
    measured = {f.name: f.estimate.value for f in figures}
    assert measured["peak_rss_mib"] == speed.measured_peak_mib


def test_a_candidate_is_found_by_label_or_digest(build: BuildResult) -> None:
    wanted = build.candidates[1]
    assert find_candidate(build, "Q4_K_M") == wanted
    assert find_candidate(build, wanted.digest[7:17]) == wanted
    assert find_candidate(build, "F16") == build.reference
    with pytest.raises(NotFoundError, match=r"Q8_0, Q4_K_M"):
        find_candidate(build, "Q4_K_X")
    twice = replace(
        build, candidates=(*build.candidates, replace(wanted, digest=digest_of(b"2")))
    )
    with pytest.raises(InvalidInputError, match="fits 2"):
        find_candidate(twice, "Q4_K_M")


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "store")


def test_tensors_are_compared_by_type_shape_and_bytes(
    blobs: BlobStore, tmp_path: Path
) -> None:
    source = write_tiny_llama(tmp_path / "a.gguf", width=64)
    small = tmp_path / "b.gguf"
    with small.open("wb") as sink:
        quantize_gguf(source, "Q8_0", sink)
    one, two = blobs.put_file(source), blobs.put_file(small)
    found = compare_tensors(one, two, blobs)
    assert found is not None
    names = {change.name for change in found.changed}
    assert "blk.0.attn_q.weight" in names
    assert "output_norm.weight" not in names, "norms stay as they were"
    assert found.unchanged > 0
    assert sum(found.moves.values()) == len(found.changed)
    assert set(found.moves) == {"F16 → Q8_0"}
    saved = sum(c.before_bytes - c.after_bytes for c in found.changed)
    sizes = source.stat().st_size - small.stat().st_size
    assert abs(saved - sizes) < 1024, "all of the difference but alignment"
    same = compare_tensors(one, one, blobs)
    assert same is not None
    assert same.changed == ()


def test_a_layer_that_is_gone_is_a_change(blobs: BlobStore, tmp_path: Path) -> None:
    deep = blobs.put_file(write_tiny_llama(tmp_path / "a.gguf", layers=2))
    flat = blobs.put_file(write_tiny_llama(tmp_path / "b.gguf", layers=1))
    found = compare_tensors(deep, flat, blobs)
    assert found is not None
    assert {c.name.split(".")[1] for c in found.changed} == {"1"}
    assert all(c.after is None and c.after_bytes == 0 for c in found.changed)
    assert compare_tensors(deep, digest_of(b"gone"), blobs) is None
    assert compare_tensors(deep, blobs.put_bytes(b"no model"), blobs) is None


def test_two_builds_are_compared_key_by_key_and_step_by_step(
    build: BuildResult, blobs: BlobStore
) -> None:
    plan = replace(build.blueprint.evaluation, max_tokens=1024)
    quality = replace(build.blueprint.quality, min_same_top1=0.5)
    selection = tuple(
        replace(s, digest=build.candidates[1].digest, quantization="Q4_K_M")
        if s.device_class == "small"
        else s
        for s in build.selection
    )
    after = replace(
        build,
        blueprint=replace(build.blueprint, evaluation=plan, quality=quality),
        candidates=build.candidates[:-1],
        selection=selection,
        provenance=build.provenance[:2],
    )
    found = compare_builds(build, after, blobs)
    assert dict(found.blueprint) == {
        "evaluation.max_tokens": (768, 1024),
        "quality.min_same_top1": (0.7, 0.5),
    }
    assert found.only_before == ("Q2_K",)
    assert found.only_after == ()
    (small, large) = found.selection
    assert (small.before, small.after) == ("Q3_K_M", "Q4_K_M")
    assert large.before == large.after
    assert (found.shared_steps, found.new_steps) == (2, 0)
    assert len(found.common) == 4
    assert decode_json(encode_json(found), BuildComparison, where="x").only_before


def test_a_comparison_says_what_flatters_it(
    build: BuildResult, blobs: BlobStore
) -> None:
    (one, two, *_) = build.candidates
    flattered = replace(two, on_reference_grid=True)
    found = compare_candidates((build, one), (build, flattered), blobs)
    assert any("flattered" in line for line in found.remarks)
    assert found.tensors is None
    assert found.after.endswith(":Q4_K_M")
