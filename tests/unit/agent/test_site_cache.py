"""The site's cache as a process of its own, between sockets that misbehave."""

import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from slmops.agent import mirror as mirror_module
from slmops.agent.download import Downloads, Pace, Wanted
from slmops.agent.mirror import Mirror, MirroredDownloads
from slmops.domain.ids import Digest
from slmops.registry.blobs import BlobStore
from slmops.testing.raw_server import RawServer, Received, Reply, answer, head
from slmops.testing.stage import free_port
from slmops.testing.tether import tethered

BINARY = "application/octet-stream"
PATH = "/v1/registry/blobs/sha256/"
MIB = 1 << 20


def never() -> bool:
    return False


def content(seed: int, size: int = 300_000) -> bytes:
    return hashlib.shake_128(bytes([seed])).digest(size)


def wanted(body: bytes) -> Wanted:
    digest = Digest("sha256:" + hashlib.sha256(body).hexdigest())
    return Wanted(digest=digest, length=len(body))


@dataclass(slots=True)
class Origin:
    """Answers as the control plane does, or as `spoil` makes of it."""

    bodies: dict[str, bytes]
    slow_s: float = 0.0
    stop_after: int | None = None
    gets: list[Received] = field(default_factory=list)

    def reply(self, connection: socket.socket, request: Received) -> None:
        body = self.bodies.get(request.path)
        if body is None:
            answer(404)(connection, request)
            return
        if request.method == "HEAD":
            connection.sendall(head(200, kind=BINARY, length=len(body)))
            return
        self.gets.append(request)
        time.sleep(self.slow_s)
        asked = re.fullmatch(r"bytes=(\d+)-", request.headers.get("range", ""))
        begin = int(asked[1]) if asked else 0
        said = (
            {"Content_Range": f"bytes {begin}-{len(body) - 1}/{len(body)}"}
            if asked
            else {}
        )
        status = 206 if asked else 200
        connection.sendall(head(status, kind=BINARY, length=len(body) - begin, **said))
        if self.stop_after is not None:
            connection.sendall(body[begin : begin + self.stop_after])
            time.sleep(10)
        connection.sendall(body[begin:])


def origin_of(*bodies: bytes) -> Origin:
    return Origin(bodies={wanted(body).path: body for body in bodies})


@contextmanager
def serving(reply: Reply) -> Iterator[str]:
    with RawServer(replies=[reply]) as server:
        yield server.url


@contextmanager
def cache(folder: Path, origin: str, *, max_mib: int = 64) -> Iterator[tuple[str, int]]:
    """Run a cache; yield its address and process id."""
    command = [
        *(sys.executable, "-m", "slmops", "agent", "cache", "--json", "--port", "0"),
        *("--server", origin, "--folder", str(folder), "--max-mib", str(max_mib)),
    ]
    with subprocess.Popen(
        tethered(command), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        try:
            assert process.stdout is not None
            lines = iter(process.stdout.readline, b"}\n")
            yield json.loads(b"".join(lines) + b"}")["url"], process.pid
        finally:
            process.terminate()


def get(url: str, body: bytes, **headers: str) -> httpx.Response:
    """Get a blob, waiting as devices do."""
    where = url + wanted(body).path
    found = httpx.get(where, headers=headers, trust_env=False)
    for _ in range(30):
        if found.status_code != 503:
            break
        time.sleep(0.2)
        found = httpx.get(where, headers=headers, trust_env=False)
    return found


@contextmanager
def device(
    folder: Path, near: str, far: str, *, wait_s: float = 30.0
) -> Iterator[MirroredDownloads]:
    with (
        httpx.Client(base_url=far, timeout=5, trust_env=False) as origin,
        httpx.Client(base_url=near, timeout=10, trust_env=False) as client,
    ):
        yield MirroredDownloads(
            origin,
            BlobStore(folder),
            folder / "incoming",
            pace=Pace(),
            mirror=Mirror(client, wait_s=wait_s),
        )


def install(downloads: Downloads, what: Wanted, *, most: int = 4) -> int:
    """Fetch until all is here; return how many rounds it took."""
    for rounds in range(most):
        if downloads.finish(what):
            return rounds
        downloads.fetch(what, pause=never)
    raise AssertionError(f"not here after {most} rounds")


def test_five_devices_cost_one_fetch_from_the_control_plane(tmp_path: Path) -> None:
    body = content(1)
    origin = origin_of(body)
    origin.slow_s = 1.0  # so that all of them wait for the same fetch
    nowhere = f"http://127.0.0.1:{free_port()}"
    rounds: list[int] = []

    def one(name: str) -> None:
        with device(tmp_path / name, url, nowhere) as downloads:
            rounds.append(install(downloads, wanted(body)))

    with serving(origin.reply) as far, cache(tmp_path / "cache", far) as (url, _):
        threads = [threading.Thread(target=one, args=(f"d{n}",)) for n in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert rounds == [1] * 5
    assert len(origin.gets) == 1
    for n in range(5):
        assert BlobStore(tmp_path / f"d{n}").read_bytes(wanted(body).digest) == body


def test_a_cache_serves_ranges_and_passes_no_credential_on(tmp_path: Path) -> None:
    body = content(2)
    origin = origin_of(body)
    with serving(origin.reply) as far, cache(tmp_path, far) as (url, _):
        whole = get(url, body, Authorization="Bearer secret", Cookie="a=b")
        part = get(url, body, Range="bytes=1000-1999")
        absent = httpx.get(f"{url}{PATH}{'0' * 64}", trust_env=False)
        astray = httpx.get(f"{url}{PATH}..%2f..%2f.lock", trust_env=False)
        said = httpx.get(f"{url}/healthz", trust_env=False).json()
    assert (whole.status_code, whole.content) == (200, body)
    assert (part.status_code, part.content) == (206, body[1000:2000])
    assert part.headers["content-range"] == f"bytes 1000-1999/{len(body)}"
    assert (absent.status_code, astray.status_code) == (404, 404)
    assert (said["blobs"], said["fetched"]) == (1, 1)
    (request,) = origin.gets
    assert not {"authorization", "cookie"} & set(request.headers)


def test_the_bound_holds_and_what_was_used_longest_ago_leaves(tmp_path: Path) -> None:
    bodies = [content(n, 400_000) for n in range(3)]
    large = content(9, 2 * MIB)
    origin = origin_of(*bodies, large)
    with serving(origin.reply) as far, cache(tmp_path, far, max_mib=1) as (url, _):
        for body in (bodies[0], bodies[1], bodies[0], bodies[2]):
            assert get(url, body).content == body
            time.sleep(0.02)
        assert get(url, large).status_code == 502
        said = httpx.get(f"{url}/healthz", trust_env=False).json()
        assert said["bytes"] <= MIB
        assert said["fetched"] == 3
        assert get(url, bodies[0]).content == bodies[0]
        assert len(origin.gets) == 3, "the one used last was still here"
        assert get(url, bodies[1]).content == bodies[1]
        assert len(origin.gets) == 4, "the one used longest ago had left"


def test_a_killed_cache_goes_on_and_serves_no_rotten_blob(tmp_path: Path) -> None:
    first, second = content(3), content(4)
    origin = origin_of(first, second)
    with serving(origin.reply) as far:
        with cache(tmp_path, far) as (url, pid):
            assert get(url, first).content == first
            origin.stop_after = 100_000
            assert httpx.get(
                url + wanted(second).path, timeout=20, trust_env=False
            ).status_code in {502, 503}
            os.kill(pid, signal.SIGKILL)
        name = wanted(first).digest.removeprefix("sha256:")
        blob = tmp_path / "blobs" / "sha256" / name
        blob.write_bytes(first[:-1] + bytes([first[-1] ^ 1]))
        origin.stop_after = None
        with cache(tmp_path, far) as (url, _):
            assert get(url, first).content == first
            assert get(url, second).content == second
    assert origin.gets[-1].headers["range"] == "bytes=100000-"


def test_a_cache_keeps_nothing_that_the_control_plane_sent_wrong(
    tmp_path: Path,
) -> None:
    body = content(5)
    origin = Origin(bodies={wanted(body).path: content(6)})
    with serving(origin.reply) as far, cache(tmp_path, far) as (url, _):
        assert get(url, body).status_code == 502
        said = httpx.get(f"{url}/healthz", trust_env=False).json()
    assert (said["blobs"], said["bytes"]) == (0, 0)


def test_a_second_cache_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    with serving(origin_of().reply) as far, cache(tmp_path, far):
        second = subprocess.run(
            [
                *(sys.executable, "-m", "slmops", "agent", "cache", "--port", "0"),
                *("--server", far, "--folder", str(tmp_path)),
            ],
            capture_output=True,
            check=False,
            timeout=60,
            text=True,
        )
    assert second.returncode != 0
    assert "another cache" in second.stderr


BODY = content(7)
WRONG = content(8)


def poisoned(connection: socket.socket, request: Received) -> None:
    Origin(bodies={request.path: WRONG}).reply(connection, request)


def longer(connection: socket.socket, request: Received) -> None:
    Origin(bodies={request.path: BODY + b"x"}).reply(connection, request)


def broken_off(connection: socket.socket, request: Received) -> None:
    connection.sendall(head(200, kind=BINARY, length=len(BODY)))
    if request.method != "HEAD":
        connection.sendall(BODY[:50_000])


def slow(connection: socket.socket, request: Received) -> None:
    begin = head(200, kind=BINARY, length=len(BODY))
    if request.method == "HEAD":
        connection.sendall(begin)
        return
    connection.sendall(begin)
    for place in range(len(BODY)):
        connection.sendall(BODY[place : place + 1])
        time.sleep(0.05)


@pytest.mark.parametrize(
    "reply",
    [poisoned, longer, broken_off, slow, answer(404), answer(502), answer(503)],
    ids=["poisoned", "longer", "broken off", "slow", "absent", "failing", "busy"],
)
def test_whatever_a_cache_does_the_device_gets_its_blob_from_the_control_plane(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reply: Reply
) -> None:
    monkeypatch.setattr(mirror_module, "_JUDGED_AFTER_S", 0.3)
    origin = origin_of(BODY)
    with (
        serving(reply) as near,
        serving(origin.reply) as far,
        device(tmp_path, near, far) as downloads,
    ):
        assert install(downloads, wanted(BODY)) <= 2
        assert BlobStore(tmp_path).read_bytes(wanted(BODY).digest) == BODY
        assert downloads.received_bytes >= len(BODY)
    assert len(origin.gets) == 1


def test_a_poisoned_cache_is_not_asked_for_that_blob_again(tmp_path: Path) -> None:
    with (
        RawServer(replies=[poisoned]) as near,
        serving(origin_of(BODY).reply) as far,
        device(tmp_path, near.url, far) as downloads,
    ):
        downloads.fetch(wanted(BODY), pause=never)
        assert not downloads.finish(wanted(BODY))
        asked = len(near.received)
        downloads.fetch(wanted(BODY), pause=never)
        assert downloads.finish(wanted(BODY))
        assert len(near.received) == asked


def test_without_a_cache_there_the_control_plane_serves_alone(tmp_path: Path) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    with (
        serving(origin_of(BODY).reply) as far,
        device(tmp_path, nowhere, far) as downloads,
    ):
        assert install(downloads, wanted(BODY)) == 1


def test_a_device_waits_for_a_cache_that_fetches_but_not_for_ever(
    tmp_path: Path,
) -> None:
    busy = answer(503, Retry_After="1")
    origin = origin_of(BODY)
    with (
        RawServer(replies=[busy]) as near,
        serving(origin.reply) as far,
        device(tmp_path, near.url, far, wait_s=1.5) as downloads,
    ):
        assert install(downloads, wanted(BODY)) == 1
        assert [request.method for request in near.received] == ["HEAD", "HEAD"]


def test_a_sync_that_is_due_ends_the_wait_for_a_cache(tmp_path: Path) -> None:
    with (
        serving(answer(503, Retry_After="30")) as near,
        serving(origin_of(BODY).reply) as far,
        device(tmp_path, near, far, wait_s=600) as downloads,
    ):
        begun = time.monotonic()
        downloads.fetch(wanted(BODY), pause=_after(0.5))
        assert time.monotonic() - begun < 5
        assert downloads.missing_bytes(wanted(BODY)) == len(BODY)


def _after(seconds: float) -> Callable[[], bool]:
    end = time.monotonic() + seconds
    return lambda: time.monotonic() > end
