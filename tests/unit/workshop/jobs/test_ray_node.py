"""What a node of a Ray cluster does besides running the job; no cluster needed."""

import os
from pathlib import Path

import pytest

from slmops.domain.errors import InvalidInputError
from slmops.registry.blobs import BlobStore
from slmops.workshop.jobs import ray_node
from slmops.workshop.jobs.order import Order
from slmops.workshop.jobs.ray_executor import ray_executor
from slmops.workshop.jobs.ray_node import Desk, Ticket, carry_out, tool_of
from slmops.workshop.own_folder import own_folder


def ticket(*, tool: str | None = None) -> Ticket:
    order = Order(
        key="k", kind="quantize", inputs={}, parameters={"quantization": "Q4_0"}
    )
    return Ticket(
        order=order,
        tool=tool_of(order) if tool is None else tool,
        run="r",
        blobs="",
        threads=1,
        cache_bytes=0,
    )


def test_the_desk_hands_out_pieces_up_to_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_node, "PIECE_BYTES", 4)
    digest = BlobStore(tmp_path).put_bytes(b"0123456789")
    desk = Desk(tmp_path, tmp_path / "out")
    assert [desk.read(digest, at) for at in (0, 4, 8, 10)] == [
        b"0123",
        b"4567",
        b"89",
        b"",
    ]


def test_pieces_written_twice_are_there_once(tmp_path: Path) -> None:
    desk = Desk(tmp_path, tmp_path / "out")
    for offset, piece in ((0, b"abc"), (3, b"def"), (3, b"def"), (0, b"abc")):
        desk.write("name", offset, piece)
    assert (tmp_path / "out" / "name").read_bytes() == b"abcdef"


def test_progress_is_told_once(tmp_path: Path) -> None:
    desk = Desk(tmp_path, tmp_path)
    desk.report("run", 1, 4)
    desk.report("run", 2, 4)
    assert desk.progress("other") is None
    assert desk.progress("run") == (2, 4)
    assert desk.progress("run") is None


def test_a_node_with_other_code_refuses_and_says_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ray_node.NODE_FOLDER, str(tmp_path))
    reply = carry_out(ticket(tool="code-of-another-release"), None)
    assert reply.error == InvalidInputError.code
    assert "code-of-another-release" in reply.message
    assert tool_of(ticket().order) in reply.message


def test_a_node_drops_inputs_used_longest_ago(tmp_path: Path) -> None:
    cache = BlobStore(tmp_path)
    digests = [cache.put_bytes(bytes([n]) * 100) for n in range(4)]
    for age, digest in enumerate(digests):
        os.utime(cache.path(digest), (1_000 - age, 1_000 - age))
    ray_node._shrink(cache, 250)
    assert [cache.has(digest) for digest in digests] == [True, True, False, False]


def test_a_killed_jobs_folder_goes_and_a_running_ones_stays(tmp_path: Path) -> None:
    left = tmp_path / "left"
    left.mkdir()
    with own_folder(tmp_path) as first:
        assert not left.exists()
        with own_folder(tmp_path) as second:
            assert first.exists()
            assert first != second
    assert list(tmp_path.iterdir()) == []


def test_a_clients_address_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(InvalidInputError, match="must run on a node of the cluster"),
        ray_executor(tmp_path, address="ray://10.0.0.5:10001"),
    ):
        pass


def test_a_missing_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with (
        pytest.raises(InvalidInputError, match=r"pip install '\.\[ray\]'"),
        ray_executor(tmp_path),
    ):
        pass
