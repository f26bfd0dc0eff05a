"""What a device believes: releases and artefacts that the pinned root vouches for.

The TUF client workflow through `tuf.ngclient`, which refuses bad signatures, rollback,
freeze, mix-and-match, wrong lengths and endless data. What was verified is kept in a
folder, with the newest trusted time: a clock that was set back cannot make expired
metadata look fresh.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadError,
    DownloadHTTPError,
    DownloadLengthMismatchError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    RepositoryError,
    UnsignedMetadataError,
)
from tuf.api.metadata import TargetFile  # type: ignore[attr-defined]
from tuf.ngclient.fetcher import FetcherInterface
from tuf.ngclient.updater import Updater

from slmops.domain.errors import (
    InvalidInputError,
    NotFoundError,
    SlmopsError,
    UnavailableError,
    UntrustedError,
)
from slmops.domain.ids import Digest
from slmops.domain.release import Release
from slmops.registry.blobs import write_atomically
from slmops.registry.fetch import FolderFetcher, HttpFetcher
from slmops.wire import codec

_TIME = "trusted-time"
_GONE = frozenset({404, 410})

_REASONS: tuple[tuple[type[RepositoryError], str], ...] = (
    (ExpiredMetadataError, "has expired; nothing new is trusted until it is signed"),
    (UnsignedMetadataError, "is not signed by the trusted keys"),
    (BadVersionNumberError, "is older than what was trusted before, or mixed"),
    (LengthOrHashMismatchError, "does not have the promised length and hash"),
    (RepositoryError, "is malformed or inconsistent"),
)


class TrustedRegistry:
    """A registry seen through a pinned root; for one thread, one folder each."""

    def __init__(
        self,
        folder: Path,
        root_json: bytes,
        base_url: str | Path,
        fetch_headers: Mapping[str, str] | None = None,
        *,
        now: Callable[[], float],
    ) -> None:
        """Open; nothing is fetched yet.

        Args:
            folder: keeps verified metadata, documents and the newest trusted time.
            root_json: the pinned root metadata, got over a trusted way.
            base_url: where ``metadata/`` and ``targets/`` lie:
                ``https://host/v1/registry``, or the folder of a registry.
            fetch_headers: added to every HTTP request.
            now: clock, Unix time in seconds.
        """
        self._folder = folder
        self._root_json = root_json
        if isinstance(base_url, Path):
            self._base_url = base_url.absolute().as_uri()
            self._fetcher: FetcherInterface = FolderFetcher()
        else:
            self._base_url = base_url.rstrip("/")
            self._fetcher = HttpFetcher(fetch_headers)
        self._now = now
        self._updater: Updater | None = None

    @property
    def trusted_time(self) -> float:
        """The newest time at which metadata was verified as fresh, Unix seconds; 0 at first.

        It cannot run away: a clock that is ahead of the metadata's expiry verifies
        nothing, so it is at most one timestamp's life ahead of the truth.
        """
        try:
            return float((self._folder / _TIME).read_text(encoding="ascii"))
        except (FileNotFoundError, ValueError):
            return 0.0

    def refresh(self) -> None:
        """Fetch and verify the newest metadata.

        Raises:
            UntrustedError: it does not hold; what was trusted before stays.
            NotFoundError: there is no registry at that place.
            UnavailableError: it cannot be reached.
        """
        self._updater = None
        reference = max(self._now(), self.trusted_time)
        with _plain_errors("registry metadata"):
            updater = self._open(reference)
            updater.refresh()
        if reference > self.trusted_time:
            write_atomically(self._folder / _TIME, repr(reference).encode("ascii"))
        self._updater = updater

    def target(self, path: str) -> tuple[int, str]:
        """Return length and SHA-256 (hex) that are promised for a target.

        Args:
            path: ``releases/<label>.json`` or ``blobs/sha256/<hex>``.

        Raises:
            NotFoundError: the registry has no such target.
            UntrustedError, UnavailableError: as `refresh`, which runs when none did.
        """
        target = self._target(path)
        return target.length, target.hashes["sha256"]

    def release(self, label: str) -> tuple[Release, Digest]:
        """Fetch and verify a release document.

        Raises:
            NotFoundError: no such release, or its document is gone.
            UntrustedError: it is not what was signed.
            UnavailableError: it cannot be reached.
        """
        target = self._target(f"releases/{label}.json")
        updater = self._current()
        with _plain_errors(f"release {label}"):
            found = updater.find_cached_target(target)
            path = Path(found or updater.download_target(target))
        digest = Digest("sha256:" + target.hashes["sha256"])
        try:
            release = codec.decode_json(
                path.read_bytes(), Release, where=f"release {label}", lenient=True
            )
        except InvalidInputError as error:
            raise UntrustedError(f"{error}; it was signed by a newer version") from None
        if release.label != label:
            raise UntrustedError(f"release {label} says it is {release.label}")
        return release, digest

    def _target(self, path: str) -> TargetFile:
        with _plain_errors(f"target {path}"):
            target = self._current().get_targetinfo(path)
        if target is None or "sha256" not in target.hashes:
            raise NotFoundError(f"registry has no target {path[:200]}")
        return target

    def _current(self) -> Updater:
        if self._updater is None:
            self.refresh()
        if self._updater is None:  # pragma: no cover - refresh sets it or raises
            raise UnavailableError("registry is not read yet")
        return self._updater

    def _open(self, reference: float) -> Updater:
        documents = self._folder / "documents"
        documents.mkdir(parents=True, exist_ok=True)
        updater = Updater(
            metadata_dir=str(self._folder),
            metadata_base_url=f"{self._base_url}/metadata",
            target_dir=str(documents),
            target_base_url=f"{self._base_url}/targets",
            fetcher=self._fetcher,
            bootstrap=self._root_json,
        )
        # tuf reads the clock itself and has no argument for it; a test holds this.
        updater._trusted_set.reference_time = datetime.fromtimestamp(reference, UTC)
        return updater


@contextmanager
def _plain_errors(what: str) -> Iterator[None]:
    """Turn tuf's errors into ours, in plain words."""
    try:
        yield
    except SlmopsError:
        raise
    except DownloadLengthMismatchError as error:
        raise UntrustedError(f"{what} is longer than promised: {error}") from error
    except DownloadHTTPError as error:
        if error.status_code in _GONE:
            raise NotFoundError(f"{what} is not there: {error}") from error
        raise UnavailableError(f"{what} cannot be fetched: {error}") from error
    except DownloadError as error:
        raise UnavailableError(f"{what} cannot be fetched: {error}") from error
    except RepositoryError as error:
        reason = next(text for kind, text in _REASONS if isinstance(error, kind))
        raise UntrustedError(f"{what} {reason} ({error})") from error
    except OSError as error:
        raise UnavailableError(f"{what} cannot be stored: {error}") from error
