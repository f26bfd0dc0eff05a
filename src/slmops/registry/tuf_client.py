"""The TUF client workflow (TUF specification 1.0, section 5), through `tuf.ngclient`.

It refuses bad signatures, rollback, freeze, mix-and-match, wrong lengths and endless
data. What was verified is kept in a folder, with the newest trusted time: a clock that
was set back cannot make expired metadata look fresh.

One object for every user: devices by `slmops.registry.trust`, the conformance suite by
`slmops.agent.tuf_client`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
from tuf.api.metadata import Root, TargetFile  # type: ignore[attr-defined]
from tuf.ngclient.fetcher import FetcherInterface
from tuf.ngclient.updater import Updater

from slmops.domain.errors import (
    NotFoundError,
    SlmopsError,
    UnavailableError,
    UntrustedError,
)
from slmops.registry.blobs import write_atomically

_TIME = "trusted-time"
_GONE = frozenset({404, 410})

_REASONS: tuple[tuple[type[RepositoryError], str], ...] = (
    (ExpiredMetadataError, "has expired; nothing new is trusted until it is signed"),
    (UnsignedMetadataError, "is not signed by the trusted keys"),
    (BadVersionNumberError, "is older than what was trusted before, or mixed"),
    (LengthOrHashMismatchError, "does not have the promised length and hash"),
    (RepositoryError, "is malformed or inconsistent"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Places:
    """Where things lie: two folders here, two addresses there."""

    folder: Path
    """Keeps verified metadata and the newest trusted time."""
    documents: Path
    """Keeps verified targets."""
    metadata_url: str
    """Base of the metadata files."""
    targets_url: str | None = None
    """Base of the targets; None when none are fetched."""


class TufClient:
    """A repository seen through a trusted root; for one thread, one folder each."""

    def __init__(
        self,
        places: Places,
        fetcher: FetcherInterface,
        *,
        root_json: bytes | None,
        now: Callable[[], float],
    ) -> None:
        """Open; nothing is fetched yet.

        Args:
            places: folders and addresses.
            fetcher: how addresses are read.
            root_json: the pinned root; None trusts ``root.json`` in the folder.
            now: clock, Unix time in seconds.
        """
        self._places = places
        self._fetcher = fetcher
        self._root_json = root_json
        self._now = now
        self._updater: Updater | None = None

    @property
    def trusted_time(self) -> float:
        """The newest time at which metadata was verified as fresh, Unix seconds; 0 at first.

        It cannot run away: a clock that is ahead of the metadata's expiry verifies
        nothing, so it is at most one timestamp's life ahead of the truth.
        """
        try:
            text = (self._places.folder / _TIME).read_text(encoding="ascii")
            return float(text)
        except (FileNotFoundError, ValueError):
            return 0.0

    @property
    def root(self) -> Root:
        """The newest root that was verified.

        Raises:
            UntrustedError, UnavailableError: as `refresh`, which runs when none did.
        """
        trusted: Root = self._current()._trusted_set.root
        return trusted

    def refresh(self) -> None:
        """Fetch and verify the newest metadata.

        Raises:
            UntrustedError: it does not hold; what was trusted before stays.
            NotFoundError: there is no repository at that place.
            UnavailableError: it cannot be reached.
        """
        self._updater = None
        reference = max(self._now(), self.trusted_time)
        with plain_errors("registry metadata"):
            updater = self._open(reference)
            updater.refresh()
        if reference > self.trusted_time:
            path = self._places.folder / _TIME
            write_atomically(path, repr(reference).encode("ascii"))
        self._updater = updater

    def target(self, path: str) -> TargetFile:
        """Return what is promised of a target.

        Raises:
            NotFoundError: there is no such target.
            UntrustedError, UnavailableError: as `refresh`, which runs when none did.
        """
        with plain_errors(f"target {path[:200]}"):
            target = self._current().get_targetinfo(path)
        if target is None:
            raise NotFoundError(f"registry has no target {path[:200]}")
        return target

    def download(self, target: TargetFile) -> Path:
        """Return a target's verified file, fetched when it is not here already.

        Raises:
            NotFoundError: it is gone.
            UntrustedError: it is not what was signed.
            UnavailableError: it cannot be reached.
        """
        updater = self._current()
        with plain_errors(f"target {target.path[:200]}"):
            found = updater.find_cached_target(target)
            return Path(found or updater.download_target(target))

    def _current(self) -> Updater:
        if self._updater is None:
            self.refresh()
        if self._updater is None:  # pragma: no cover - refresh sets it or raises
            raise UnavailableError("registry is not read yet")
        return self._updater

    def _open(self, reference: float) -> Updater:
        places = self._places
        places.documents.mkdir(parents=True, exist_ok=True)
        updater = Updater(
            metadata_dir=str(places.folder),
            metadata_base_url=places.metadata_url,
            target_dir=str(places.documents),
            target_base_url=places.targets_url,
            fetcher=self._fetcher,
            bootstrap=self._root_json,
        )
        # tuf reads the clock itself and has no argument for it; a test holds this.
        updater._trusted_set.reference_time = datetime.fromtimestamp(reference, UTC)
        return updater


@contextmanager
def plain_errors(what: str) -> Iterator[None]:
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
