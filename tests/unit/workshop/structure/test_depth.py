"""Depth pruning: the model that is left, the choice of blocks, roles, resuming."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from slmops.domain.errors import InvalidInputError, UnavailableError
from slmops.testing.structure_samples import WORDS, OpenScorer, RunJob, run_here
from slmops.testing.tiny_gguf import write_tiny_llama
from slmops.wire.codec import decode_json
from slmops.workshop.gguf_file import read_header
from slmops.workshop.gguf_writer import metadata_entry
from slmops.workshop.jobs.job import Job, Value
from slmops.workshop.model_shape import read_shape
from slmops.workshop.precision.statistics_file import Collected, save_statistics
from slmops.workshop.score_file import cut_windows
from slmops.workshop.score_job import candidate_scores, reference_scores
from slmops.workshop.structure.depth import prune_depth, remove_blocks
from slmops.workshop.structure.measured_depth import Removals
from slmops.workshop.structure.model_edit import (
    SourceModel,
    copied,
    read_source,
    rewritten,
    with_changes,
    write_model,
)

MEASURED: Mapping[str, Value] = {
    "method": "measured",
    "tokens": 96,
    "window_tokens": 64,
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny_llama(tmp_path / "deep.gguf", layers=5, scale=2.0)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(WORDS * 8)
    return path


def _statistics(path: Path, similarity: list[float]) -> Path:
    found = Collected(
        tokens=1,
        inputs={"blk.0.attn_q.weight": 0},
        mean_squares=(np.ones(64, np.float32),),
        block_similarity=np.array(similarity, np.float32),
    )
    save_statistics(path, found)
    return path


def _removals(made: Mapping[str, Path]) -> Removals:
    return decode_json(made["removal"].read_bytes(), Removals, where="removal")


def _silenced(source: SourceModel, blocks: set[int], path: Path) -> Path:
    """Write the model with blocks that add nothing."""
    outputs = {
        f"blk.{block}.{part}.weight"
        for block in blocks
        for part in ("attn_output", "ffn_down")
    }
    edits = [
        rewritten(tensor, tensor.width, np.zeros_like)
        if tensor.name in outputs
        else copied(tensor)
        for tensor in source.header.tensors
    ]
    return write_model(source, with_changes(source, []), edits, path)


def test_a_model_without_blocks_computes_what_it_does_when_they_add_nothing(
    model: Path, tmp_path: Path, open_scorer: OpenScorer
) -> None:
    source = read_source(model)
    pruned = remove_blocks(source, {1, 3}, tmp_path / "pruned.gguf")
    silenced = _silenced(source, {1, 3}, tmp_path / "silenced.gguf")
    assert read_shape(read_header(pruned)).layers == 3
    tokens = list(range(3, 60))
    found = open_scorer(pruned).logits(tokens)
    assert np.array_equal(found, open_scorer(silenced).logits(tokens))
    assert not np.array_equal(found, open_scorer(model).logits(tokens))


def test_blocks_of_least_influence_go(
    model: Path, tmp_path: Path, run_job: RunJob
) -> None:
    statistics = _statistics(tmp_path / "s.npz", [0.2, 0.99, 0.5, 0.98, 0.3])
    made = run_job(prune_depth, {"model": model, "statistics": statistics}, layers=3)
    assert _removals(made).blocks == (1, 3)
    assert read_shape(read_header(made["model"])).layers == 3


def test_measured_removal_is_greedy_and_its_values_are_the_pruned_models(
    model: Path, text: Path, tmp_path: Path, run_job: RunJob, open_scorer: OpenScorer
) -> None:
    source = read_source(model)
    whole = open_scorer(model)
    windows = cut_windows(whole.tokenize(text.read_text()), 64, 96)
    reference = reference_scores(whole, windows, lambda done, total: None)

    def kld(gone: set[int]) -> float:
        name = "-".join(map(str, sorted(gone)))
        pruned = remove_blocks(source, gone, tmp_path / f"without-{name}.gguf")
        scorer = open_scorer(pruned)
        scores = candidate_scores(scorer, reference, lambda done, total: None)
        return float(scores.kld.mean())

    made = run_job(prune_depth, {"model": model, "text": text}, layers=3, **MEASURED)
    removals = _removals(made)
    gone: set[int] = set()
    for removal in removals.removed:
        values = {block: kld(gone | {block}) for block in set(range(5)) - gone}
        assert removal.kld == min(values.values())
        assert removal.blocks == (min(values, key=lambda block: values[block]),)
        gone |= set(removal.blocks)
    assert removals.measurements <= 9


def test_a_killed_measurement_continues_with_what_it_had(
    model: Path, text: Path, tmp_path: Path
) -> None:
    inputs = {"model": model, "text": text}
    whole = run_here(tmp_path / "whole", prune_depth, inputs, {"layers": 3, **MEASURED})
    reports: list[float] = []

    def stop_at_four(done: float, total: float) -> None:
        reports.append(done)
        if len(reports) == 4:
            raise UnavailableError("stopped")

    def stopped(job: Job) -> dict[str, Path]:
        return dict(prune_depth(replace(job, report=stop_at_four)))

    with pytest.raises(UnavailableError):
        run_here(tmp_path / "killed", stopped, inputs, {"layers": 3, **MEASURED})
    (tmp_path / "killed" / "output").rmdir()
    (tmp_path / "killed" / "state" / "trial.gguf").unlink()
    journal = (tmp_path / "killed" / "state" / "measured.json").read_text()
    assert journal.count("kld") == 4
    again = run_here(
        tmp_path / "killed", prune_depth, inputs, {"layers": 3, **MEASURED}
    )
    assert again["model"].read_bytes() == whole["model"].read_bytes()
    assert again["removal"].read_bytes() == whole["removal"].read_bytes()
    assert (
        (tmp_path / "killed" / "state" / "measured.json")
        .read_text()
        .startswith(journal[:-2])
    )


def test_values_listed_per_block_lose_those_of_removed_blocks(
    model: Path, tmp_path: Path
) -> None:
    source = read_source(model)
    key = "llama.test.per_block"
    changes = [metadata_entry(key, [10, 11, 12, 13, 14], "UINT32")]
    edits = [copied(tensor) for tensor in source.header.tensors]
    listed = write_model(
        source, with_changes(source, changes), edits, tmp_path / "listed.gguf"
    )
    pruned = remove_blocks(read_source(listed), {0, 3}, tmp_path / "pruned.gguf")
    entry = read_header(pruned).find(key)
    assert entry is not None
    assert list(entry.items()) == [11, 12, 14]


def _gemma3(model: Path, path: Path) -> Path:
    """Write a file that says it is a Gemma 3; enough to be read, not to be run."""
    source = read_source(model)
    entries = [
        replace(entry, key=entry.key.replace("llama.", "gemma3."))
        for entry in with_changes(
            source,
            [
                metadata_entry("general.architecture", "gemma3", "STRING"),
                metadata_entry("llama.attention.sliding_window", 32, "UINT32"),
            ],
        )
    ]
    edits = [copied(tensor) for tensor in source.header.tensors]
    return write_model(source, entries, edits, path)


def test_only_whole_periods_of_a_windowed_model_go(
    tmp_path: Path, run_job: RunJob
) -> None:
    plain = write_tiny_llama(tmp_path / "plain.gguf", layers=13, width=32)
    model = _gemma3(plain, tmp_path / "gemma.gguf")
    similarity = [0.9] * 6 + [0.99] * 6 + [0.5]
    statistics = _statistics(tmp_path / "s.npz", similarity)
    inputs = {"model": model, "statistics": statistics}
    with pytest.raises(InvalidInputError, match="layers must be one of 1, 7, got 10"):
        run_job(prune_depth, inputs, layers=10)
    made = run_job(prune_depth, inputs, layers=7)
    assert _removals(made).blocks == tuple(range(6, 12))
    with pytest.raises(InvalidInputError, match="another role"):
        remove_blocks(read_source(model), {2}, tmp_path / "broken.gguf")
    # Any choice that leaves every block its role is fine.
    remove_blocks(read_source(model), {3, 4, 5, 6, 7, 10}, tmp_path / "mixed.gguf")


@pytest.mark.parametrize("layers", [0, 5, 6, -1])
def test_an_impossible_number_of_blocks_is_refused(
    model: Path, run_job: RunJob, layers: int
) -> None:
    with pytest.raises(InvalidInputError, match="layers must be 1 to 4"):
        run_job(prune_depth, {"model": model}, layers=layers)


def test_missing_inputs_and_foreign_statistics_are_refused(
    model: Path, tmp_path: Path, run_job: RunJob
) -> None:
    for method, role in (("influence", "statistics"), ("measured", "text")):
        with pytest.raises(InvalidInputError, match=f"needs the input {role}"):
            run_job(prune_depth, {"model": model}, layers=3, method=method)
    statistics = _statistics(tmp_path / "s.npz", [0.5] * 4)
    with pytest.raises(InvalidInputError, match="a model with 5 blocks, got 4"):
        run_job(prune_depth, {"model": model, "statistics": statistics}, layers=3)
    with pytest.raises(InvalidInputError, match="method must be one of"):
        run_job(prune_depth, {"model": model}, layers=3, method="magic")


def test_a_quantized_model_is_refused(tmp_path: Path, smollm2_gguf: Path) -> None:
    with pytest.raises(InvalidInputError, match="before quantization"):
        read_source(smollm2_gguf)
