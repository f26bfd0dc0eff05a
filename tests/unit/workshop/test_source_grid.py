"""Which candidates look better than they are because their source had their types."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from slmops.domain.blueprint import (
    Blueprint,
    EvaluationPlan,
    GoldenPlan,
    QualityFloor,
)
from slmops.domain.device import DeviceClass
from slmops.domain.levers import PruneDepth, RecipeStep
from slmops.domain.recipe import Recipe, StructurePlan
from slmops.registry.workspace import Workspace
from slmops.testing.structure_samples import write_tiny_bpe
from slmops.testing.tiny_gguf import TinyLlama, write_tiny_llama
from slmops.workshop.gguf_file import TensorEntry, read_header
from slmops.workshop.gguf_writer import metadata_entry
from slmops.workshop.merging import merge_into_model
from slmops.workshop.models import find_grid, find_model, import_model, reference_path
from slmops.workshop.pipeline import BuildOptions, run_build
from slmops.workshop.quantize import (
    QuantizedFile,
    predict_quantized,
    quantize_gguf,
)
from slmops.workshop.source_grid import GridShare, Types, grid_share, kept_types
from slmops.workshop.structure.depth import remove_blocks
from slmops.workshop.structure.model_edit import (
    TensorEdit,
    changed_metadata,
    copied,
    read_source,
    rewritten,
    selected,
    with_changes,
    write_model,
)

WIDE = TinyLlama(width=256, feed_forward=512, layers=3)


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A model that llama.cpp's mix Q4_K_M made: three types, none of them `Q4_K_M`."""
    plain = write_tiny_llama(tmp_path / "plain.gguf", sizes=WIDE)
    return quantized(plain, "Q4_K_M")


def quantized(plain: Path, name: str) -> Path:
    path = plain.with_name(f"{name}.gguf")
    with path.open("wb") as sink:
        quantize_gguf(plain, name, sink)
    return path


def share(
    reference: Path, name: str, types: Types, mix: dict[str, str] | None = None
) -> GridShare:
    file = predict_quantized(read_header(reference), name, types=mix)
    return grid_share(file, types)


def test_a_source_with_a_mix_of_types_flatters_the_very_same_mix(
    mixed: Path, workspace: Workspace
) -> None:
    record = import_model(str(mixed), workspace)
    grid = find_grid(workspace, record)
    assert len(set(grid.types.values())) > 1
    reference = reference_path(workspace, record)
    assert share(reference, "Q4_K_M", grid.types) == GridShare(bytes=1.0, error=1.0)
    assert share(reference, "Q4_K_M", grid.types).is_flattered
    assert not share(reference, "Q5_0", grid.types).is_flattered


def test_a_mix_of_our_own_is_flattered_by_the_tensors_that_keep_their_type(
    mixed: Path, workspace: Workspace
) -> None:
    record = import_model(str(mixed), workspace)
    types = find_grid(workspace, record).types
    reference = reference_path(workspace, record)

    def of_mix(assigned: dict[str, str]) -> GridShare:
        return share(reference, "MIXED", types, assigned)

    assert of_mix(dict(types)).error == pytest.approx(1.0)
    others = dict.fromkeys(types, "Q5_0")
    assert of_mix(others) == GridShare(bytes=0.0, error=0.0)
    half = {name: types[name] if "ffn" in name else "Q5_0" for name in types}
    assert 0.1 < of_mix(half).error < 1
    assert of_mix(half).is_flattered


def test_a_type_that_hardly_rounds_spares_hardly_anything() -> None:
    """Q6_K embeddings are in most mixes of a Q4 size, and tell little of their loss."""

    def tensor(name: str, kind: str, rows: int) -> TensorEntry:
        return TensorEntry(name=name, shape=(256, rows), kind=kind)

    tensors = (tensor("embd", "Q6_K", 300), tensor("up", "Q4_0", 700))
    file = QuantizedFile(bytes=1, parameters=1, tensor_types={}, tensors=tensors)
    found = grid_share(file, {"embd": "Q6_K", "up": "Q4_K"})
    assert found.bytes > 0.3
    assert found.error < 0.03
    assert not found.is_flattered


def test_blocks_that_are_left_keep_their_grid_under_their_new_numbers(
    mixed: Path, workspace: Workspace, tmp_path: Path
) -> None:
    record = import_model(str(mixed), workspace)
    types = find_grid(workspace, record).types
    reference = reference_path(workspace, record)
    shallow = tmp_path / "shallow.gguf"
    remove_blocks(read_source(reference), [0], shallow)
    found = kept_types(reference, types, shallow)
    assert found["blk.0.ffn_down.weight"] == types["blk.1.ffn_down.weight"]
    assert found["token_embd.weight"] == types["token_embd.weight"]
    assert len(found) == len(types) - 7


def test_rows_that_are_left_keep_their_grid_and_cut_columns_do_not(
    mixed: Path, workspace: Workspace, tmp_path: Path
) -> None:
    record = import_model(str(mixed), workspace)
    types = find_grid(workspace, record).types
    source = read_source(reference_path(workspace, record))
    kept = np.arange(0, 512, 2)

    def edited(tensor: TensorEntry) -> TensorEdit:
        if tensor.name.endswith(("ffn_up.weight", "ffn_gate.weight")):
            return selected(tensor, rows=kept)
        if tensor.name.endswith("ffn_down.weight"):
            return selected(tensor, columns=kept)
        if tensor.name == "blk.1.attn_q.weight":
            return rewritten(tensor, tensor.width, lambda w: w * np.float32(1.01))
        return copied(tensor)

    narrow = tmp_path / "narrow.gguf"
    edits = [edited(tensor) for tensor in source.header.tensors]
    sizes = {"feed_forward_length": len(kept)}
    write_model(source, changed_metadata(source, sizes), edits, narrow)
    gone = {f"blk.{block}.ffn_down.weight" for block in range(3)}
    found = kept_types(source.header.path, types, narrow)
    # Weights that were trained left the grid as well.
    assert types.keys() - found.keys() == gone | {"blk.1.attn_q.weight"}


def test_a_trimmed_vocabulary_keeps_the_grid_of_its_embedding(
    workspace: Workspace, tmp_path: Path
) -> None:
    plain = write_tiny_bpe(tmp_path / "bpe.gguf")
    record = import_model(str(quantized(plain, "Q8_0")), workspace)
    source = read_source(reference_path(workspace, record))
    trimmed = tmp_path / "trimmed.gguf"
    rows = np.flatnonzero(np.arange(448) % 3 > 0)
    edits = [
        selected(t, rows=rows) if t.name == "token_embd.weight" else copied(t)
        for t in source.header.tensors
    ]
    tokens = [f"token {row}" for row in rows]
    changes = (
        metadata_entry("tokenizer.ggml.tokens", tokens, "STRING"),
        metadata_entry("tokenizer.ggml.token_type", [1] * len(rows), "INT32"),
        metadata_entry("llama.vocab_size", len(rows), "UINT32"),
    )
    write_model(source, with_changes(source, changes), edits, trimmed)
    types = find_grid(workspace, record).types
    assert kept_types(source.header.path, types, trimmed) == types


def test_importing_again_gives_an_old_workspace_what_it_did_not_keep(
    mixed: Path, workspace: Workspace
) -> None:
    record = import_model(str(mixed), workspace)
    exact = find_grid(workspace, record).types
    for kept in workspace.models.glob("*.types"):
        kept.unlink()
    # Until then every matrix is taken to have the one type that was kept.
    assumed = set(find_grid(workspace, record).types.values())
    assert assumed == {record.source_quantization}
    assert import_model(str(mixed), workspace) == record
    assert find_grid(workspace, record).types == exact


def test_a_genuine_16_bit_model_flatters_nothing(
    workspace: Workspace, tmp_path: Path
) -> None:
    plain = write_tiny_llama(tmp_path / "plain.gguf", sizes=WIDE)
    record = import_model(str(plain), workspace)
    grid = find_grid(workspace, record)
    assert grid.types == {}
    assert share(plain, "Q8_0", grid.types) == GridShare(bytes=0.0, error=0.0)


def test_a_merged_adapter_takes_its_tensors_off_the_grid(
    mixed: Path, workspace: Workspace, tmp_path: Path
) -> None:
    from safetensors.numpy import save_file

    record = import_model(str(mixed), workspace, name="mixed")
    folder = tmp_path / "lora"
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    module = "base_model.model.model.layers.1.mlp.up_proj"
    save_file(
        {
            f"{module}.lora_A.weight": np.ones((2, 256), np.float32),
            f"{module}.lora_B.weight": np.ones((512, 2), np.float32),
        },
        folder / "adapter_model.safetensors",
    )
    merged = merge_into_model(workspace, record, folder, name="merged")
    before = find_grid(workspace, record).types
    after = find_grid(workspace, find_model(workspace, "merged")).types
    assert merged.source_quantization is not None
    assert before.keys() - after.keys() == {"blk.1.ffn_up.weight"}


@pytest.mark.slow
def test_a_build_marks_what_its_source_flatters_in_every_structure(
    workspace: Workspace, tmp_path: Path
) -> None:
    # Of this seed a model answers with whole characters, in 8 bits too.
    plain = write_tiny_llama(tmp_path / "tiny.gguf", seed=4)
    source = quantized(plain, "Q8_0")
    import_model(str(source), workspace, name="tiny")
    step = RecipeStep(prune_depth=PruneDepth(layers=1))
    wanted = Blueprint(
        name="tiny",
        model="tiny",
        classes=(DeviceClass(name="any", context_tokens=256),),
        candidates=("Q8_0", "Q4_0"),
        quality=QualityFloor(max_kld_times_8bit=1e9, min_same_top1=0.0),
        evaluation=EvaluationPlan(max_tokens=64, window_tokens=64, speed_runs=3),
        golden=GoldenPlan(prompts="prompts.txt", answer_tokens=2),
        recipe=Recipe(structures=(StructurePlan(name="slim", steps=(step,)),)),
    )
    (tmp_path / "prompts.txt").write_text("One?\nTwo?\n")
    options = BuildOptions(below_floor=True)
    found = run_build(wanted, workspace, folder=tmp_path, options=options).result
    marked = {each.label for each in found.candidates if each.on_reference_grid}
    # Embeddings stay in 8 bits in a Q4_0 file, which spares it next to nothing.
    assert marked == {"Q8_0", "slim/Q8_0"}
    assert found.candidate("slim/Q8_0").grid_bytes_share == 1.0
    assert (
        "100% of its bytes have the source's type" in found.candidate("Q8_0").flattery
    )


def test_the_record_of_a_model_is_none_the_larger(
    mixed: Path, workspace: Workspace
) -> None:
    """It travels in every release to every device, and they need no tensors' types."""
    record = import_model(str(mixed), workspace)
    assert replace(record, name="x").source_quantization in {"Q4_K", "Q6_K"}
    (path,) = workspace.models.glob("*.json")
    assert "blk." not in path.read_text()
