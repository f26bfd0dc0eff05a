"""Blobs: immutable bytes under their SHA-256, in an OCI image layout's ``blobs`` folder.

A blob appears whole or not at all: bytes go to a temporary file in the same folder,
are flushed to the disk, and are renamed. Writing the same bytes twice, or from two
processes at once, is harmless.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from slmops.domain.errors import InvalidInputError, NotFoundError, UntrustedError
from slmops.domain.ids import Digest, digest_hex, parse_digest
from slmops.registry import durable
from slmops.registry.durable import write_atomically as write_atomically

_BLOCK = 1 << 20


def file_digest(path: Path) -> Digest:
    """Return the SHA-256 of a file's bytes.

    Raises:
        NotFoundError: no such file.
    """
    try:
        with path.open("rb") as source:
            return Digest("sha256:" + hashlib.file_digest(source, "sha256").hexdigest())
    except FileNotFoundError:
        raise NotFoundError(f"{path} does not exist") from None


def bytes_digest(content: bytes) -> Digest:
    """Return the SHA-256 of `content`.

    >>> bytes_digest(b"")[:15]
    'sha256:e3b0c442'
    """
    return Digest("sha256:" + hashlib.sha256(content).hexdigest())


@dataclass(slots=True)
class BlobWriter:
    """A blob being written; its digest is known when its `with` block has ended."""

    file: BinaryIO
    """Seekable; may be written in any order."""
    path: Path
    """Where the bytes lie until the block ends."""
    _digest: Digest | None = field(default=None)

    def write(self, content: bytes) -> int:
        """Append bytes."""
        return durable.write(self.file, content)

    @property
    def digest(self) -> Digest:
        """Digest of all bytes; only after the block ended without an error."""
        if self._digest is None:
            raise InvalidInputError("blob: the digest is known after the block ends")
        return self._digest


@dataclass(frozen=True, slots=True)
class BlobStore:
    """Blobs below ``root/blobs/sha256``."""

    root: Path
    """Folder that holds ``blobs``."""

    @property
    def folder(self) -> Path:
        """Folder of the blob files."""
        return self.root / "blobs" / "sha256"

    def path(self, digest: Digest) -> Path:
        """Return the file of a blob.

        Raises:
            NotFoundError: it is not here.
        """
        path = self._place(digest)
        if not path.is_file():
            raise NotFoundError(f"blob {digest} is not in {self.folder}")
        return path

    def has(self, digest: Digest) -> bool:
        """Tell whether the blob is here; its bytes are not checked."""
        return self._place(digest).is_file()

    def open(self, digest: Digest) -> BinaryIO:
        """Open a blob for reading.

        Raises:
            NotFoundError: it is not here.
        """
        return self.path(digest).open("rb")

    def read_bytes(self, digest: Digest) -> bytes:
        """Return a small blob's bytes, checked against its digest.

        Raises:
            NotFoundError: it is not here.
            UntrustedError: the bytes on disk are not what the digest promises.
        """
        content = self.path(digest).read_bytes()
        if bytes_digest(content) != digest:
            raise UntrustedError(f"blob {digest} is damaged: its bytes do not match")
        return content

    def verify(self, digest: Digest) -> Path:
        """Hash the blob again and return its path.

        Raises:
            NotFoundError: it is not here.
            UntrustedError: the bytes on disk are not what the digest promises.
        """
        path = self.path(digest)
        found = file_digest(path)
        if found != digest:
            raise UntrustedError(f"blob {digest} is damaged: its bytes are {found}")
        return path

    def put_bytes(self, content: bytes) -> Digest:
        """Store bytes and return their digest."""
        digest = bytes_digest(content)
        if not self.has(digest):
            write_atomically(self._place(digest), content)
        return digest

    def put_file(self, source: Path) -> Digest:
        """Store a file's bytes; hard-linked where possible, so `source` must not change.

        Raises:
            NotFoundError: no such file.
        """
        digest = file_digest(source)
        target = self._place(digest)
        if target.is_file():
            return digest
        durable.make_folder(self.folder)
        try:
            os.link(source, target)
            durable.sync_folder(self.folder)
        except FileExistsError:
            pass
        except OSError:
            self._copy(source)
        return digest

    @contextmanager
    def writer(self) -> Iterator[BlobWriter]:
        """Stream a new blob; nothing is stored when the block raises."""
        durable.make_folder(self.folder)
        descriptor, partial = durable.open_partial(self.folder)
        try:
            with os.fdopen(descriptor, "w+b") as file:
                writer = BlobWriter(file=file, path=partial)
                yield writer
                file.flush()
                os.fchmod(file.fileno(), 0o644)
                durable.flush(file)
                # Still open, so still locked: nobody takes it for abandoned.
                digest = file_digest(partial)
                durable.move(partial, self._place(digest))
            durable.sync_folder(self.folder)
            writer._digest = digest
        finally:
            durable.remove(partial)

    def digests(self) -> Iterator[Digest]:
        """List all blobs here."""
        if self.folder.is_dir():
            for path in sorted(self.folder.iterdir()):
                with contextlib.suppress(InvalidInputError):
                    yield parse_digest(f"sha256:{path.name}")

    def remove(self, digest: Digest) -> None:
        """Forget a blob; fine when it is not here."""
        durable.remove(self._place(digest))

    def remove_partials(self) -> int:
        """Remove what killed writers left behind, and count it; running ones are left."""
        return durable.remove_abandoned(self.folder)

    def _place(self, digest: Digest) -> Path:
        return self.folder / digest_hex(parse_digest(digest))

    def _copy(self, source: Path) -> None:
        with self.writer() as writer, source.open("rb") as content:
            while block := content.read(_BLOCK):
                writer.write(block)
