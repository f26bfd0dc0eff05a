"""Importing GGUF files: what comes out, and that bad ones leave nothing behind."""

import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from slmops.domain.errors import ConflictError, InvalidInputError, NotFoundError
from slmops.registry.blobs import BlobStore
from slmops.registry.workspace import Workspace
from slmops.testing.tiny_gguf import (
    TinyLlama,
    stored_bytes,
    tiny_metadata,
    write_tiny_llama,
)
from slmops.workshop.gguf_file import (
    MetadataEntry,
    TensorEntry,
    read_header,
)
from slmops.workshop.gguf_writer import metadata_entry, with_metadata, write_gguf
from slmops.workshop.models import (
    find_model,
    import_model,
    list_models,
    reference_path,
    remove_model,
)
from slmops.workshop.quantize import decode_rows, quantize_gguf


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(root=tmp_path / "ws")


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny_llama(tmp_path / "tiny.gguf")


def stored_files(workspace: Workspace) -> list[Path]:
    if not workspace.root.exists():
        return []
    return [path for path in workspace.root.rglob("*") if path.is_file()]


def test_a_16_bit_model_is_its_own_reference(workspace: Workspace, tiny: Path) -> None:
    record = import_model(str(tiny), workspace)
    assert reference_path(workspace, record).read_bytes() == tiny.read_bytes()
    assert record.name == "tiny-llama"
    assert record.tokenizer == "gpt2/smollm"
    assert record.licence == "apache-2.0"
    assert record.vocabulary == 300
    assert record.source_quantization is None
    assert record.chat_template is not None
    assert record.bytes == tiny.stat().st_size


def test_importing_twice_gives_the_same_model_and_no_second_copy(
    workspace: Workspace, tiny: Path
) -> None:
    first = import_model(str(tiny), workspace)
    before = stored_files(workspace)
    assert import_model(str(tiny), workspace) == first
    assert stored_files(workspace) == before
    assert list_models(workspace) == (first,)


def test_equal_bytes_under_a_new_name_keep_the_old_one_too(
    workspace: Workspace, tiny: Path
) -> None:
    first = import_model(str(tiny), workspace, name="first")
    second = import_model(str(tiny), workspace, name="second")
    assert second.id == first.id
    assert list_models(workspace) == (first, second)
    assert find_model(workspace, "first") == first
    assert find_model(workspace, "second") == second
    # By digest a model has one record, whatever it is called.
    assert find_model(workspace, first.id) == first
    assert find_model(workspace, first.id[7:15]) == first
    assert len(list(BlobStore(workspace.blobs).digests())) == 1


def test_a_model_of_two_names_is_imported_again_under_either(
    workspace: Workspace, tiny: Path, tmp_path: Path
) -> None:
    first = import_model(str(tiny), workspace, name="first")
    second = import_model(str(tiny), workspace, name="second")
    before = stored_files(workspace)
    assert import_model(str(tiny), workspace) == first
    assert import_model(str(tiny), workspace, name="second") == second
    assert stored_files(workspace) == before
    other = write_tiny_llama(tmp_path / "other.gguf", seed=1)
    with pytest.raises(ConflictError, match="'second'"):
        import_model(str(other), workspace, name="second")


def test_a_name_is_forgotten_and_the_others_stay(
    workspace: Workspace, tiny: Path
) -> None:
    first = import_model(str(tiny), workspace, name="first")
    second = import_model(str(tiny), workspace, name="second")
    assert remove_model(workspace, "first") == first
    assert list_models(workspace) == (second,)
    assert find_model(workspace, first.id) == second
    with pytest.raises(NotFoundError, match="imported are second"):
        remove_model(workspace, "first")
    assert remove_model(workspace, "second") == second
    assert list_models(workspace) == ()
    # Its bytes are there until somebody frees them, and are known when it comes back.
    assert BlobStore(workspace.blobs).has(first.id)
    assert import_model(str(tiny), workspace, name="third").id == first.id


def test_two_models_cannot_share_a_given_name(
    workspace: Workspace, tiny: Path, tmp_path: Path
) -> None:
    other = write_tiny_llama(tmp_path / "other.gguf", seed=1)
    import_model(str(tiny), workspace, name="mine")
    with pytest.raises(ConflictError, match="'mine'"):
        import_model(str(other), workspace, name="mine")


def test_a_derived_name_that_is_taken_gets_a_number(
    workspace: Workspace, tiny: Path, tmp_path: Path
) -> None:
    import_model(str(tiny), workspace)
    other = write_tiny_llama(tmp_path / "other.gguf", seed=1)
    assert import_model(str(other), workspace).name == "tiny-llama-2"


def test_models_are_found_by_name_digest_and_prefix(
    workspace: Workspace, tiny: Path
) -> None:
    record = import_model(str(tiny), workspace)
    for word in (record.name, record.id, record.id[7:15]):
        assert find_model(workspace, word) == record
    with pytest.raises(NotFoundError, match="tiny-llama"):
        find_model(workspace, "absent")


def test_a_quantized_source_is_dequantized_and_marked(
    workspace: Workspace, tiny: Path, tmp_path: Path
) -> None:
    quantized = tmp_path / "quantized.gguf"
    with quantized.open("wb") as sink:
        quantize_gguf(tiny, "Q4_0", sink)
    record = import_model(str(quantized), workspace)
    assert record.source_quantization == "Q4_0"
    header = read_header(reference_path(workspace, record))
    assert {tensor.kind for tensor in header.tensors} == {"F16", "F32"}
    source = read_header(quantized)
    for ours, theirs in zip(header.tensors, source.tensors, strict=True):
        rows, width = ours.rows, ours.width
        got = decode_rows(stored_bytes(header, ours), ours.kind, rows, width)
        want = decode_rows(stored_bytes(source, theirs), theirs.kind, rows, width)
        np.testing.assert_array_equal(got, want.astype(np.float16))


def rewritten(
    path: Path,
    target: Path,
    entries: list[MetadataEntry],
    *,
    drop: str = "",
    tensors: Callable[[TensorEntry], TensorEntry] = lambda tensor: tensor,
) -> Path:
    header = read_header(path)
    metadata = with_metadata(header.metadata, entries, without=lambda key: key == drop)
    changed = [tensors(t) for t in header.tensors if t.name != drop]
    data = [(bytes(tensor.bytes),) for tensor in changed]
    with target.open("wb") as sink:
        write_gguf(sink, metadata, changed, data)
    return target


def test_weights_beyond_half_precision_are_kept_in_bf16(
    workspace: Workspace, tmp_path: Path
) -> None:
    sizes = TinyLlama(layers=1)
    source = write_tiny_llama(tmp_path / "a.gguf", sizes=sizes)
    header = read_header(source)
    tensors = [replace(tensor, kind="F32") for tensor in header.tensors]
    data = [
        (np.full(tensor.elements, 1e6, np.float32).tobytes(),) for tensor in tensors
    ]
    large = tmp_path / "large.gguf"
    with large.open("wb") as sink:
        write_gguf(sink, tiny_metadata(sizes), tensors, data)
    record = import_model(str(large), workspace)
    kinds = {t.kind for t in read_header(reference_path(workspace, record)).tensors}
    assert kinds == {"BF16", "F32"}
    assert len(stored_files(workspace)) == 2


def test_an_import_that_is_stopped_leaves_nothing(
    workspace: Workspace, tiny: Path
) -> None:
    def stop(what: str, done: float, total: float) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_model(str(tiny), workspace, progress=stop)
    assert stored_files(workspace) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from slmops.registry.workspace import Workspace
from slmops.workshop.models import import_model

def stop(what, done, total):
    if done > total / 2:
        os.kill(os.getpid(), signal.SIGKILL)

import_model(sys.argv[1], Workspace(root=Path(sys.argv[2])), progress=stop)
"""


def test_an_import_that_is_killed_leaves_no_model_and_the_next_one_tidies_up(
    workspace: Workspace, tiny: Path
) -> None:
    command = [sys.executable, "-c", KILLED, str(tiny), str(workspace.root)]
    killed = subprocess.run(command, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert list_models(workspace) == ()
    record = import_model(str(tiny), workspace)
    assert {path.name.removesuffix(".json") for path in stored_files(workspace)} == {
        record.id.removeprefix("sha256:")
    }


def patched(at: int, raw: bytes) -> Callable[[bytes], bytes]:
    return lambda good: good[:at] + raw + good[at + len(raw) :]


HUGE = struct.pack("<Q", 1 << 60)

DAMAGED: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "zero length": (lambda good: b"", "empty"),
    "one byte": (lambda good: good[:1], "cut off"),
    "random": (lambda good: np.random.default_rng(0).bytes(4096), "not a GGUF"),
    "wrong magic": (patched(0, b"GGML"), "not a GGUF"),
    "pickle": (patched(0, b"PK\x03\x04"), "not a GGUF"),
    "version 1": (patched(4, struct.pack("<I", 1)), "version must be 2 or 3"),
    "version 99": (patched(4, struct.pack("<I", 99)), "version must be 2 or 3"),
    "big endian": (patched(4, struct.pack(">I", 3)), "big-endian"),
    "header only": (lambda good: good[:24], "cannot fit"),
    "cut in the header": (lambda good: good[:900], "cut off|cannot fit"),
    "cut in the vocabulary": (lambda good: good[:3000], "cut off|cannot fit"),
    "cut in the data": (lambda good: good[: len(good) // 2], "cut off"),
    "last byte missing": (lambda good: good[:-64], "cut off"),
    "huge tensor count": (patched(8, HUGE), "tensors cannot fit"),
    "huge metadata count": (patched(16, HUGE), "metadata entries cannot fit"),
    "huge key": (patched(24, HUGE), "at most"),
    "unknown value type": (
        lambda good: good.replace(
            b"general.architecture\x08", b"general.architecture\x63", 1
        ),
        "unknown value type",
    ),
    "huge array": (
        lambda good: _after(good, b"tokenizer.ggml.tokens", 8, HUGE),
        "cannot fit",
    ),
    "array of arrays": (
        lambda good: _after(good, b"tokenizer.ggml.tokens", 4, struct.pack("<I", 9)),
        "item type",
    ),
    "huge dimensions": (
        lambda good: _after(good, b"token_embd.weight", 4, HUGE),
        "impossible shape",
    ),
    "seven dimensions": (
        lambda good: _after(good, b"token_embd.weight", 0, struct.pack("<I", 7)),
        "1 to 4 dimensions",
    ),
    "unknown tensor type": (
        lambda good: _after(good, b"token_embd.weight", 20, struct.pack("<I", 250)),
        "unknown type",
    ),
    "offset outside": (
        lambda good: _after(good, b"token_embd.weight", 24, struct.pack("<Q", 1 << 40)),
        "cut off",
    ),
    "text not UTF-8": (lambda good: good.replace(b"llama", b"ll\xff\xfea", 1), "UTF-8"),
    "key given twice": (
        lambda good: good.replace(b"ggml.bos_token_id", b"ggml.eos_token_id", 1),
        "given twice",
    ),
    "tensor twice": (
        lambda good: good.replace(b"blk.1.attn_q", b"blk.1.attn_k", 1),
        "twice",
    ),
}


def _after(good: bytes, name: bytes, at: int, raw: bytes) -> bytes:
    start = good.index(struct.pack("<Q", len(name)) + name) + 8 + len(name) + at
    return good[:start] + raw + good[start + len(raw) :]


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_refused_and_nothing_is_stored(
    case: str, workspace: Workspace, tiny: Path, tmp_path: Path
) -> None:
    damage, reason = DAMAGED[case]
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(damage(tiny.read_bytes()))
    with pytest.raises(InvalidInputError, match=reason) as caught:
        import_model(str(bad), workspace)
    assert "bad.gguf" in str(caught.value)
    assert stored_files(workspace) == []


def number(key: str, value: int) -> list[MetadataEntry]:
    return [metadata_entry(key, value, "UINT32")]


ABSURD: dict[str, tuple[list[MetadataEntry], str, str]] = {
    "other architecture": (
        [metadata_entry("general.architecture", "mamba", "STRING")],
        "",
        "'mamba' is not supported",
    ),
    "no architecture": ([], "general.architecture", "general.architecture is missing"),
    "100,000 layers": (number("llama.block_count", 100000), "", "block_count must be"),
    "no layers": (number("llama.block_count", 0), "", "block_count must be"),
    "more layers than tensors": (number("llama.block_count", 3), "", "missing"),
    "fewer layers than tensors": (number("llama.block_count", 1), "", "none of 1"),
    "no context": (number("llama.context_length", 0), "", "context_length must be"),
    "no width": ([], "llama.embedding_length", "embedding_length is missing"),
    "other width": (number("llama.embedding_length", 96), "", "must have shape"),
    "no heads": (number("llama.attention.head_count", 0), "", "head_count must be"),
    "odd sharing": (
        number("llama.attention.head_count_kv", 3),
        "",
        "multiple of head_count_kv",
    ),
    "other feed-forward": (
        number("llama.feed_forward_length", 64),
        "",
        "must have shape",
    ),
    "width as text": (
        [metadata_entry("llama.embedding_length", "64", "STRING")],
        "",
        "one whole number",
    ),
    "no vocabulary": ([], "tokenizer.ggml.tokens", "no vocabulary"),
    "short vocabulary": (
        [metadata_entry("tokenizer.ggml.tokens", ["a", "b"], "STRING")],
        "",
        "token_type must have 2 items",
    ),
    "token outside": (
        number("tokenizer.ggml.eos_token_id", 300),
        "",
        "must be below 300",
    ),
    "no embedding": ([], "token_embd.weight", "'token_embd.weight' is missing"),
    "no key matrix": ([], "blk.1.attn_k.weight", "'blk.1.attn_k.weight' is missing"),
    "odd alignment": (number("general.alignment", 24), "", "power of two"),
}


@pytest.mark.parametrize("case", ABSURD)
def test_a_file_that_describes_no_model_is_refused(
    case: str, workspace: Workspace, tiny: Path, tmp_path: Path
) -> None:
    entries, drop, reason = ABSURD[case]
    bad = rewritten(tiny, tmp_path / "bad.gguf", entries, drop=drop)
    with pytest.raises(InvalidInputError, match=reason):
        import_model(str(bad), workspace)
    assert stored_files(workspace) == []


def test_weights_that_are_not_finite_are_refused_and_nothing_is_stored(
    workspace: Workspace, tiny: Path, tmp_path: Path
) -> None:
    header = read_header(tiny)
    raw = bytearray(tiny.read_bytes())
    place = header.tensors[5].offset
    raw[place : place + 2] = np.float16(np.nan).tobytes()
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(raw)
    with pytest.raises(InvalidInputError, match="not finite"):
        import_model(str(bad), workspace)
    assert stored_files(workspace) == []


def test_a_source_that_is_not_there_is_not_found(workspace: Workspace) -> None:
    with pytest.raises(NotFoundError, match=r"absent\.gguf"):
        import_model("/nowhere/absent.gguf", workspace)


def test_a_name_that_cannot_be_a_file_name_is_refused(
    workspace: Workspace, tiny: Path
) -> None:
    with pytest.raises(InvalidInputError, match="--name"):
        import_model(str(tiny), workspace, name="../evil")


@pytest.mark.slow
def test_the_real_model_is_imported_and_marked(
    workspace: Workspace, smollm2_gguf: Path
) -> None:
    record = import_model(str(smollm2_gguf), workspace)
    assert record.parameters == 134_515_008
    assert record.source_quantization == "Q4_1"
    assert record.bytes == 270_885_952
    assert record.tokenizer == "gpt2/smollm"
    assert BlobStore(workspace.blobs).verify(record.id).is_file()
