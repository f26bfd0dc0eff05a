"""The disk of a site's cache: whole, checked blobs below a bound, oldest use leaves.

Blobs are written by `Downloads`, so a blob is whole or absent, a killed download goes
on where it stopped, and nothing is kept that does not match its digest. When a blob was
last used is its file's time of change: it survives restarts and needs no index.
"""

import contextlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from slmops.domain.errors import InvalidInputError, UnavailableError, UntrustedError
from slmops.domain.ids import Digest, parse_digest
from slmops.registry import durable
from slmops.registry.blobs import BlobStore

_SECTOR = 512
"""Unit of ``st_blocks``, whatever the file system's own."""


class CacheStore:
    """Blobs of a site; used by several threads."""

    def __init__(self, root: Path, *, most_bytes: int) -> None:
        if most_bytes < 1:
            raise InvalidInputError(f"cache: bound must be >= 1 byte, got {most_bytes}")
        self.blobs = BlobStore(root)
        self.incoming = root / "incoming"
        self._most_bytes = most_bytes
        self._sound: set[Digest] = set()
        self._coming: dict[Digest, int] = {}
        self._lock = threading.Lock()
        durable.make_folder(self.blobs.folder)
        durable.make_folder(self.incoming, mode=0o700)
        self.blobs.remove_partials()

    def used(self, digest: Digest) -> Path | None:
        """Return a blob's file and note its use; None when it is not here, whole and sound.

        Hashes it on the first use after a start: disks rot.
        """
        if digest not in self._sound and not self._found_sound(digest):
            return None
        path = self.blobs.folder / digest.removeprefix("sha256:")
        try:
            os.utime(path)
        except FileNotFoundError:
            self._sound.discard(digest)
            return None
        return path

    @contextmanager
    def room_for(self, digest: Digest, length: int) -> Iterator[None]:
        """Hold `length` bytes below the bound while the block brings the blob.

        Raises:
            UnavailableError: it is larger than what may leave for it.
        """
        with self._lock:
            self._make_room(digest, length)
            self._coming[digest] = length
        try:
            yield
        finally:
            with self._lock:
                self._coming.pop(digest, None)

    def came_sound(self, digest: Digest) -> None:
        """Remember that a blob was hashed when it came."""
        self._sound.add(digest)

    def bytes_used(self) -> int:
        """Return the bytes that blobs and halves of blobs take on the disk."""
        return sum(size for _, size, _ in self._files())

    def count(self) -> int:
        """Return how many blobs are here."""
        return sum(1 for _ in self.blobs.digests())

    def _found_sound(self, digest: Digest) -> bool:
        if not self.blobs.has(digest):
            return False
        try:
            self.blobs.verify(digest)
        except UntrustedError:
            self.blobs.remove(digest)
            return False
        self._sound.add(digest)
        return True

    def _make_room(self, digest: Digest, length: int) -> None:
        own = self.incoming / digest.removeprefix("sha256:")
        coming = {each.removeprefix("sha256:") for each in self._coming}
        # What is on its way counts with all it will take, not with what has arrived.
        idle = [
            (changed, size, path)
            for changed, size, path in self._files()
            if path != own
            and not (path.parent == self.incoming and path.name in coming)
        ]
        free = self._most_bytes - sum(self._coming.values()) - length
        if free < 0:
            raise UnavailableError(
                f"cache: {length} bytes have no room below {self._most_bytes}"
            )
        taken = sum(size for _, size, _ in idle)
        for _, size, path in sorted(idle):
            if taken <= free:
                return
            durable.remove(path)
            self._forget(path)
            taken -= size

    def _forget(self, path: Path) -> None:
        with contextlib.suppress(InvalidInputError):
            self._sound.discard(parse_digest(f"sha256:{path.name}"))

    def _files(self) -> list[tuple[int, int, Path]]:
        """List when changed (ns), bytes and path; a reserved half counts as a whole."""
        found = []
        for folder in (self.blobs.folder, self.incoming):
            for path in folder.iterdir():
                with contextlib.suppress(FileNotFoundError):
                    stat = path.stat()
                    size = max(stat.st_size, stat.st_blocks * _SECTOR)
                    found.append((stat.st_mtime_ns, size, path))
        return found
