"""Fetching metadata from a server that wants to keep us waiting."""

import contextlib
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from slmops.domain.errors import UnavailableError
from slmops.registry.fetch import HttpFetcher
from slmops.registry.tuf_client import Places, TufClient
from slmops.testing.folder_server import serving_folder
from slmops.testing.sample_release import SAMPLE_TIME, publish_sample


def drip(handler: BaseHTTPRequestHandler) -> bool:
    """Send the timestamp one byte at a time, never silent for long."""
    if "timestamp" not in handler.path:
        return False
    handler.send_response(200)
    handler.end_headers()
    with contextlib.suppress(OSError):
        for _ in range(10_000):
            handler.wfile.write(b" ")
            time.sleep(0.02)
    return True


@pytest.fixture
def dripping(tmp_path: Path) -> Iterator[tuple[str, bytes]]:
    sample = publish_sample(tmp_path / "workspace")
    with serving_folder(sample.catalog.root, drip) as url:
        yield url, sample.keys.root_json


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"judged_after_s": 0.3}, "at least 256 a second are expected"),
        ({"total_timeout_s": 0.3}, "took longer than 0.3 s"),
    ],
)
def test_slow_retrieval_is_given_up_though_bytes_keep_coming(
    dripping: tuple[str, bytes],
    tmp_path: Path,
    limits: dict[str, float],
    words: str,
) -> None:
    url, root_json = dripping
    client = TufClient(
        Places(
            folder=tmp_path / "trust",
            documents=tmp_path / "documents",
            metadata_url=f"{url}/metadata",
        ),
        HttpFetcher(**limits),  # type: ignore[arg-type]
        root_json=root_json,
        now=lambda: SAMPLE_TIME,
    )
    begun = time.monotonic()
    with pytest.raises(UnavailableError, match=words):
        client.refresh()
    assert time.monotonic() - begun < 5


def test_silence_is_given_up_too(tmp_path: Path) -> None:
    sample = publish_sample(tmp_path / "workspace")

    def silent(handler: BaseHTTPRequestHandler) -> bool:
        time.sleep(1.0)
        return True

    with serving_folder(sample.catalog.root, silent) as url:
        client = TufClient(
            Places(
                folder=tmp_path / "trust",
                documents=tmp_path / "documents",
                metadata_url=f"{url}/metadata",
            ),
            HttpFetcher(gap_timeout_s=0.2),
            root_json=sample.keys.root_json,
            now=lambda: SAMPLE_TIME,
        )
        with pytest.raises(UnavailableError, match="cannot be fetched"):
            client.refresh()
