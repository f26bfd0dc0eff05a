"""Downloads against a server that does everything wrong, over real sockets."""

import hashlib
import re
import resource
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from slmops.agent.download import Downloads, Pace, Wanted
from slmops.domain.errors import UnavailableError, UntrustedError
from slmops.domain.ids import Digest
from slmops.registry.blobs import BlobStore
from slmops.testing.raw_server import (
    RawServer,
    Received,
    Reply,
    answer,
    drip,
    head,
    raw,
    silent,
)

CONTENT = bytes(range(256)) * 1024
BINARY = "application/octet-stream"
SIZE = len(CONTENT)
WANTED = Wanted(
    digest=Digest("sha256:" + hashlib.sha256(CONTENT).hexdigest()), length=SIZE
)


def never() -> bool:
    return False


def ranged(connection: socket.socket, request: Received) -> None:
    """Answer as the control plane does."""
    asked = re.fullmatch(r"bytes=(\d+)-", request.headers.get("range", ""))
    reply = partial(int(asked[1])) if asked else answer(200, CONTENT, kind=BINARY)
    reply(connection, request)


def partial(begin: int, *, said: str = "", body: bytes | None = None) -> Reply:
    return answer(
        206,
        CONTENT[begin:] if body is None else body,
        kind=BINARY,
        Content_Range=said or f"bytes {begin}-{SIZE - 1}/{SIZE}",
    )


def cut(begin: int, end: int) -> Reply:
    """Promise all from `begin`, send up to `end`, close."""
    status = 206 if begin else 200
    said = {"Content_Range": f"bytes {begin}-{SIZE - 1}/{SIZE}"} if begin else {}
    sent = head(status, kind=BINARY, length=SIZE - begin, **said)
    return raw(sent + CONTENT[begin:end])


@pytest.fixture
def server() -> Iterator[RawServer]:
    with RawServer(replies=[ranged]) as server:
        yield server


@pytest.fixture
def downloads(server: RawServer, tmp_path: Path) -> Iterator[Downloads]:
    with httpx.Client(base_url=server.url, timeout=2, trust_env=False) as client:
        yield Downloads(client, BlobStore(tmp_path), tmp_path / "incoming")


def arrived(downloads: Downloads) -> int:
    return SIZE - downloads.missing_bytes(WANTED)


def is_here(tmp_path: Path) -> bool:
    store = BlobStore(tmp_path)
    return store.has(WANTED.digest) and store.read_bytes(WANTED.digest) == CONTENT


def test_an_artefact_is_fetched_verified_and_stored(
    downloads: Downloads, server: RawServer, tmp_path: Path
) -> None:
    assert not downloads.finish(WANTED)
    downloads.fetch(WANTED, pause=never)
    assert downloads.finish(WANTED)
    assert is_here(tmp_path)
    assert downloads.received_bytes == SIZE
    assert "range" not in server.received[0].headers
    assert list((tmp_path / "incoming").iterdir()) == []


def test_after_a_cut_only_the_missing_bytes_are_fetched(
    downloads: Downloads, server: RawServer, tmp_path: Path
) -> None:
    server.replies = [cut(0, 100_000), cut(100_000, 150_000), ranged]
    for _ in range(2):
        with pytest.raises(UnavailableError):
            downloads.fetch(WANTED, pause=never)
    assert arrived(downloads) == 150_000
    assert not downloads.finish(WANTED)
    downloads.fetch(WANTED, pause=never)
    assert downloads.finish(WANTED)
    assert is_here(tmp_path)
    assert [each.headers.get("range") for each in server.received] == [
        None,
        "bytes=100000-",
        "bytes=150000-",
    ]
    # What arrived before a cut was shipped too.
    assert downloads.received_bytes == SIZE


def test_what_has_arrived_survives_a_restart(
    downloads: Downloads, server: RawServer, tmp_path: Path
) -> None:
    server.replies = [cut(0, 60_000), ranged]
    with pytest.raises(UnavailableError):
        downloads.fetch(WANTED, pause=never)
    with httpx.Client(base_url=server.url, trust_env=False) as client:
        again = Downloads(client, BlobStore(tmp_path), tmp_path / "incoming")
        assert arrived(again) == 60_000
        again.fetch(WANTED, pause=never)
        assert again.finish(WANTED)
    assert server.received[-1].headers["range"] == "bytes=60000-"


def test_a_server_that_ignores_ranges_starts_the_file_anew(
    downloads: Downloads, server: RawServer, tmp_path: Path
) -> None:
    server.replies = [cut(0, 60_000), answer(200, CONTENT, kind=BINARY)]
    with pytest.raises(UnavailableError):
        downloads.fetch(WANTED, pause=never)
    downloads.fetch(WANTED, pause=never)
    assert downloads.finish(WANTED)
    assert is_here(tmp_path)


def test_a_server_may_send_less_than_was_asked_for(
    downloads: Downloads, server: RawServer, tmp_path: Path
) -> None:
    server.replies = [
        cut(0, 60_000),
        partial(60_000, said=f"bytes 60000-79999/{SIZE}", body=CONTENT[60_000:80_000]),
        ranged,
    ]
    with pytest.raises(UnavailableError):
        downloads.fetch(WANTED, pause=never)
    downloads.fetch(WANTED, pause=never)
    assert arrived(downloads) == 80_000
    downloads.fetch(WANTED, pause=never)
    assert downloads.finish(WANTED)
    assert is_here(tmp_path)


@pytest.mark.parametrize(
    "said",
    [
        f"bytes 0-{SIZE - 1}/{SIZE}",
        f"bytes 60000-{SIZE - 1}/{SIZE + 1}",
        f"bytes 60000-{SIZE}/{SIZE}",
        f"bytes 60000-59999/{SIZE}",
        f"bytes 60000-{SIZE - 1}/*",
        f"bytes */{SIZE}",
        "bytes 60000-" + "9" * 5000 + f"/{SIZE}",
        "nonsense",
        "",
    ],
)
def test_another_range_than_asked_for_is_thrown_away(
    downloads: Downloads, server: RawServer, said: str
) -> None:
    server.replies = [cut(0, 60_000), partial(60_000, said=said or " ")]
    with pytest.raises(UnavailableError):
        downloads.fetch(WANTED, pause=never)
    with pytest.raises(UntrustedError, match="asked for bytes 60000-"):
        downloads.fetch(WANTED, pause=never)
    assert arrived(downloads) == 0


def test_a_range_beyond_the_end_is_thrown_away(
    downloads: Downloads, server: RawServer
) -> None:
    server.replies = [cut(0, 60_000), answer(416, kind=BINARY)]
    with pytest.raises(UnavailableError):
        downloads.fetch(WANTED, pause=never)
    with pytest.raises(UntrustedError, match="no byte 60000"):
        downloads.fetch(WANTED, pause=never)
    assert arrived(downloads) == 0


@pytest.mark.parametrize("length", [0, 1, SIZE - 1, SIZE + 1, 1 << 50])
def test_another_length_than_was_signed_is_refused_before_a_byte_is_read(
    downloads: Downloads, server: RawServer, length: int
) -> None:
    server.replies = [drip(head(kind=BINARY, length=length), b"x", pause_s=0.01)]
    with pytest.raises(UntrustedError, match=f"{SIZE} bytes are expected"):
        downloads.fetch(WANTED, pause=never)
    assert downloads.received_bytes == 0


def test_endless_data_is_left_at_the_promised_length(
    downloads: Downloads, server: RawServer
) -> None:
    server.replies = [drip(head(kind=BINARY), b"x" * 50_000, pause_s=0.0)]
    with pytest.raises(UntrustedError, match=f"more than the promised {SIZE}"):
        downloads.fetch(WANTED, pause=never)
    assert arrived(downloads) == 0


def test_wrong_bytes_of_the_right_length_never_become_a_blob(
    downloads: Downloads, server: RawServer, tmp_path: Path
) -> None:
    server.replies = [answer(200, CONTENT[:-1] + b"?", kind=BINARY)]
    downloads.fetch(WANTED, pause=never)
    with pytest.raises(UntrustedError, match="expected sha256"):
        downloads.finish(WANTED)
    assert not is_here(tmp_path)
    assert arrived(downloads) == 0


def test_a_dripping_server_is_left_and_what_arrived_is_kept(
    server: RawServer, tmp_path: Path
) -> None:
    server.replies = [drip(head(kind=BINARY, length=SIZE), CONTENT[:10], pause_s=0.05)]
    pace = Pace(least_bytes_per_s=1000, judged_after_s=0.3)
    with httpx.Client(base_url=server.url, trust_env=False) as client:
        slow = Downloads(client, BlobStore(tmp_path), tmp_path / "in", pace=pace)
        begin = time.monotonic()
        with pytest.raises(UnavailableError, match="at least 1000 a second"):
            slow.fetch(WANTED, pause=never)
        assert 0.2 < time.monotonic() - begin < 2
        assert arrived(slow) == slow.received_bytes > 0


def test_a_download_takes_no_more_of_the_link_than_allowed(
    server: RawServer, tmp_path: Path
) -> None:
    server.replies = [answer(200, CONTENT, kind=BINARY)]
    pace = Pace(most_bytes_per_s=SIZE * 2)
    with httpx.Client(base_url=server.url, trust_env=False) as client:
        downloads = Downloads(client, BlobStore(tmp_path), tmp_path / "in", pace=pace)
        begin = time.monotonic()
        downloads.fetch(WANTED, pause=never)
        assert time.monotonic() - begin >= 0.45
        assert downloads.finish(WANTED)


def test_a_download_held_back_pauses_at_once_when_asked_to(
    server: RawServer, tmp_path: Path
) -> None:
    server.replies = [answer(200, CONTENT, kind=BINARY)]
    asked = iter([False, True])
    with httpx.Client(base_url=server.url, trust_env=False) as client:
        slow = Downloads(
            client,
            BlobStore(tmp_path),
            tmp_path / "in",
            pace=Pace(most_bytes_per_s=1024),
        )
        begin = time.monotonic()
        slow.fetch(WANTED, pause=lambda: next(asked, True))
        assert time.monotonic() - begin < 5
        assert arrived(slow) > 0


def test_a_silent_server_is_left_after_the_client_s_time_out(
    server: RawServer, tmp_path: Path
) -> None:
    for reply in (silent, drip(head(kind=BINARY, length=SIZE), b"", pause_s=9)):
        server.replies = [reply]
        with httpx.Client(base_url=server.url, timeout=0.2) as client:
            idle = Downloads(client, BlobStore(tmp_path), tmp_path / "in")
            with pytest.raises(UnavailableError, match="ReadTimeout"):
                idle.fetch(WANTED, pause=never)


def test_a_pause_is_taken_also_while_bytes_only_drip(
    downloads: Downloads, server: RawServer
) -> None:
    server.replies = [drip(head(kind=BINARY, length=SIZE), b"x", pause_s=0.01)]
    asked = []

    def pause() -> bool:
        asked.append(True)
        return len(asked) == 5

    begin = time.monotonic()
    downloads.fetch(WANTED, pause=pause)
    assert time.monotonic() - begin < 2
    assert 5 <= arrived(downloads) < 50


def test_an_empty_answer_is_a_failure_and_not_progress(
    downloads: Downloads, server: RawServer
) -> None:
    server.replies = [raw(head(kind=BINARY))]
    with pytest.raises(UnavailableError, match="no bytes"):
        downloads.fetch(WANTED, pause=never)


@pytest.mark.parametrize(
    "reply",
    [
        answer(200, b"<html>Log in</html>", kind="text/html; charset=utf-8"),
        answer(200, b'{"error": 1}', kind="application/json"),
        answer(302, b"", kind=BINARY, Location="http://127.0.0.1:9/"),
        answer(404, b"", kind=BINARY),
        answer(500, b"", kind=BINARY),
        answer(200, CONTENT, kind=BINARY, Content_Encoding="gzip"),
        raw(b"SSH-2.0-OpenSSH_9.9\r\n"),
        raw(b""),
    ],
    ids=["portal", "json", "redirect", "404", "500", "gzip", "ssh", "nothing"],
)
def test_something_else_than_the_registry_costs_nothing_that_has_arrived(
    downloads: Downloads, server: RawServer, reply: Reply
) -> None:
    server.replies = [cut(0, 60_000), reply]
    for _ in range(2):
        with pytest.raises(UnavailableError):
            downloads.fetch(WANTED, pause=never)
    assert arrived(downloads) == 60_000


def test_a_refused_connection_is_unavailable(tmp_path: Path) -> None:
    with httpx.Client(base_url="http://127.0.0.1:9", trust_env=False) as client:
        nobody = Downloads(client, BlobStore(tmp_path), tmp_path / "in")
        with pytest.raises(UnavailableError, match="ConnectError"):
            nobody.fetch(WANTED, pause=never)


def test_a_full_disk_is_said_and_the_download_goes_on_later(
    downloads: Downloads, tmp_path: Path
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            downloads.fetch(WANTED, pause=never)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert arrived(downloads) <= 100_000
    downloads.fetch(WANTED, pause=never)
    assert downloads.finish(WANTED)
    assert is_here(tmp_path)


def test_more_on_disk_than_was_promised_begins_anew(
    downloads: Downloads, tmp_path: Path
) -> None:
    (tmp_path / "incoming").mkdir()
    name = WANTED.digest.removeprefix("sha256:")
    (tmp_path / "incoming" / name).write_bytes(CONTENT + b"more")
    assert downloads.missing_bytes(WANTED) == SIZE
    downloads.fetch(WANTED, pause=never)
    assert downloads.finish(WANTED)


def test_what_is_complete_or_stored_is_not_asked_for_again(
    downloads: Downloads, server: RawServer, tmp_path: Path
) -> None:
    downloads.fetch(WANTED, pause=never)
    downloads.fetch(WANTED, pause=never)
    assert downloads.finish(WANTED)
    assert downloads.missing_bytes(WANTED) == 0
    assert downloads.finish(WANTED)
    assert len(server.received) == 1


def test_a_stored_artefact_that_rotted_is_fetched_anew(
    downloads: Downloads, tmp_path: Path
) -> None:
    downloads.fetch(WANTED, pause=never)
    assert downloads.finish(WANTED)
    BlobStore(tmp_path).path(WANTED.digest).write_bytes(CONTENT[:-1] + b"?")
    assert not downloads.finish(WANTED)
    downloads.fetch(WANTED, pause=never)
    assert downloads.finish(WANTED)
    assert is_here(tmp_path)


def test_nothing_is_left_of_downloads_that_are_given_up(
    downloads: Downloads, server: RawServer, tmp_path: Path
) -> None:
    downloads.discard_all()
    server.replies = [cut(0, 60_000)]
    with pytest.raises(UnavailableError):
        downloads.fetch(WANTED, pause=never)
    downloads.discard_all()
    assert list((tmp_path / "incoming").iterdir()) == []
