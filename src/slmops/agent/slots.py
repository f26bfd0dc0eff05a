"""A/B slots: artefacts under their digest, and one pointer file that names two of them.

The pointer is replaced atomically (write, fsync, rename, fsync of the folder): at every
moment it names a whole active deployment. It holds all that is needed to serve, so a
device starts without its journal and without a network.

Every start of a model hashes the artefact anew. Hashing costs a few per cent of loading
(bench/agent_footprint.py has figures), while remembering a verdict by modification
time, size and inode would hide exactly what is looked for: bits that rot on a flash
card change none of the three.
"""

import contextlib
from collections.abc import Iterable
from pathlib import Path

from slmops.agent.records import Deployment, Slots
from slmops.domain.errors import InvalidInputError, NotFoundError, UntrustedError
from slmops.domain.ids import Digest
from slmops.registry import durable
from slmops.registry.blobs import BlobStore, bytes_digest, write_atomically
from slmops.wire import codec

POINTER, TRUST = "active", "trust"


class SlotStore:
    """Slots of one device."""

    def __init__(self, folder: Path) -> None:
        self.blobs = BlobStore(folder)
        self._folder = folder
        self._pointer = folder / POINTER

    def read(self) -> Slots:
        """Return what the pointer names; empty when there is none yet.

        Raises:
            InvalidInputError: the pointer file is damaged.
        """
        try:
            raw = self._pointer.read_bytes()
        except FileNotFoundError:
            return Slots()
        except OSError as error:
            raise InvalidInputError(f"{self._pointer}: {error.strerror}") from None
        document, _, checksum = raw.partition(b"\n")
        # Without this, a bit that flips inside a number or a digest still reads well.
        # Pointers of older agents have none.
        if checksum and checksum.decode(errors="replace") != bytes_digest(document):
            raise InvalidInputError(f"{self._pointer}: its checksum does not match")
        return codec.decode_json(
            document, Slots, where=str(self._pointer), lenient=True
        )

    def write(self, slots: Slots) -> None:
        """Replace the pointer; on disk when this returns."""
        document = codec.encode_json(slots)
        content = document + b"\n" + bytes_digest(document).encode()
        write_atomically(self._pointer, content, mode=0o600)

    def activate(self, target: Deployment) -> Slots:
        """Make `target` active and keep what was; harmless to repeat."""
        slots = self.read()
        if slots.active == target:
            return slots
        after = Slots(active=target, previous=slots.active)
        self.write(after)
        return after

    def roll_back(self, target: Deployment) -> Slots:
        """Take `target` out again: previous becomes active; harmless to repeat."""
        slots = self.read()
        if slots.active != target:
            return slots
        after = Slots(active=slots.previous, previous=None)
        self.write(after)
        return after

    def verified(self, deployment: Deployment) -> Path:
        """Hash the artefacts and return the path of the variant's own.

        Raises:
            NotFoundError: one is not here.
            UntrustedError: its bytes are not what was signed; they are removed, so that
                they are fetched anew and never served.
        """
        paths = [self._verified(digest) for digest, _ in deployment.artefacts]
        return paths[0]

    def heal(self) -> tuple[Slots, str | None]:
        """Make the pointer name a deployment whose bytes are whole, if there is one.

        Returns:
            The slots, and what had to be mended as text, or None.
        """
        slots = self.read()
        if slots.active is None:
            return slots, None
        try:
            self.verified(slots.active)
        except (NotFoundError, UntrustedError) as error:
            after = Slots(active=self._usable(slots.previous))
            self.write(after)
            served = f"serving {after.active.release}" if after.active else "no model"
            return after, f"{slots.active.release}: {error}; {served}"
        return slots, None

    def collect_garbage(self, staged: Iterable[Digest] = ()) -> int:
        """Remove artefacts that no slot and no running installation needs; count them."""
        slots = self.read()
        keep = set(staged)
        for deployment in (slots.active, slots.previous):
            if deployment is not None:
                keep |= {digest for digest, _ in deployment.artefacts}
        superfluous = [digest for digest in self.blobs.digests() if digest not in keep]
        for digest in superfluous:
            self.blobs.remove(digest)
        return len(superfluous)

    def remove_leftovers(self) -> None:
        """Remove files that an earlier agent was killed in the middle of.

        For its start only: nobody else writes here. A killed TUF client, too, leaves a
        temporary file. A disk that refuses keeps them till the next start.
        """
        trust = self._folder / TRUST
        with contextlib.suppress(OSError):
            for folder in (self._folder, self.blobs.folder, trust):
                durable.remove_abandoned(folder)
            for path in trust.glob("tmp????????"):
                durable.remove(path)

    def _verified(self, digest: Digest) -> Path:
        try:
            return self.blobs.verify(digest)
        except UntrustedError:
            # On a read-only file system they stay, refused at every start.
            with contextlib.suppress(OSError):
                self.blobs.remove(digest)
            raise

    def _usable(self, deployment: Deployment | None) -> Deployment | None:
        if deployment is None:
            return None
        try:
            self.verified(deployment)
        except (NotFoundError, UntrustedError):
            return None
        return deployment
