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
    ) -> None:
        """Say how to fetch.

        Args:
            headers: added to every request.
            gap_timeout_s: longest wait for a connection or the next bytes.
            total_timeout_s: longest time for one file: a server that trickles is cut.
        """
        self._headers = {**(headers or {}), "Accept-Encoding": "identity"}
        self._gap_timeout_s = gap_timeout_s
        self._total_timeout_s = total_timeout_s

    def _fetch(self, url: str) -> Iterator[bytes]:
        # A generator: everything below happens, and fails, while the caller reads.
        deadline = time.monotonic() + self._total_timeout_s
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
                for block in response.iter_raw(_BLOCK):
                    if time.monotonic() > deadline:
                        raise SlowRetrievalError(
                            f"{url} took longer than {self._total_timeout_s:g} s"
                        )
                    yield block
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise DownloadError(f"{url} cannot be fetched: {error}") from error


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
