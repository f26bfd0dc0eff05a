"""Published releases as the control plane reads them: verified once, then remembered."""

from collections.abc import Callable
from typing import Protocol

from slmops.domain.errors import UntrustedError
from slmops.domain.ids import Digest
from slmops.domain.release import Release


class ReleaseSource(Protocol):
    """What is asked of `slmops.registry.catalog.Catalog`."""

    def labels(self) -> tuple[str, ...]:
        """Return the labels of all published releases."""
        ...

    def load(self, label: str) -> tuple[Release, Digest]:
        """Return a release and the digest of its document."""
        ...

    def verify(self, label: str) -> object:
        """Check the release and its artefacts against the TUF metadata."""
        ...


class KnownReleases:
    """Releases by label; they are immutable, so one read lasts."""

    def __init__(self, source: ReleaseSource, *, stamp: Callable[[], object]) -> None:
        """Read releases from `source`.

        Args:
            source: verifies all metadata at every call.
            stamp: changes whenever a release is published; cheap.
        """
        self._source = source
        self._stamp = stamp
        self._labels: tuple[object, tuple[str, ...]] | None = None
        self._loaded: dict[str, tuple[Release, Digest]] = {}

    def labels(self) -> tuple[str, ...]:
        """Return the labels of all published releases."""
        stamp = self._stamp()
        if self._labels is None or self._labels[0] != stamp:
            self._labels = stamp, tuple(self._source.labels())
        return self._labels[1]

    def load(self, label: str) -> tuple[Release, Digest]:
        """Return a release and the digest of its document.

        Raises:
            NotFoundError: no such release.
        """
        if label not in self._loaded:
            self._loaded[label] = self._source.load(label)
        return self._loaded[label]

    def load_verified(self, label: str) -> tuple[Release, Digest]:
        """Return a release after checking its signatures and digests anew.

        Raises:
            NotFoundError: no such release.
            UntrustedError: something does not hold.
        """
        self._source.verify(label)
        release, digest = self._source.load(label)
        known = self._loaded.get(label)
        if known is not None and known[1] != digest:
            raise UntrustedError(
                f"release {label} was {known[1]}, is {digest} now:"
                " a release never changes"
            )
        self._loaded[label] = release, digest
        return release, digest

    def newest(self) -> Release | None:
        """Return the release created last, or None."""
        releases = [self.load(label)[0] for label in self.labels()]
        return max(releases, key=lambda release: release.created_at, default=None)
