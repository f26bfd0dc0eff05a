"""Assigning types: within the budget, exact to the byte, better than its baselines."""

import io
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from slmops.domain.errors import InvalidInputError, OverBudgetError
from slmops.testing.tiny_gguf import write_tiny_llama
from slmops.wire.codec import encode_json
from slmops.workshop.forecast import MachinePrior, forecast_decode, forecast_memory
from slmops.workshop.gguf_file import read_header
from slmops.workshop.model_shape import ModelShape, read_shape
from slmops.workshop.precision.assignment import (
    Assignment,
    DecodeLimit,
    Limits,
    MemoryLimit,
    assign,
    assign_greedily,
    assign_randomly,
    assign_uniformly,
    frontier,
    load_assignment,
    without_types,
)
from slmops.workshop.precision.damage import TYPES, damages, fitting_types
from slmops.workshop.precision.measure import (
    Probed,
    fixed_tensor,
    frame_of,
    tensor_options,
)
from slmops.workshop.precision.sensitivity import (
    Sensitivity,
    TensorSensitivity,
    heat_map,
    load_sensitivity,
)
from slmops.workshop.quantize import quantize_gguf, read_rows


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    return write_tiny_llama(path, width=64, feed_forward=256, layers=3)


@pytest.fixture(scope="module")
def sensitivity(model: Path) -> Sensitivity:
    """Real bytes and errors; rises as if later layers bore less."""
    header = read_header(model)
    header_bytes, matrices = frame_of(header)
    tensors = []
    with model.open("rb") as file:
        for at, tensor in enumerate(header.tensors):
            if tensor not in matrices:
                tensors.append(fixed_tensor(tensor))
                continue
            (values,) = read_rows(file, tensor)
            kinds = fitting_types(tensor, TYPES, has_importance=False)
            found = list(damages(tensor, values, kinds, None))
            probe = Probed(error=found[0].error, kld=0.01 * (1 + at % 5))
            tensors.append(
                TensorSensitivity(
                    name=tensor.name,
                    shape=tensor.shape,
                    options=tensor_options(found, {found[0].kind: probe}),
                )
            )
    return Sensitivity(
        positions=1,
        window_tokens=2,
        header_bytes=header_bytes,
        tensors=tuple(tensors),
    )


@pytest.fixture(scope="module")
def shape(model: Path) -> ModelShape:
    return read_shape(read_header(model))


def middle(sensitivity: Sensitivity) -> int:
    path = frontier(sensitivity)
    return (path[0].bytes + path[-1].bytes) // 2 + 7


@pytest.mark.parametrize("way", ["knapsack", "greedy", "random", "uniform"])
def test_the_file_has_exactly_the_bytes_that_were_told(
    way: str, sensitivity: Sensitivity, model: Path
) -> None:
    budget = middle(sensitivity)
    found = {
        "knapsack": assign(sensitivity, Limits(file_bytes=budget)),
        "greedy": assign_greedily(sensitivity, budget),
        "random": assign_randomly(sensitivity, budget, seed=3),
        "uniform": assign_uniformly(sensitivity, "Q4_K"),
    }[way]
    sink = io.BytesIO()
    quantize_gguf(model, "MIXED", sink, types=found.types)
    assert found.bytes == len(sink.getvalue())
    assert way == "uniform" or found.bytes <= budget


def test_no_baseline_is_better_than_the_knapsack(sensitivity: Sensitivity) -> None:
    budget = middle(sensitivity)
    best = assign(sensitivity, Limits(file_bytes=budget)).predicted_kld
    rivals = [assign_greedily(sensitivity, budget)]
    rivals += [assign_randomly(sensitivity, budget, seed=seed) for seed in range(5)]
    assert all(best <= rival.predicted_kld * (1 + 1e-6) for rival in rivals)
    assert best < 0.7 * rivals[1].predicted_kld


def test_more_bytes_never_lose_more(sensitivity: Sensitivity) -> None:
    path = frontier(sensitivity)
    assert len(path) > 20
    for less, more in pairwise(path):
        assert less.bytes < more.bytes
        assert less.predicted_kld > more.predicted_kld


def test_a_budget_at_a_point_of_the_frontier_gives_that_point(
    sensitivity: Sensitivity,
) -> None:
    point = frontier(sensitivity)[9]
    found = assign(sensitivity, Limits(file_bytes=point.bytes))
    assert found.predicted_kld == pytest.approx(point.predicted_kld, rel=1e-4)


def test_a_memory_limit_is_kept_as_forecast_and_binds(
    sensitivity: Sensitivity, shape: ModelShape
) -> None:
    def forecast(found: Assignment) -> float:
        entries = [
            tensor.entry(found.types.get(tensor.name, "F32"))
            for tensor in sensitivity.tensors
        ]
        return forecast_memory(shape, entries, context_tokens=128).total_mib

    free = frontier(sensitivity)[-1]
    small = min(forecast(each) for each in frontier(sensitivity))
    limit = (small + forecast(free)) / 2
    memory = MemoryLimit(mib=limit, shape=shape, context_tokens=128)
    found = assign(sensitivity, Limits(memory=memory))
    assert forecast(found) <= limit + 1e-9
    assert found.predicted_kld > free.predicted_kld


def test_a_speed_limit_is_kept_as_forecast(sensitivity: Sensitivity) -> None:
    prior = MachinePrior(decode_bytes_per_s=1e6, source="test")

    def forecast(found: Assignment) -> float:
        entries = [
            tensor.entry(found.types.get(tensor.name, "F32"))
            for tensor in sensitivity.tensors
        ]
        return forecast_decode(entries, prior, threads=1)

    free = frontier(sensitivity)[-1]
    wanted = forecast(free) * 1.2
    limit = DecodeLimit(tokens_per_s=wanted, prior=prior)
    found = assign(sensitivity, Limits(decode=limit))
    assert forecast(found) >= wanted * (1 - 1e-9)
    assert found.predicted_kld > free.predicted_kld


def test_too_small_a_budget_is_over_budget(sensitivity: Sensitivity) -> None:
    least = frontier(sensitivity)[0].bytes
    with pytest.raises(OverBudgetError):
        assign(sensitivity, Limits(file_bytes=least - 32))
    with pytest.raises(OverBudgetError):
        assign_randomly(sensitivity, least - 32, seed=0)
    assert assign(sensitivity, Limits(file_bytes=least)).bytes == least


def test_no_limit_at_all_is_refused(sensitivity: Sensitivity) -> None:
    with pytest.raises(InvalidInputError, match="none is set"):
        assign(sensitivity, Limits())


def test_types_that_are_left_out_are_not_used(sensitivity: Sensitivity) -> None:
    budget = middle(sensitivity)
    kinds = set(assign(sensitivity, Limits(file_bytes=budget)).types.values())
    fewer = without_types(sensitivity, kinds=["Q5_0", "Q5_1"], on_grid=True)
    left = set(assign(fewer, Limits(file_bytes=budget)).types.values())
    assert kinds & {"Q5_0", "Q5_1"}
    assert not left & {"Q5_0", "Q5_1"}


def test_a_type_the_source_had_is_left_out_but_eight_bits(
    sensitivity: Sensitivity,
) -> None:
    def marked(tensor: TensorSensitivity) -> TensorSensitivity:
        options = [
            replace(each, on_grid=each.kind in {"Q4_1", "Q8_0"})
            for each in tensor.options
        ]
        return replace(tensor, options=tuple(options))

    gridded = replace(
        sensitivity, tensors=tuple(marked(each) for each in sensitivity.tensors)
    )
    left = without_types(gridded)
    kinds = {option.kind for tensor in left.tensors for option in tensor.options}
    assert "Q4_1" not in kinds
    assert {"Q8_0", "Q4_0"} <= kinds
    assert without_types(gridded, on_grid=True) == gridded


def test_documents_come_back_as_they_were(
    sensitivity: Sensitivity, tmp_path: Path
) -> None:
    path = tmp_path / "sensitivity.json"
    path.write_bytes(encode_json(sensitivity))
    assert load_sensitivity(path) == sensitivity
    found = assign(sensitivity, Limits(file_bytes=middle(sensitivity)))
    path.write_bytes(encode_json(found))
    assert load_assignment(path) == found


def test_types_alone_are_an_assignment(tmp_path: Path) -> None:
    path = tmp_path / "types.json"
    path.write_text('{"types": {"token_embd.weight": "Q4_0"}}')
    assert load_assignment(path).types == {"token_embd.weight": "Q4_0"}
    path.write_text('{"types": {"token_embd.weight": "Q4_9"}}')
    with pytest.raises(InvalidInputError, match="unknown type 'Q4_9'"):
        load_assignment(path)


def test_a_sensitivity_that_cannot_be_chosen_from_is_refused(
    sensitivity: Sensitivity, tmp_path: Path
) -> None:
    path = tmp_path / "bad.json"
    first = sensitivity.tensors[0]
    for broken in (
        replace(first, options=()),
        replace(first, options=(replace(first.options[0], kind="Q9"),)),
        replace(first, options=(replace(first.options[0], kld=-1.0),)),
    ):
        path.write_bytes(encode_json(replace(sensitivity, tensors=(broken,))))
        with pytest.raises(InvalidInputError, match=first.name):
            load_sensitivity(path)


def test_the_heat_map_has_a_cell_for_every_matrix(sensitivity: Sensitivity) -> None:
    cells = heat_map(sensitivity)
    assert {cell.layer for cell in cells} == {-1, 0, 1, 2}
    assert {cell.part for cell in cells} >= {"token_embd", "attn_q", "ffn_down"}
    assert all(cell.kld_per_mb > 0 for cell in cells)
