"""The demo's load counts what really failed, against real servers."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from slmops.demo.load import Counts, RequestLoad

GOOD = b'{"choices": [{"message": {"content": "four"}}]}'


@contextmanager
def server(status: int, body: bytes) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Stay silent."""

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listening.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.server_address[1]}"
    finally:
        listening.shutdown()
        thread.join()
        listening.server_close()


def counted(url: str) -> Counts:
    load = RequestLoad(pause_s=0.005)
    load.add(url)
    deadline = time.monotonic() + 20
    while load.counts.sent < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    return load.stop()


def test_complete_answers_do_not_count_as_failed() -> None:
    with server(200, GOOD) as url:
        counts = counted(url)
    assert counts.sent >= 3
    assert counts.failed == 0


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (503, b"{}"),
        (200, b"{"),
        (200, b'{"choices": []}'),
        (200, b'{"choices": [{"message": {"content": null}}]}'),
    ],
)
def test_anything_but_a_complete_answer_counts_as_failed(
    status: int, body: bytes
) -> None:
    with server(status, body) as url:
        counts = counted(url)
    assert counts.failed == counts.sent >= 3
    assert url in counts.reasons[0]


def test_a_server_that_is_not_there_counts_as_failed() -> None:
    with server(200, GOOD) as url:
        pass
    counts = counted(url)
    assert counts.failed == counts.sent >= 3
