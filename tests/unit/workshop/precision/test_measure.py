"""Measuring sensitivity: with the real runtime, on a tiny model of real parts."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from slmops.domain.errors import InvalidInputError, UnavailableError
from slmops.runtimes.base import WorkerSettings
from slmops.testing.tiny_gguf import write_tiny_llama
from slmops.workshop.gguf_file import TensorEntry, read_header
from slmops.workshop.jobs.job import Job, Report, unheard
from slmops.workshop.precision.damage import (
    damages,
    grid_types,
    relative_error,
    rounded_rows,
)
from slmops.workshop.precision.measure import Probed, run, tensor_options, with_checks
from slmops.workshop.precision.probe import Change, Probe, open_probe
from slmops.workshop.precision.sensitivity import (
    Check,
    Sensitivity,
    load_sensitivity,
)
from slmops.workshop.precision.statistics_file import Collected, save_statistics
from slmops.workshop.quantize import Matrix, encode_rows, read_rows

TEXT = "the quick brown fox jumps over the lazy dog. " * 30
TYPES = ("Q4_0", "Q5_0", "Q8_0")


class StoppedError(Exception):
    """What a stopped build's report raises."""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny_llama(tmp_path / "tiny.gguf", layers=2, scale=2.0)


def job(model: Path, folder: Path, report: Report = unheard, **inputs: Path) -> Job:
    text = model.parent / "text.txt"
    text.write_text(TEXT, encoding="utf-8")
    (folder / "output").mkdir(parents=True, exist_ok=True)
    (folder / "state").mkdir(exist_ok=True)
    return Job(
        inputs={"model": model, "text": text, **inputs},
        parameters={"tokens": 96, "window_tokens": 64, "types": TYPES},
        output=folder / "output",
        state=folder / "state",
        report=report,
    )


def found_by(work: Job) -> Sensitivity:
    return load_sensitivity(run(work)["sensitivity"])


@pytest.mark.slow
def test_every_matrix_is_measured_and_coarser_types_cost_more(
    model: Path, tmp_path: Path
) -> None:
    before = model.read_bytes()
    found = found_by(job(model, tmp_path / "job"))
    assert [each.name for each in found.tensors] == [
        each.name for each in read_header(model).tensors
    ]
    for tensor in found.tensors:
        if len(tensor.shape) == 1:
            assert [option.kind for option in tensor.options] == ["F32"]
            continue
        four, five, eight = tensor.options
        assert four.kld > five.kld > eight.kld > 0
        assert four.bytes < five.bytes < eight.bytes
        assert four.measured
    assert model.read_bytes() == before
    assert not (tmp_path / "job" / "state" / "probe.gguf").exists()


@pytest.mark.slow
def test_whole_mixes_are_near_the_sum_of_their_tensors(
    model: Path, tmp_path: Path
) -> None:
    found = found_by(job(model, tmp_path / "job"))
    assert len(found.checks) == 3
    for check in found.checks:
        assert check.measured == pytest.approx(check.predicted, rel=0.5)


@pytest.mark.slow
def test_types_that_a_quantized_source_makes_free_are_marked_and_not_in_the_checks(
    model: Path, tmp_path: Path
) -> None:
    with model.open("r+b") as file:
        for tensor in read_header(model).tensors:
            if len(tensor.shape) > 1:
                (values,) = read_rows(file, tensor)
                file.seek(tensor.offset)
                file.write(encode_rows(rounded_rows(values, "Q4_0", None), "F16"))
    found = found_by(job(model, tmp_path / "job"))
    for each in found.tensors:
        marked = {option.kind for option in each.options if option.on_grid}
        # Q5_0 has every second level of Q4_0's.
        assert marked == ({"Q4_0", "Q5_0"} if len(each.shape) > 1 else set())
    least = sum(each.options[0].kld for each in found.tensors)
    assert all(check.predicted > 2 * least for check in found.checks)


@pytest.mark.slow
def test_a_stopped_job_goes_on_behind_its_last_measurement(
    model: Path, tmp_path: Path
) -> None:
    whole = found_by(job(model, tmp_path / "whole"))
    log = tmp_path / "job" / "state" / "measured.jsonl"

    def stop(done: float, total: float) -> None:
        if done > total / 2:
            raise StoppedError

    with pytest.raises(StoppedError):
        run(job(model, tmp_path / "job", stop))
    measured = log.read_bytes()
    # A kill may cut off the last line.
    log.write_bytes(measured[:-5])
    assert found_by(job(model, tmp_path / "job")) == whole
    assert log.read_bytes().startswith(measured[:-5])
    assert len(log.read_bytes().splitlines()) <= len(measured.splitlines()) * 2


@pytest.mark.slow
def test_statistics_change_the_errors_but_not_what_was_measured(
    model: Path, tmp_path: Path
) -> None:
    entries = [t for t in read_header(model).tensors if len(t.shape) > 1]
    statistics = tmp_path / "statistics.npz"
    save_statistics(
        statistics,
        Collected(
            tokens=9,
            inputs={tensor.name: at for at, tensor in enumerate(entries)},
            mean_squares=tuple(
                np.linspace(0.01, 9, tensor.width, dtype=np.float32) ** 2
                for tensor in entries
            ),
            block_similarity=np.zeros(2, np.float32),
        ),
    )
    plain = found_by(job(model, tmp_path / "plain"))
    steered = found_by(job(model, tmp_path / "steered", statistics=statistics))
    logs = [
        (tmp_path / name / "state" / "measured.jsonl").read_bytes()
        for name in ("plain", "steered")
    ]
    assert logs[0] == logs[1]
    assert plain.tensors != steered.tensors


@pytest.mark.slow
def test_a_type_nobody_knows_is_refused(model: Path, tmp_path: Path) -> None:
    work = job(model, tmp_path / "job")
    with pytest.raises(InvalidInputError, match="Q4_9"):
        run(replace(work, parameters={**work.parameters, "types": ("Q4_9",)}))


@pytest.mark.slow
def test_weights_in_the_file_are_what_the_runtime_computes_with(
    model: Path, tmp_path: Path
) -> None:
    with opened(model, tmp_path / "probe.gguf") as probe:
        probe.check_mapping("blk.0.ffn_up.weight")
        assert probe.kld() < 1e-6
        with probe.changed("blk.0.ffn_up.weight", lambda rows: rows * np.float32(1.1)):
            assert probe.kld() > 1e-5
            with pytest.raises(UnavailableError, match="not restored"):
                probe.check_restored()
        probe.check_restored()
        assert (tmp_path / "probe.gguf").read_bytes() == model.read_bytes()


@pytest.mark.slow
def test_a_runtime_that_does_not_see_the_file_change_is_found_out(
    model: Path, tmp_path: Path
) -> None:
    class Elsewhere(Probe):
        def _write(self, name: str, change: Change) -> None:
            """Write nothing: as if the runtime had copied what it loaded."""

    with opened(model, tmp_path / "probe.gguf") as probe:
        blind = Elsewhere(probe._scorer, (model, probe._path), probe._windows)
        with pytest.raises(UnavailableError, match="mapped file"):
            blind.check_mapping("blk.0.ffn_up.weight")


def opened(model: Path, scratch: Path) -> AbstractContextManager[Probe]:
    settings = WorkerSettings(context_tokens=64)
    return open_probe(model, TEXT, scratch, settings=settings, tokens=96)


def rows(seed: int = 0) -> Matrix:
    return np.random.default_rng(seed).normal(0, 1, (64, 256)).astype(np.float32)


def test_a_type_without_a_probe_is_scaled_by_squared_error() -> None:
    tensor = TensorEntry(name="blk.0.ffn_up.weight", shape=(256, 64), kind="F16")
    found = list(damages(tensor, rows(), TYPES, None))
    options = tensor_options(found, {"Q4_0": Probed(error=found[0].error, kld=0.01)})
    by_kind: Mapping[str, float] = {each.kind: each.kld for each in options}
    assert by_kind["Q4_0"] == pytest.approx(0.01)
    assert by_kind["Q5_0"] == pytest.approx(0.01 * found[1].error / found[0].error)
    assert [option.measured for option in options] == [True, False, False]


def test_of_two_probes_the_one_with_the_nearer_error_is_scaled() -> None:
    tensor = TensorEntry(name="blk.0.ffn_up.weight", shape=(256, 64), kind="F16")
    found = list(damages(tensor, rows(), ("Q4_0", "Q5_0", "Q6_K", "Q8_0"), None))
    probed = {
        "Q4_0": Probed(error=found[0].error, kld=0.01),
        "Q8_0": Probed(error=found[3].error, kld=0.003),
    }
    five, six = tensor_options(found, probed)[1:3]
    assert five.kld == pytest.approx(0.01 * five.error / found[0].error)
    assert six.kld == pytest.approx(0.003 * six.error / found[3].error)


ALL = ("Q3_K", "Q4_0", "Q4_1", "IQ4_NL", "Q4_K", "Q5_0", "Q5_1", "Q6_K", "Q8_0")


@pytest.mark.parametrize(
    ("source", "met"), [("Q4_0", {"Q4_0"}), ("Q4_1", {"Q4_1", "Q5_1", "Q4_K"})]
)
def test_grids_a_source_leaves_are_known_by_their_errors(
    source: str, met: set[str]
) -> None:
    tensor = TensorEntry(name="blk.0.ffn_up.weight", shape=(256, 64), kind="F16")
    equal = np.ones(256, np.float32)
    assert grid_types(list(damages(tensor, rows(), ALL, equal))) == frozenset()
    made = rounded_rows(rows(), source, None)
    found = grid_types(list(damages(tensor, made, ALL, equal)))
    assert found >= met
    assert "Q3_K" not in found
    assert "IQ4_NL" not in found


def test_importance_decides_which_columns_an_error_counts_in() -> None:
    values = np.ones((4, 2), np.float32)
    changed = values + np.array([0.1, 0.0], np.float32)
    weight = np.array([0.0, 1.0], np.float32)
    assert relative_error(values, changed, None) == pytest.approx(0.005)
    assert relative_error(values, changed, weight) == 0
    assert relative_error(np.zeros_like(values), changed, None) == 0


def test_the_scale_is_what_whole_mixes_were_over_their_sums() -> None:
    plain = Sensitivity(positions=1, window_tokens=2, header_bytes=0, tensors=())
    checks = [
        Check(bytes=1, predicted=0.1, measured=0.2),
        Check(bytes=2, predicted=0.1, measured=0.05),
        Check(bytes=3, predicted=0.1, measured=0.1),
    ]
    assert with_checks(plain, checks).scale == pytest.approx(1)
    assert with_checks(plain, checks[:1]).scale == pytest.approx(2)
    assert with_checks(plain, ()).scale == 1
