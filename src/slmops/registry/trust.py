"""What a device believes: releases and artefacts that the pinned root vouches for.

The rules are TUF's, in `slmops.registry.tuf_client`; here are the targets that this
project publishes.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from slmops.domain.errors import InvalidInputError, NotFoundError, UntrustedError
from slmops.domain.ids import Digest
from slmops.domain.release import Release
from slmops.registry.fetch import FolderFetcher, HttpFetcher
from slmops.registry.roots import director_keys
from slmops.registry.tuf_client import Places, TufClient
from slmops.wire import codec


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
        base = (
            base_url.absolute().as_uri()
            if isinstance(base_url, Path)
            else base_url.rstrip("/")
        )
        self._client = TufClient(
            Places(
                folder=folder,
                documents=folder / "documents",
                metadata_url=f"{base}/metadata",
                targets_url=f"{base}/targets",
            ),
            FolderFetcher()
            if isinstance(base_url, Path)
            else HttpFetcher(fetch_headers),
            root_json=root_json,
            now=now,
        )

    @property
    def trusted_time(self) -> float:
        """As `TufClient.trusted_time`."""
        return self._client.trusted_time

    def refresh(self) -> None:
        """Fetch and verify the newest metadata.

        Raises:
            UntrustedError: it does not hold; what was trusted before stays.
            NotFoundError: there is no registry at that place.
            UnavailableError: it cannot be reached.
        """
        self._client.refresh()

    def director_keys(self) -> tuple[str, ...]:
        """Return the director's public keys (hex) as the newest root names them.

        () when it names none: then the key of the enrolment counts.

        Raises:
            UntrustedError, UnavailableError: as `refresh`, which runs when none did.
        """
        return director_keys(self._client.root)

    def target(self, path: str) -> tuple[int, str]:
        """Return length and SHA-256 (hex) that are promised for a target.

        Args:
            path: ``releases/<label>.json`` or ``blobs/sha256/<hex>``.

        Raises:
            NotFoundError: the registry has no such target.
            UntrustedError, UnavailableError: as `refresh`, which runs when none did.
        """
        target = self._client.target(path)
        if "sha256" not in target.hashes:
            raise NotFoundError(f"registry has no target {path[:200]} with a SHA-256")
        return target.length, target.hashes["sha256"]

    def release(self, label: str) -> tuple[Release, Digest]:
        """Fetch and verify a release document.

        Raises:
            NotFoundError: no such release, or its document is gone.
            UntrustedError: it is not what was signed.
            UnavailableError: it cannot be reached.
        """
        path = f"releases/{label}.json"
        _, sha256 = self.target(path)
        file = self._client.download(self._client.target(path))
        try:
            release = codec.decode_json(
                file.read_bytes(), Release, where=f"release {label}", lenient=True
            )
        except InvalidInputError as error:
            raise UntrustedError(f"{error}; it was signed by a newer version") from None
        if release.label != label:
            raise UntrustedError(f"release {label} says it is {release.label}")
        return release, Digest(f"sha256:{sha256}")
