"""Sparsity: where the zeros are, and that better methods lose less."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmops.domain.errors import InvalidInputError
from slmops.testing.structure_samples import RunJob
from slmops.testing.tiny_gguf import stored_bytes, write_tiny_llama
from slmops.workshop.gguf_file import read_header
from slmops.workshop.precision.statistics_file import Collected, save_statistics
from slmops.workshop.quantize import Matrix
from slmops.workshop.structure.sparsegpt import sparsegpt
from slmops.workshop.structure.sparsity import (
    smallest_of_fours,
    smallest_of_rows,
    sparsify,
)

WIDTHS = {"attn_q": 64, "attn_k": 64, "attn_v": 64, "attn_output": 64}
WIDTHS |= {"ffn_gate": 64, "ffn_up": 64, "ffn_down": 128}


def _inputs(seed: int, columns: int) -> Matrix:
    """Correlated inputs of very different sizes, as activations are."""
    chance = np.random.default_rng(seed)
    mixed = chance.normal(size=(columns // 2, columns))
    sizes = np.exp(chance.normal(size=columns))
    noise = chance.normal(size=(600, columns)) * 0.3
    rows = chance.normal(size=(600, columns // 2)) @ mixed / columns**0.5 + noise
    return np.asarray(rows * sizes, np.float32)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny_llama(tmp_path / "dense.gguf")


@pytest.fixture
def statistics(tmp_path: Path) -> Path:
    inputs = [_inputs(1, 64), _inputs(2, 128)]
    names = {
        f"blk.{block}.{part}.weight": int(width == 128)
        for block in range(2)
        for part, width in WIDTHS.items()
    }
    found = Collected(
        tokens=600,
        inputs=names,
        mean_squares=tuple(np.square(rows).mean(axis=0) for rows in inputs),
        block_similarity=np.ones(2, np.float32),
    )
    moments = (np.asarray(rows.T @ rows / 600, np.float32) for rows in inputs)
    save_statistics(tmp_path / "s.npz", found, moments)
    return tmp_path / "s.npz"


def _weights(path: Path, name: str) -> Matrix:
    header = read_header(path)
    tensor = next(tensor for tensor in header.tensors if tensor.name == name)
    raw = np.frombuffer(stored_bytes(header, tensor), np.float16)
    return raw.astype(np.float32).reshape(tensor.rows, tensor.width)


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_half_of_every_block_matrix_is_zero_and_nothing_else_changes(
    method: str, model: Path, statistics: Path, run_job: RunJob
) -> None:
    inputs = {"model": model, "statistics": statistics}
    made = run_job(
        sparsify, inputs, method=method, pattern="unstructured", sparsity=0.5
    )["model"]
    assert made.stat().st_size == model.stat().st_size
    for tensor in read_header(model).tensors:
        before, after = (
            stored_bytes(read_header(path), tensor) for path in (model, made)
        )
        part = tensor.name.split(".")[-2]
        if part in WIDTHS:
            assert np.mean(_weights(made, tensor.name) == 0) == 0.5
        else:
            assert before == after


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_two_of_four_neighbours_are_zero(
    method: str, model: Path, statistics: Path, run_job: RunJob
) -> None:
    inputs = {"model": model, "statistics": statistics}
    made = run_job(sparsify, inputs, method=method, pattern="2:4", sparsity=0.5)
    for part in WIDTHS:
        groups = _weights(made["model"], f"blk.1.{part}.weight").reshape(-1, 4)
        assert ((groups == 0).sum(axis=1) == 2).all()


@pytest.mark.parametrize("fours", [False, True])
def test_methods_that_know_the_inputs_lose_less(fours: bool) -> None:
    inputs = _inputs(3, 192)
    chance = np.random.default_rng(3)
    weights = chance.normal(size=(40, 192)).astype(np.float32)
    moment = np.asarray(inputs.T @ inputs / len(inputs), np.float32)

    def loss(pruned: Matrix) -> float:
        return float(np.square(inputs @ (weights - pruned).T).mean())

    def masked(scores: Matrix) -> float:
        gone = smallest_of_fours(scores) if fours else smallest_of_rows(scores, 0.5)
        return loss(np.where(gone, np.float32(0), weights))

    magnitude = masked(np.abs(weights))
    wanda = masked(np.abs(weights) * np.sqrt(np.diag(moment)))
    compensated = loss(sparsegpt(weights, moment, 0.5, fours=fours))
    assert compensated < 0.7 * wanda
    assert wanda < 0.9 * magnitude


def test_weights_of_a_channel_that_is_always_zero_cost_nothing() -> None:
    weights = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    moment = np.diag(np.array([1, 1, 1, 1, 0, 0, 0, 0], np.float32))
    pruned = sparsegpt(weights, moment, 0.5)
    assert np.allclose(pruned[:, :4], weights[:, :4])
    assert not pruned[:, 4:].any()


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.floats(0.05, 0.95))
def test_every_row_gets_its_share_of_zeros_smallest_first(
    seed: int, rows: int, share: float
) -> None:
    scores = np.random.default_rng(seed).random((rows, 20)).astype(np.float32)
    gone = smallest_of_rows(scores, share)
    assert (gone.sum(axis=1) == int(share * 20)).all()
    for row, lost in zip(scores, gone, strict=True):
        assert row[lost].max(initial=0) <= row[~lost].min(initial=1)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"method": "random"}, "method must be one of magnitude, wanda, sparsegpt"),
        ({"pattern": "4:8"}, "pattern must be one of unstructured, 2:4"),
        ({"sparsity": 1.0}, "above 0 and below 1"),
        ({"sparsity": 0.6, "pattern": "2:4"}, "sparsity of 2:4 is 0.5, got 0.6"),
        ({"method": "wanda"}, "wanda needs the input statistics"),
        ({"sparsity": "much"}, "sparsity must be float"),
    ],
)
def test_what_cannot_be_done_is_refused(
    model: Path, run_job: RunJob, parameters: dict[str, str | float], message: str
) -> None:
    asked = {"method": "magnitude", "pattern": "unstructured", "sparsity": 0.5}
    with pytest.raises(InvalidInputError, match=message):
        run_job(sparsify, {"model": model}, **(asked | parameters))
