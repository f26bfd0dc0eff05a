"""Deltas between whole files: equal results, small, resumable, and never trusted."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slmops.deltas import apply as applying
from slmops.deltas.apply import apply_delta
from slmops.deltas.container import (
    DeltaHeader,
    Kind,
    Literal,
    frame,
    header_bytes,
    literal_content,
    models_content,
)
from slmops.deltas.make import MadeDelta, make_delta
from slmops.deltas.pressed import press
from slmops.domain.errors import UntrustedError
from slmops.domain.ids import Digest
from slmops.wire.codec import encode_json


def _q8_model(path: Path, weights: np.ndarray, template: str = "old") -> None:
    """Write a GGUF file with one Q8_0 matrix and one F32 row."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    rows, width = weights.shape
    head = b"GGUF" + struct.pack("<IQQ", 3, 2, 1)
    head += text("tokenizer.chat_template") + struct.pack("<I", 8) + text(template)
    head += text("w") + struct.pack("<IQQIQ", 2, width, rows, 8, 0)
    size = rows * width // 32 * 34
    norm_at = -(-size // 32) * 32
    head += text("n") + struct.pack("<IQIQ", 1, width, 0, norm_at)
    head += bytes(-len(head) % 32)
    blocks = weights.reshape(-1, 32)
    scale = (np.abs(blocks).max(axis=1) / 127).astype("<f2")
    codes = np.rint(blocks / scale.astype(np.float32)[:, None]).astype(np.int8)
    raw = np.concatenate([scale.view(np.uint8).reshape(-1, 2), codes.view(np.uint8)], 1)
    norm = np.ones(width, "<f4").tobytes()
    path.write_bytes(head + raw.tobytes().ljust(norm_at, b"\0") + norm)


class Pair:
    """Two models, and the delta between them."""

    def __init__(self, folder: Path, change: float = 0.01) -> None:
        self.old, self.new = folder / "old", folder / "new"
        self.delta, self.out = folder / "delta", folder / "out"
        rng = np.random.default_rng(3)
        weights = rng.standard_normal((96, 512), dtype=np.float32)
        _q8_model(self.old, weights)
        noise = rng.standard_normal(weights.shape, dtype=np.float32)
        _q8_model(self.new, weights + change * noise, "a longer new template")
        self.made: MadeDelta = make_delta(self.old, self.new, self.delta)

    def apply(self) -> None:
        apply_delta(self.old, self.delta, self.out, expected=self.made.new)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(tmp_path_factory.mktemp("pair"))


def test_a_requantized_model_comes_back_byte_for_byte_from_few_bytes(
    pair: Pair,
) -> None:
    pair.apply()
    assert pair.out.read_bytes() == pair.new.read_bytes()
    assert pair.made.delta_bytes < 0.35 * pair.made.new_bytes
    assert list(pair.out.parent.glob("out.*")) == []


def test_equal_files_give_equal_bytes(pair: Pair, tmp_path: Path) -> None:
    make_delta(pair.old, pair.new, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == pair.delta.read_bytes()


@pytest.mark.parametrize("old", [b"", b"x", b"GGUF", b"no model " * 9000])
@pytest.mark.parametrize("new", [b"", b"y", b"no model at all " * 9000])
def test_any_two_files_have_a_delta(tmp_path: Path, old: bytes, new: bytes) -> None:
    (tmp_path / "old").write_bytes(old)
    (tmp_path / "new").write_bytes(new)
    made = make_delta(tmp_path / "old", tmp_path / "new", tmp_path / "d")
    apply_delta(tmp_path / "old", tmp_path / "d", tmp_path / "out", expected=made.new)
    assert (tmp_path / "out").read_bytes() == new


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_safetensors_are_seen_tensor_by_tensor(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(5)
    old = rng.standard_normal(40_000, dtype=np.float32)
    size = 4 if kind == "F32" else 2
    shape = {"dtype": kind, "shape": [200, 200], "data_offsets": [0, 40_000 * size]}
    head = json.dumps({"w": shape}).encode()
    for name, values in (("old", old), ("new", old * np.float32(1.001))):
        data = values.astype("<f2").tobytes()
        if kind != "F16":
            data = b"".join(bytes(part) for part in [values.view(np.uint8)])
        if kind == "BF16":
            data = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
        (tmp_path / name).write_bytes(struct.pack("<Q", len(head)) + head + data)
    made = make_delta(tmp_path / "old", tmp_path / "new", tmp_path / "d")
    apply_delta(tmp_path / "old", tmp_path / "d", tmp_path / "o", expected=made.new)
    assert (tmp_path / "o").read_bytes() == (tmp_path / "new").read_bytes()
    assert made.delta_bytes < 0.6 * made.new_bytes


def test_a_killed_apply_goes_on_where_it_was(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(applying, "_CHECKPOINT_BYTES", 1)
    whole = pair.new.read_bytes()
    writes: list[int] = []
    write = applying._Output.write

    def killed(output: applying._Output, content: bytes) -> None:
        if writes and output.made >= writes[-1] and len(writes) == 1:
            raise KeyboardInterrupt
        write(output, content)
        writes.append(output.made)

    monkeypatch.setattr(applying._Output, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        pair.apply()
    assert len(pair.out.read_bytes()) < len(whole)
    before = writes[-1]
    again: list[int] = []

    def counted(output: applying._Output, content: bytes) -> None:
        again.append(output.made)
        write(output, content)

    monkeypatch.setattr(applying._Output, "write", counted)
    pair.apply()
    assert again[0] == before
    assert pair.out.read_bytes() == whole


def test_a_changed_output_is_found_out_after_a_resume(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(applying, "_CHECKPOINT_BYTES", 1)
    pair.apply()
    note = applying.Checkpoint(
        delta=applying.header_identity(pair.delta.open("rb")),
        delta_bytes=pair.delta.stat().st_size - 5,
        out_bytes=pair.made.new_bytes,
    )
    raw = bytearray(pair.out.read_bytes())
    raw[1000] ^= 1
    pair.out.write_bytes(raw)
    (pair.out.parent / "out.at").write_bytes(encode_json(note))
    with pytest.raises(UntrustedError, match="expected"):
        pair.apply()
    assert not pair.out.exists()


def test_another_old_file_of_the_same_size_is_found_out(
    pair: Pair, tmp_path: Path
) -> None:
    raw = bytearray(pair.old.read_bytes())
    raw[-100] ^= 1
    other = tmp_path / "other"
    other.write_bytes(raw)
    with pytest.raises(UntrustedError):
        apply_delta(other, pair.delta, tmp_path / "o", expected=pair.made.new)
    assert not (tmp_path / "o").exists()


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_no_damage_gives_a_wrong_file_or_another_error(
    pair: Pair, tmp_path: Path, data: st.DataObject
) -> None:
    raw = bytearray(pair.delta.read_bytes())
    # Half of the damage goes to the front, where headers and models lie.
    last = data.draw(st.sampled_from([400, len(raw) - 1]))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, last))] ^= data.draw(st.integers(1, 255))
    raw = raw[: data.draw(st.sampled_from([len(raw), len(raw) // 2, len(raw) - 1]))]
    damaged = tmp_path / "damaged"
    damaged.write_bytes(raw)
    out = tmp_path / "o"
    try:
        apply_delta(pair.old, damaged, out, expected=pair.made.new)
    except UntrustedError:
        assert not out.exists()
    else:  # two flips that undo each other, or probabilities that nothing uses
        assert out.read_bytes() == pair.new.read_bytes()


def _hostile(pair: Pair, path: Path, *frames: bytes) -> None:
    header = DeltaHeader(
        format=1,
        old=pair.made.old,
        old_bytes=pair.old.stat().st_size,
        new=pair.made.new,
        new_bytes=pair.made.new_bytes,
    )
    models = frame(Kind.MODELS, models_content({}))
    path.write_bytes(header_bytes(header) + models + b"".join(frames))


def test_bombs_and_huge_numbers_are_refused_before_memory_is_taken(
    pair: Pair, tmp_path: Path
) -> None:
    bomb = press(bytes(1 << 28))
    frames = [
        frame(Kind.LITERAL, literal_content(Literal(1 << 20, 0, 0, bomb))),
        frame(Kind.LITERAL, literal_content(Literal((1 << 32) - 1, 0, 0, bomb))),
        frame(Kind.COPY, struct.pack("<QQ", 0, (1 << 64) - 1)),
        frame(Kind.COPY, struct.pack("<QQ", (1 << 64) - 1, 8)),
        frame(Kind.TENSORS, struct.pack("<HHIII", 65535, 65535, 9, 9, 9)),
        frame(Kind.MODELS, struct.pack("<I", (1 << 32) - 1)),
        struct.pack("<BI", Kind.TENSORS, (1 << 32) - 1),
        struct.pack("<BI", 77, 0),
        frame(Kind.END, b""),
    ]
    for hostile in frames:
        _hostile(pair, tmp_path / "d", hostile)
        with pytest.raises(UntrustedError):
            apply_delta(
                pair.old, tmp_path / "d", tmp_path / "o", expected=pair.made.new
            )
        assert not (tmp_path / "o").exists()


def test_a_delta_for_another_target_is_refused_unread(pair: Pair) -> None:
    with pytest.raises(UntrustedError, match="other files"):
        apply_delta(
            pair.old, pair.delta, pair.out, expected=Digest("sha256:" + "0" * 64)
        )


_MEASURE = """
import resource, subprocess, sys
done = subprocess.run([sys.executable, "-m", "slmops.deltas", *sys.argv[1:]])
print(done.returncode, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


@pytest.mark.slow
def test_a_process_that_applies_stays_within_64_mb(tmp_path: Path) -> None:
    """All of the child counts: interpreter and numpy too. The files have 540 MB."""
    rng = np.random.default_rng(3)
    rows, width = 2048, 512
    weights = rng.standard_normal((rows, width), dtype=np.float32)
    for name, change in (("old", 0.0), ("new", 0.01)):
        path = tmp_path / name
        noise = np.random.default_rng(4).standard_normal(weights.shape, np.float32)
        _q8_model(path, weights + np.float32(change) * noise)
        with path.open("r+b") as file:  # sparse: a gap that no header names
            file.truncate(540 << 20)
    made = make_delta(tmp_path / "old", tmp_path / "new", tmp_path / "d")
    arguments = [str(tmp_path / name) for name in ("old", "d", "o")]
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, *arguments, made.new],
        check=True,
        capture_output=True,
        text=True,
    )
    status, rss_kib = (int(number) for number in done.stdout.split())
    assert status == 0, done.stderr
    assert rss_kib < 64_000
