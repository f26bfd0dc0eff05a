"""How TUF metadata and release documents are fetched: over HTTP or from a folder.

Bodies are taken as they come, never decompressed: lengths that the metadata promises
then bound memory, and no small answer can unpack into a large one.
"""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

import httpx
from tuf.api.exceptions import DownloadError, DownloadHTTPError, SlowRetrievalError
from tuf.ngclient.fetcher import FetcherInterface

_BLOCK = 1 << 16
_NOT_FOUND = 404
_FIRST_ERROR = 400


class HttpFetcher(FetcherInterface):
    """Fetches over HTTP; like a device's sync, never through a proxy of the environment."""

    def __init__(
        self,
        headers: Mapping[str, str] | None = None,
        *,
        gap_timeout_s: float = 20.0,
        total_timeout_s: float = 300.0,
        least_bytes_per_s: float = 256.0,
        judged_after_s: float = 20.0,
    ) -> None:
        """Say how to fetch.

        Args:
            headers: added to every request.
            gap_timeout_s: longest wait for a connection or the next bytes.
            total_timeout_s: longest time for one file.
            least_bytes_per_s: mean over one file; a server that trickles is left. The
                poorest radio links give ten times as much.
            judged_after_s: age of an answer from which its mean counts.
        """
        self._headers = {**(headers or {}), "Accept-Encoding": "identity"}
        self._gap_timeout_s = gap_timeout_s
        self._total_timeout_s = total_timeout_s
        self._least_bytes_per_s = least_bytes_per_s
        self._judged_after_s = judged_after_s

    def _fetch(self, url: str) -> Iterator[bytes]:
        # A generator: everything below happens, and fails, while the caller reads.
        begun, received = time.monotonic(), 0
        try:
            with httpx.stream(
                "GET",
                url,
                headers=self._headers,
                timeout=self._gap_timeout_s,
                follow_redirects=True,
                trust_env=False,
            ) as response:
                if response.status_code >= _FIRST_ERROR:
                    raise DownloadHTTPError(
                        f"{url} answered {response.status_code}", response.status_code
                    )
                # As it arrives: gathered into blocks, a drip would hide its pace.
                for block in response.iter_raw():
                    received += len(block)
                    self._require_pace(url, received, time.monotonic() - begun)
                    yield block
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise DownloadError(f"{url} cannot be fetched: {error}") from error

    def _require_pace(self, url: str, received: int, seconds: float) -> None:
        if seconds > self._total_timeout_s:
            raise SlowRetrievalError(
                f"{url} took longer than {self._total_timeout_s:g} s"
            )
        least = self._least_bytes_per_s * seconds
        if seconds >= self._judged_after_s and received < least:
            raise SlowRetrievalError(
                f"{url} sent {received} bytes in {seconds:.0f} s, at least"
                f" {self._least_bytes_per_s:g} a second are expected"
            )


class FolderFetcher(FetcherInterface):
    """Reads ``file:`` URLs."""

    def _fetch(self, url: str) -> Iterator[bytes]:
        path = Path(unquote(urlsplit(url).path))
        try:
            with path.open("rb") as source:
                while block := source.read(_BLOCK):
                    yield block
        except FileNotFoundError:
            raise DownloadHTTPError(f"{path} does not exist", _NOT_FOUND) from None
        except OSError as error:
            raise DownloadError(f"{path} cannot be read: {error.strerror}") from error
