"""Compensated rounding: less error where it counts, in blocks llama.cpp reads."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmops.domain.errors import InvalidInputError
from slmops.testing.tiny_gguf import stored_bytes, write_tiny_llama
from slmops.workshop.gguf_file import BLOCKS, TensorEntry, read_header
from slmops.workshop.jobs.job import Job
from slmops.workshop.precision.blocks import COMPENSATED_TYPES
from slmops.workshop.precision.compensated import (
    DAMPING,
    Compensation,
    make_plan,
)
from slmops.workshop.precision.statistics_file import (
    Collected,
    Floats,
    Statistics,
    load_statistics,
    save_statistics,
)
from slmops.workshop.quantize import (
    Matrix,
    decode_rows,
    encode_rows,
    predict_quantized,
    quantize_gguf,
)
from slmops.workshop.quantize_job import run

NAME = "blk.0.attn_q.weight"
Known = Callable[[Floats], Statistics]


@pytest.fixture
def known(tmp_path: Path) -> Known:
    """Make statistics of one tensor out of its inputs, (tokens, width)."""

    def make(rows: Floats) -> Statistics:
        moment = (rows.T @ rows / len(rows)).astype(np.float32)
        collected = Collected(
            tokens=len(rows),
            inputs={NAME: 0},
            mean_squares=(moment.diagonal().copy(),),
            block_similarity=np.zeros(1, np.float32),
        )
        save_statistics(tmp_path / "known", collected, iter([moment]))
        return load_statistics(tmp_path / "known")

    return make


def correlated(width: int, seed: int, tokens: int = 2000) -> Floats:
    """Return inputs as models have them: few directions carry most of it."""
    chance = np.random.default_rng(seed)
    mixing = chance.normal(size=(width // 4, width))
    rows = chance.normal(size=(tokens, width // 4)) @ mixing
    rows += 0.3 * chance.normal(size=(tokens, width))
    return np.asarray(rows * np.exp(chance.normal(size=width)), np.float32)


def weights(rows: int, width: int, seed: int) -> Matrix:
    return np.random.default_rng(seed).normal(0, 0.05, (rows, width)).astype(np.float32)


def output_loss(error: Matrix, moment: Floats) -> float:
    return float(np.einsum("ij,ij->", error @ moment, error))


def entry(width: int, rows: int) -> TensorEntry:
    return TensorEntry(name=NAME, shape=(width, rows), kind="F16")


@pytest.mark.parametrize("kind", sorted(COMPENSATED_TYPES))
def test_the_output_error_is_less_than_with_importance(kind: str, known: Known) -> None:
    statistics, values = known(correlated(512, 1)), weights(40, 512, 2)
    moment = statistics.moment(NAME)
    encode = Compensation(statistics=statistics)(entry(512, 40), kind)
    assert moment is not None
    assert encode is not None
    losses = [
        output_loss(decode_rows(raw, kind, 40, 512) - values, moment)
        for raw in (
            encode(values),
            encode_rows(values, kind, statistics.importance[NAME]),
        )
    ]
    # Blocks of 256 have all their scales before any of their columns is rounded.
    assert losses[0] < (0.25 if BLOCKS[kind][0] == 32 else 0.95) * losses[1]


def test_a_column_is_rounded_where_it_makes_up_for_those_before() -> None:
    # Two columns that always carry the same input: the second takes the first's error.
    moment = np.eye(32, dtype=np.float32)
    moment[0, 1] = moment[1, 0] = 1
    plan = make_plan(moment, 32, 0)
    assert plan.order[:2].tolist() == [0, 1]
    # The last in order owes nothing to later ones: its cost is all of its moment.
    assert plan.share[0, 1] == pytest.approx(1, abs=0.01)
    assert plan.cost[0] == pytest.approx(0, abs=0.01)
    assert plan.cost[1] == pytest.approx(1, abs=0.01)


@settings(max_examples=20)
@given(seed=st.integers(0, 1000))
def test_the_plan_splits_the_output_error_into_columns(seed: int) -> None:
    chance = np.random.default_rng(seed)
    rows = chance.normal(size=(50, 64))
    moment = (rows.T @ rows / 50).astype(np.float32)
    error = chance.normal(size=64).astype(np.float32)
    plan = make_plan(moment, 32, 0.2)
    ordered = error[plan.order]
    split = (plan.cost * (ordered + ordered @ plan.share) ** 2).sum()
    alone = np.diag(moment.diagonal())
    shrunk = 0.8 * moment + 0.2 * alone
    shrunk += DAMPING * moment.diagonal().mean() * np.eye(64)
    assert split == pytest.approx(error @ shrunk @ error, rel=1e-3)
    assert sorted(plan.order.tolist()) == list(range(64))


def test_inputs_that_are_always_zero_do_no_harm(known: Known) -> None:
    rows = correlated(64, 3)
    rows[:, 10:50] = 0
    for inputs in (rows, np.zeros_like(rows)):
        encode = Compensation(statistics=known(inputs))(entry(64, 8), "Q4_0")
        assert encode is not None
        found = decode_rows(encode(weights(8, 64, 4)), "Q4_0", 8, 64)
        assert np.isfinite(found).all()


def test_rows_of_zeros_stay_zeros(known: Known) -> None:
    statistics = known(correlated(256, 5))
    for kind in sorted(COMPENSATED_TYPES):
        encode = Compensation(statistics=statistics)(entry(256, 2), kind)
        assert encode is not None
        raw = encode(np.zeros((2, 256), np.float32))
        assert not decode_rows(raw, kind, 2, 256).any(), kind


def test_moments_of_another_width_are_refused(known: Known) -> None:
    compensation = Compensation(statistics=known(correlated(64, 6)))
    with pytest.raises(InvalidInputError, match="another model's statistics"):
        compensation(entry(96, 4), "Q4_0")


def test_types_and_tensors_without_a_way_are_left_to_nearest(known: Known) -> None:
    compensation = Compensation(statistics=known(correlated(256, 7)))
    assert compensation(entry(256, 4), "IQ3_S") is None
    assert compensation(entry(256, 4), "F16") is None
    other = TensorEntry(name="blk.1.attn_q.weight", shape=(256, 4), kind="F16")
    assert compensation(other, "Q4_0") is None


def test_sizes_and_other_tensors_are_those_of_nearest(
    known: Known, tmp_path: Path
) -> None:
    model = write_tiny_llama(tmp_path / "tiny.gguf")
    made = {}
    for name, rounder in (
        ("nearest", None),
        ("compensated", Compensation(statistics=known(correlated(64, 8)))),
    ):
        sink = io.BytesIO()
        assert quantize_gguf(model, "Q4_0", sink, rounder=rounder) == predict_quantized(
            read_header(model), "Q4_0"
        )
        path = tmp_path / name
        path.write_bytes(sink.getvalue())
        header = read_header(path)
        made[name] = {t.name: stored_bytes(header, t) for t in header.tensors}
    differing = {
        name
        for name, raw in made["nearest"].items()
        if made["compensated"][name] != raw
    }
    assert differing == {NAME}


def test_the_job_refuses_to_compensate_without_moments(tmp_path: Path) -> None:
    job = Job(
        inputs={"model": write_tiny_llama(tmp_path / "tiny.gguf")},
        parameters={"quantization": "Q4_0", "rounding": "compensated"},
        output=tmp_path,
        state=tmp_path,
    )
    with pytest.raises(InvalidInputError, match="statistics with second moments"):
        run(job)


def test_the_job_rounds_by_statistics(known: Known, tmp_path: Path) -> None:
    statistics = known(correlated(64, 8))
    artefacts = []
    for rounding in ("nearest", "compensated"):
        output = tmp_path / rounding
        output.mkdir()
        job = Job(
            inputs={
                "model": write_tiny_llama(tmp_path / "tiny.gguf"),
                "statistics": statistics.path,
            },
            parameters={"quantization": "Q4_0", "rounding": rounding},
            output=output,
            state=tmp_path,
        )
        artefacts.append(run(job)["artefact"].read_bytes())
    assert len(artefacts[0]) == len(artefacts[1])
    assert artefacts[0] != artefacts[1]
