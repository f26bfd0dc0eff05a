"""Durable steps happen in the order that a power cut asks for."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest

from slmops.registry import durable


def test_a_new_folder_s_name_is_flushed_in_the_folder_above(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[Path] = []
    monkeypatch.setattr(durable, "sync_folder", flushed.append)
    durable.make_folder(tmp_path / "a" / "b", mode=0o700)
    assert flushed == [tmp_path, tmp_path / "a"]
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700
    durable.make_folder(tmp_path / "a" / "b")
    assert len(flushed) == 2


def test_bytes_are_flushed_before_the_rename_and_the_name_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    for name in ("flush", "move", "sync_folder"):
        monkeypatch.setattr(durable, name, noted(name, done))
    durable.write_atomically(tmp_path / "pointer", b"new")
    assert done == ["flush", "move", "sync_folder"]
    assert (tmp_path / "pointer").read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["pointer"]


def noted(name: str, done: list[str]) -> Callable[..., object]:
    real = getattr(durable, name)

    def step(*arguments: object) -> object:
        done.append(name)
        return real(*arguments)

    return step


def test_room_is_taken_before_the_bytes_come_and_the_size_stays(tmp_path: Path) -> None:
    path = tmp_path / "incoming"
    with path.open("wb") as sink:
        durable.reserve(sink, 1 << 20)
        assert path.stat().st_size == 0
        sink.write(b"x")
    assert path.read_bytes() == b"x"
    if path.stat().st_blocks * 512 < 1 << 20:
        pytest.skip("this file system reserves nothing")


def test_a_disk_without_room_refuses_the_reservation(tmp_path: Path) -> None:
    with (tmp_path / "incoming").open("wb") as sink:
        if not _reserves(sink):
            pytest.skip("this file system reserves nothing")
        with pytest.raises(OSError, match=r"space|large"):
            durable.reserve(sink, 1 << 50)


def _reserves(sink: BinaryIO) -> bool:
    durable.reserve(sink, 1 << 16)
    return os.fstat(sink.fileno()).st_blocks * 512 >= 1 << 16
