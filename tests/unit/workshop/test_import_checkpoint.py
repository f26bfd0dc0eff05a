"""Importing Hugging Face checkpoints: equal to the GGUF, and bad ones refused."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from slmops.domain.errors import InvalidInputError, NotFoundError, UnavailableError
from slmops.registry.workspace import Workspace
from slmops.testing.tiny_checkpoint import write_tiny_checkpoint
from slmops.testing.tiny_gguf import stored_bytes, write_tiny_llama
from slmops.workshop import hub
from slmops.workshop.gguf_file import GgufHeader, read_header
from slmops.workshop.hf_source import open_checkpoint
from slmops.workshop.models import import_model, reference_path


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(root=tmp_path / "ws")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_tiny_checkpoint(tmp_path / "tiny-llama")


def imported(workspace: Workspace, source: Path) -> GgufHeader:
    record = import_model(str(source), workspace)
    return read_header(reference_path(workspace, record))


def weights(header: GgufHeader) -> dict[str, tuple[str, bytes]]:
    return {
        tensor.name: (tensor.kind, stored_bytes(header, tensor))
        for tensor in header.tensors
    }


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_checkpoint_gives_the_weights_and_words_of_the_same_model_as_gguf(
    shards: int, dtype: str, workspace: Workspace, tmp_path: Path
) -> None:
    folder = write_tiny_checkpoint(tmp_path / "hf", dtype=dtype, shards=shards)
    ours = imported(workspace, folder)
    theirs = read_header(write_tiny_llama(tmp_path / "tiny.gguf"))
    assert weights(ours) == weights(theirs)
    wanted = {
        entry.key: entry.raw
        for entry in theirs.metadata
        if entry.key not in {"general.name"}
    }
    got = {entry.key: entry.raw for entry in ours.metadata}
    assert {key: got.get(key) for key in wanted} == wanted


def test_bfloat16_weights_are_read_without_torch(
    workspace: Workspace, tmp_path: Path
) -> None:
    folder = write_tiny_checkpoint(tmp_path / "hf", dtype="bfloat16")
    ours = weights(imported(workspace, folder))
    theirs = weights(read_header(write_tiny_llama(tmp_path / "tiny.gguf")))
    name = "blk.1.attn_q.weight"
    got, want = (np.frombuffer(w[name][1], np.float16) for w in (ours, theirs))
    np.testing.assert_allclose(got, want, rtol=2**-8)


def test_the_licence_comes_from_the_readme(
    workspace: Workspace, checkpoint: Path
) -> None:
    assert import_model(str(checkpoint), workspace).licence == "apache-2.0"
    (checkpoint / "README.md").unlink()
    (checkpoint / "LICENSE").write_text("MIT License\n\nCopyright …")
    assert open_checkpoint(checkpoint).licence == "mit"


def test_a_template_in_its_own_file_is_taken_first(checkpoint: Path) -> None:
    (checkpoint / "chat_template.jinja").write_text("{{ messages }}")
    metadata = {e.key: e for e in open_checkpoint(checkpoint).metadata}
    assert metadata["tokenizer.chat_template"].scalar() == "{{ messages }}"


def test_llama_3_rope_scaling_becomes_frequency_factors(checkpoint: Path) -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    changed(checkpoint / "config.json", rope_scaling=scaling, rope_theta=500000.0)
    source = open_checkpoint(checkpoint)
    (rows,) = source.read(source.tensors[0])
    assert source.tensors[0].name == "rope_freqs.weight"
    assert rows[0, 0] == 1
    assert rows[0, -1] == 32


def changed(path: Path, **values: object) -> None:
    document: dict[str, Any] = json.loads(path.read_text())
    document |= values
    path.write_text(json.dumps(document))


def config(**values: object) -> Callable[[Path], None]:
    return lambda folder: changed(folder / "config.json", **values)


def tokenizer(**values: object) -> Callable[[Path], None]:
    return lambda folder: changed(folder / "tokenizer.json", **values)


def only_pickles(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def hostile_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])


def index_outside(folder: Path) -> None:
    document = {"weight_map": {"model.norm.weight": "../secret.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(document))


def index_to_a_missing_file(folder: Path) -> None:
    document = {"weight_map": {"model.norm.weight": "gone.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(document))


def link_outside(folder: Path) -> None:
    path = folder / "model.safetensors"
    target = folder.parent / "elsewhere.safetensors"
    path.rename(target)
    path.symlink_to(target)


def retyped(name: str, values: "np.ndarray[Any, Any] | None") -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "model.safetensors"
        tensors = load_file(path)
        if values is None:
            del tensors[name]
        else:
            tensors[name] = values
        save_file(tensors, path)

    return change


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "config.json is missing"),
    "config is no JSON": (
        lambda f: (f / "config.json").write_text("{"),
        "not valid JSON",
    ),
    "config is a list": (
        lambda f: (f / "config.json").write_text("[]"),
        "JSON object",
    ),
    "other architecture": (
        config(architectures=["GPT2LMHeadModel"]),
        "'GPT2LMHeadModel' is not supported",
    ),
    "quantized": (config(quantization_config={"bits": 4}), "quantized"),
    "unknown rope": (config(rope_scaling={"type": "yarn"}), "'yarn'"),
    "size as text": (config(hidden_size="64"), "hidden_size must be"),
    "size of a billion": (config(num_hidden_layers=10**9), "num_hidden_layers must be"),
    "width that does not fit": (config(hidden_size=96), "must have shape"),
    "vocabulary that does not fit": (config(vocab_size=299), "below 299"),
    "head not tied, not there": (config(tie_word_embeddings=False), "lm_head.weight"),
    "no tokenizer": (
        lambda f: (f / "tokenizer.json").unlink(),
        "tokenizer.json is missing",
    ),
    "word-piece tokenizer": (tokenizer(model={"type": "WordPiece"}), "byte-level BPE"),
    "unknown splitting": (tokenizer(pre_tokenizer={"type": "Metaspace"}), "Metaspace"),
    "token id outside": (
        tokenizer(model={"type": "BPE", "vocab": {"a": 1 << 40}}),
        "below 300",
    ),
    "broken merge": (
        tokenizer(model={"type": "BPE", "vocab": {"a": 3}, "merges": ["abc"]}),
        "a merge must be two tokens",
    ),
    "only pickles": (only_pickles, "pickled"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no \\*.safetensors"),
    "cut weights": (cut_weights, "no valid safetensors"),
    "hostile weights": (hostile_weights, "no valid safetensors"),
    "index outside": (index_outside, "outside the folder"),
    "index to nothing": (index_to_a_missing_file, "gone.safetensors"),
    "link outside": (link_outside, "outside the folder"),
    "integer weights": (
        retyped("model.norm.weight", np.ones(64, np.int8)),
        "quantized checkpoint",
    ),
    "missing tensor": (
        retyped("model.layers.1.mlp.up_proj.weight", None),
        "blk.1.ffn_up.weight",
    ),
    "extra tensor": (
        retyped("model.vision.weight", np.ones(4, np.float16)),
        "model.vision.weight",
    ),
    "other shape": (
        retyped("model.norm.weight", np.ones(65, np.float16)),
        "must have shape",
    ),
    "not finite": (
        retyped("model.norm.weight", np.full(64, np.inf, np.float32)),
        "not finite",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_checkpoint_is_refused_and_nothing_is_stored(
    case: str, workspace: Workspace, checkpoint: Path
) -> None:
    damage, reason = BAD[case]
    damage(checkpoint)
    with pytest.raises(InvalidInputError, match=reason):
        import_model(str(checkpoint), workspace)
    assert not [path for path in workspace.root.rglob("*") if path.is_file()]


def test_a_hub_snapshot_in_the_cache_is_imported_with_its_revision(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    root = tmp_path / "hub" / "models--tests--tiny-llama"
    folder = write_tiny_checkpoint(root / "snapshots" / commit)
    (root / "blobs").mkdir()
    for path in folder.iterdir():
        blob = root / "blobs" / path.name
        path.rename(blob)
        path.symlink_to(os.path.relpath(blob, folder))
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    record = import_model("tests/tiny-llama", workspace)
    assert record.source == f"tests/tiny-llama@{commit}"
    assert record.name == "tiny-llama"


def test_without_a_network_the_hub_is_unavailable(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UnavailableError, match="tests/absent"):
        import_model("tests/absent", workspace)


def test_a_path_that_is_nowhere_is_not_asked_of_the_hub(workspace: Workspace) -> None:
    with pytest.raises(NotFoundError):
        import_model("./models/absent/deep", workspace)


def test_pickles_are_never_fetched() -> None:
    from fnmatch import fnmatch

    for name in ("pytorch_model.bin", "model.pt", "weights.pkl", "modeling_evil.py"):
        assert not any(fnmatch(name, pattern) for pattern in hub.ALLOWED_FILES)
