"""Width pruning: what goes, what it leaves equal, what makes up for it."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from slmops.domain.errors import InvalidInputError
from slmops.testing.structure_samples import OpenScorer, RunJob
from slmops.testing.tiny_gguf import stored_bytes, write_tiny_llama
from slmops.workshop.gguf_file import read_header
from slmops.workshop.model_shape import read_shape
from slmops.workshop.precision.statistics_file import Collected, save_statistics
from slmops.workshop.quantize import Matrix
from slmops.workshop.structure.importance import read_statistics
from slmops.workshop.structure.model_edit import (
    SourceModel,
    TensorEdit,
    copied,
    read_source,
    rewritten,
    with_changes,
    write_model,
)
from slmops.workshop.structure.width import (
    BlockKept,
    choose_kept,
    prune_width,
    refitted,
    resolve_widths,
    write_narrower,
)

TOKENS = list(range(3, 80))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny_llama(
        tmp_path / "wide.gguf", width=128, heads=8, kv_heads=4, feed_forward=192
    )


def _without_columns(
    source: SourceModel, columns: dict[str, npt.NDArray[np.int64]], path: Path
) -> Path:
    """Write the model with some columns of some tensors zero."""

    def edit(name: str) -> TensorEdit:
        tensor = next(t for t in source.header.tensors if t.name == name)
        if name not in columns:
            return copied(tensor)

        def zero(weights: Matrix) -> Matrix:
            weights = weights.copy()
            weights[:, columns[name]] = 0
            return weights

        return rewritten(tensor, tensor.width, zero)

    edits = [edit(tensor.name) for tensor in source.header.tensors]
    return write_model(source, with_changes(source, []), edits, path)


def test_a_permutation_of_channels_and_heads_computes_the_same(
    model: Path, tmp_path: Path, open_scorer: OpenScorer
) -> None:
    source = read_source(model)
    chance = np.random.default_rng(4)
    kept = []
    for _ in range(source.shape.layers):
        groups = chance.permutation(4)
        heads = np.concatenate([group * 2 + chance.permutation(2) for group in groups])
        channels = chance.permutation(192)
        kept.append(BlockKept(channels=channels, kv_heads=groups, heads=heads))
    moved = write_narrower(source, kept, tmp_path / "moved.gguf")
    assert moved.read_bytes() != model.read_bytes()
    expected = open_scorer(model).logits(TOKENS)
    found = open_scorer(moved).logits(TOKENS)
    # Sums run in another order, in the runtime's 16-bit products.
    assert np.abs(found - expected).max() < 2e-2
    assert np.abs(found - expected).mean() < 3e-3


def test_channels_and_heads_that_contribute_nothing_go_and_are_not_missed(
    model: Path, tmp_path: Path, run_job: RunJob, open_scorer: OpenScorer
) -> None:
    source = read_source(model)
    channels = np.arange(5, 69)
    group = np.arange(2 * 16 * 2, 2 * 16 * 3)  # the third key and value head's
    columns = {}
    for block in range(2):
        columns[f"blk.{block}.ffn_down.weight"] = channels
        columns[f"blk.{block}.attn_output.weight"] = group
    idle = _without_columns(source, columns, tmp_path / "idle.gguf")
    made = run_job(prune_width, {"model": idle}, feed_forward=128, heads=6, kv_heads=3)
    shape = read_shape(read_header(made["model"]))
    assert (shape.feed_forward, shape.heads, shape.kv_heads) == (128, 6, 3)
    assert (shape.key_width, shape.value_width) == (16, 16)
    expected = open_scorer(idle).logits(TOKENS)
    found = open_scorer(made["model"]).logits(TOKENS)
    assert np.abs(found - expected).max() < 2e-2
    assert np.abs(found - expected).mean() < 3e-3


def test_statistics_outweigh_large_weights(model: Path, tmp_path: Path) -> None:
    source = read_source(model)
    quiet = np.arange(0, 64)
    means = np.ones(192, np.float32)
    means[quiet] = 1e-6
    statistics = tmp_path / "s.npz"
    save_statistics(
        statistics,
        Collected(
            tokens=1,
            inputs={f"blk.{block}.ffn_down.weight": 0 for block in range(2)},
            mean_squares=(means,),
            block_similarity=np.ones(2, np.float32),
        ),
    )
    found = read_statistics(statistics, source)
    kept = choose_kept(source, resolve_widths(source, feed_forward=128), found)
    for block in kept:
        assert not set(block.channels.tolist()) & set(quiet.tolist())


def test_the_refit_restores_what_correlated_channels_carried() -> None:
    chance = np.random.default_rng(1)
    shared = chance.normal(size=(400, 6))
    inputs = shared @ chance.normal(size=(6, 12))
    weights = chance.normal(size=(5, 12)).astype(np.float32)
    kept = np.array([0, 2, 3, 5, 7, 8, 10])
    moment = (inputs.T @ inputs / len(inputs)).astype(np.float32)
    wanted = inputs @ weights.T
    cut = inputs[:, kept] @ weights[:, kept].T
    refit = inputs[:, kept] @ refitted(weights, moment, kept, tokens=10**6).T
    lost = np.square(wanted - cut).mean()
    assert np.square(wanted - refit).mean() < 0.01 * lost


def test_the_refit_leaves_independent_channels_alone() -> None:
    weights = np.random.default_rng(2).normal(size=(3, 8)).astype(np.float32)
    kept = np.arange(5)
    found = refitted(weights, np.eye(8, dtype=np.float32), kept, tokens=100)
    assert np.allclose(found, weights[:, kept])


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({}, "needs a smaller feed_forward"),
        ({"feed_forward": 192}, "needs a smaller feed_forward"),
        ({"feed_forward": 100}, "multiple of 32.*96 or 128, got 100"),
        ({"feed_forward": 256}, "feed_forward must be 0 .* to 192, got 256"),
        ({"heads": 6}, "multiple of kv_heads, got 6 and 4"),
        ({"heads": 6, "kv_heads": 2}, "heads must be at most 4"),
        ({"heads": 8, "kv_heads": -1}, "kv_heads must be 0"),
        ({"heads": 3, "kv_heads": 3}, "must be a multiple of 32, got 48"),
    ],
)
def test_sizes_that_cannot_be_had_are_refused(
    model: Path, sizes: dict[str, int], message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        resolve_widths(read_source(model), **sizes)


def test_heads_alone_thin_out_every_group_and_kv_heads_take_whole_groups(
    model: Path,
) -> None:
    source = read_source(model)
    thin = resolve_widths(source, heads=4)
    assert (thin.heads, thin.kv_heads) == (4, 4)
    assert [head // 2 for head in choose_kept(source, thin)[0].heads] == [0, 1, 2, 3]
    groups = resolve_widths(source, kv_heads=2)
    assert (groups.heads, groups.kv_heads) == (4, 2)


def test_statistics_of_another_model_are_refused(
    model: Path, tmp_path: Path, run_job: RunJob
) -> None:
    statistics = tmp_path / "s.npz"
    save_statistics(
        statistics,
        Collected(
            tokens=1,
            inputs={"blk.0.ffn_down.weight": 0},
            mean_squares=(np.ones(64, np.float32),),
            block_similarity=np.ones(2, np.float32),
        ),
    )
    inputs = {"model": model, "statistics": statistics}
    with pytest.raises(InvalidInputError, match="statistics of another model"):
        run_job(prune_width, inputs, feed_forward=128, heads=0, kv_heads=0)


def test_second_moments_refit_unless_told_not_to(
    model: Path, tmp_path: Path, run_job: RunJob, open_scorer: OpenScorer
) -> None:
    """Half of the channels repeat the other half, so the rest can stand in for them."""
    source = read_source(model)
    moment = np.kron(np.ones((2, 2)), np.eye(96)).astype(np.float32)
    statistics = tmp_path / "s.npz"
    save_statistics(
        statistics,
        Collected(
            tokens=4096,
            inputs={f"blk.{block}.ffn_down.weight": 0 for block in range(2)},
            mean_squares=(np.ones(192, np.float32),),
            block_similarity=np.ones(2, np.float32),
        ),
        iter([moment]),
    )
    inputs = {"model": model, "statistics": statistics}
    sizes = {"feed_forward": 96, "heads": 0, "kv_heads": 0}
    refit = run_job(prune_width, inputs, **sizes)["model"]
    plain = run_job(prune_width, inputs, **sizes, refit=False)["model"]
    found = read_statistics(statistics, source)
    channels = choose_kept(source, resolve_widths(source, feed_forward=96), found)[0]
    weights, cut, made = (_down(path) for path in (model, plain, refit))
    assert np.array_equal(cut, weights[:, channels.channels])
    chance = np.random.default_rng(5).normal(size=(96, 50))
    twice = np.concatenate([chance, chance])
    wanted = weights @ twice
    kept = twice[channels.channels]
    assert (
        np.square(wanted - made @ kept).mean()
        < 0.8 * np.square(wanted - cut @ kept).mean()
    )


def _down(path: Path) -> npt.NDArray[np.float64]:
    header = read_header(path)
    tensor = next(t for t in header.tensors if t.name == "blk.0.ffn_down.weight")
    raw = np.frombuffer(stored_bytes(header, tensor), np.float16)
    return raw.astype(np.float64).reshape(tensor.rows, tensor.width)
