"""The catalog of published releases: one folder, readable by OCI tools and TUF clients.

Layout below the root::

    oci-layout, index.json, blobs/sha256/   OCI image layout, artefacts included
    targets/releases/<sha256>.<label>.json  signed release documents
    metadata/                               TUF metadata, consistent snapshots

A release is published when ``timestamp.json`` names it, and that file is written last:
whatever a killed run leaves behind is unreferenced, and publishing again completes it.
Releases never change: same label, same bytes.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tuf.api.metadata import (  # type: ignore[attr-defined]
    Metadata,
    Root,
    Targets,
)

from slmops.domain.errors import (
    ConflictError,
    InvalidInputError,
    NotFoundError,
    UntrustedError,
)
from slmops.domain.ids import Digest, digest_hex
from slmops.domain.release import Release
from slmops.registry import oci
from slmops.registry.admission import admit
from slmops.registry.bins import BinSettings
from slmops.registry.blobs import BlobStore, bytes_digest, write_atomically
from slmops.registry.metadata import MetadataFolder, read_part
from slmops.registry.roots import role_keys
from slmops.registry.rotation import publish_root
from slmops.registry.signed_state import SignedState
from slmops.registry.signing import OnlineKeys, ReleaseKeys, RingKeys
from slmops.registry.target_names import (
    release_blobs,
    release_targets,
    signed_digest,
    signed_labels,
)
from slmops.wire import codec


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifiedRelease:
    """What a verification looked at."""

    label: str
    """The release."""
    digest: Digest
    """Of its signed document."""
    blobs: int
    """Blobs hashed again: artefacts, attachments and OCI documents."""
    bytes: int
    """Their bytes."""


class Catalog:
    """Published releases below one folder."""

    def __init__(
        self,
        root: Path,
        *,
        pinned_root: bytes | None = None,
        bins: BinSettings | None = None,
    ) -> None:
        """Open a catalog; nothing is read or written yet.

        Args:
            root: folder of the registry.
            pinned_root: root metadata to trust. None trusts the registry's own first
                root: that finds damage, but not a registry that was replaced whole.
            bins: when targets metadata is split.
        """
        self.root, self._bins = root, bins or BinSettings()
        self.blobs = BlobStore(root)
        self._pinned_root = pinned_root

    def publish(
        self,
        release: Release,
        blobs: BlobStore,
        keys: ReleaseKeys,
        *,
        now: float | None = None,
    ) -> Digest:
        """Store, sign and commit a release; doing it again changes nothing.

        Args:
            release: its label must be new, or its document the same.
            blobs: holds every artefact and attachment; they are hard-linked where possible.
            keys: of all roles.
            now: Unix time, seconds, that expiry counts from; the release's own
                `created_at` by default.

        Returns:
            Digest of the release document.

        Raises:
            ConflictError: the label is published with another document.
            NotFoundError: an artefact is not in `blobs`.
            UntrustedError: an artefact is damaged, or the registry was signed by others.
        """
        # What readers will decode: 768 given where a float belongs becomes 768.0, so
        # that the documents derived from it have the same bytes on both sides.
        raw = codec.encode_json(release)
        release = codec.decode_json(raw, Release, where=f"release {release.label}")
        document = codec.encode_json(release)
        digest = bytes_digest(document)
        with self._lock():
            folder = self._folder(keys.root_json)
            state = folder.state()
            known = signed_digest(state, release.label)
            if known is not None and known != digest:
                raise ConflictError(
                    f"release {release.label} is published as {known}, got {digest};"
                    " releases never change: use a new version"
                )
            for wanted, size in release_blobs(release).items():
                self._link(wanted, size, blobs)
            self._store_documents(release)
            write_atomically(self._document_path(release.label, digest), document)
            self._write_index(release, state)
            if known is None:
                folder.add_targets(
                    release_targets(release, document),
                    state=state,
                    keys=keys,
                    now=release.created_at if now is None else now,
                )
        return digest

    def labels(self) -> tuple[str, ...]:
        """Return the labels of all published releases, sorted.

        Raises:
            UntrustedError: the metadata does not hold.
        """
        return signed_labels(self._state())

    def versions(self, name: str) -> tuple[int, ...]:
        """Return the published versions of a product, rising.

        Raises:
            UntrustedError: the metadata does not hold.
        """
        parts = (label.rpartition("-") for label in self.labels())
        return tuple(sorted(int(version) for own, _, version in parts if own == name))

    def load(self, label: str) -> tuple[Release, Digest]:
        """Return a release and the digest of its document; signatures are checked.

        Raises:
            NotFoundError: no such release.
            UntrustedError: metadata or document do not hold.
        """
        return self._load(label, self._state())

    def _load(self, label: str, state: SignedState | None) -> tuple[Release, Digest]:
        digest = signed_digest(state, label)
        if digest is None:
            known = ", ".join(signed_labels(state)) or "none"
            raise NotFoundError(
                f"release {label[:80]!r} is not published; known: {known}"
            )
        path = self._document_path(label, digest)
        document = read_part(path)
        if bytes_digest(document) != digest:
            raise UntrustedError(f"{path} is damaged: its bytes do not match")
        try:
            release = codec.decode_json(document, Release, where=str(path))
        except InvalidInputError as error:
            raise UntrustedError(f"{error}; it was signed by another version") from None
        if release.label != label:
            raise UntrustedError(f"release {label} says it is {release.label}")
        return release, digest

    def verify(self, label: str) -> VerifiedRelease:
        """Check signatures and hash every blob of a release again.

        Raises:
            NotFoundError: no such release.
            UntrustedError: anything differs from what was signed.
        """
        release, digest = self.load(label)
        image = oci.release_image(release)
        sizes = release_blobs(release)
        sizes |= {key: len(content) for key, content in image.documents.items()}
        for blob in sizes:
            try:
                self.blobs.verify(blob)
            except NotFoundError as error:
                raise UntrustedError(f"release {label}: {error}") from None
        self._verify_layout(image)
        return VerifiedRelease(
            label=label, digest=digest, blobs=len(sizes), bytes=sum(sizes.values())
        )

    def targets_keys(self) -> tuple[str, ...]:
        """Return the public keys that sign releases, then those that did before.

        Hex for Ed25519, PEM otherwise. What an earlier key signed stays readable.

        Raises:
            UntrustedError: the metadata does not hold.
        """
        if not (self.root / "metadata" / "1.root.json").exists():
            return ()
        holders = (
            role_keys(root, Targets.type)
            for root in reversed(self._trusted_folder().roots())
        )
        keys = (key.keyval["public"] for holder in holders for key in holder.keys)
        return tuple(dict.fromkeys(keys))

    def refresh_timestamp(self, keys: OnlineKeys, now: float) -> bool:
        """Sign snapshot and timestamp anew when half of their life is over.

        Returns:
            Whether anything was written; False also before the first release.

        Raises:
            UntrustedError: the registry was signed by others.
        """
        if not (self.root / "metadata" / "timestamp.json").exists():
            return False
        with self._lock():
            folder = self._folder(keys.root_json)
            state = folder.state()
            return state is not None and folder.refresh(state, keys=keys, now=now)

    def renew(self, keys: ReleaseKeys, now: float) -> bool:
        """Sign anew what wears out of root, targets and bins, where the keys are here.

        Returns:
            Whether anything was written; False also before the first release.

        Raises:
            UntrustedError, NotFoundError: signed by others; a key is not here.
        """
        with self._lock():
            folder = self._folder(keys.root_json)
            state = folder.state()
            return state is not None and folder.renew(state, keys=keys, now=now)

    def admit(self, keys: OnlineKeys, now: float) -> bool:
        """As `slmops.registry.admission.admit`, under the lock."""
        with self._lock():
            return admit(self._folder(keys.root_json), keys, now=now)

    def newest_root(self) -> Root:
        """Return the newest root, the pinned one before the first release.

        Raises:
            UntrustedError, NotFoundError: the chain does not hold; there is none.
        """
        return self._trusted_folder().newest_root()

    def publish_root(
        self, metadata: Metadata[Root], keys: RingKeys, now: float
    ) -> Root:
        """As `slmops.registry.rotation.publish_root`, under the lock."""
        with self._lock():
            return publish_root(self._trusted_folder(), metadata, keys, now=now)

    def _state(self) -> SignedState | None:
        pinned = self._pinned()
        return None if pinned is None else self._folder(pinned).state()

    def _pinned(self) -> bytes | None:
        if self._pinned_root is not None:
            return self._pinned_root
        first = self.root / "metadata" / "1.root.json"
        return read_part(first) if first.exists() else None

    def _trusted_folder(self) -> MetadataFolder:
        pinned = self._pinned()
        if pinned is None:
            raise NotFoundError(f"{self.root} has no root metadata")
        return self._folder(pinned)

    def _folder(self, pinned: bytes) -> MetadataFolder:
        return MetadataFolder(self.root / "metadata", pinned, self._bins)

    def _document_path(self, label: str, digest: Digest) -> Path:
        name = f"{digest_hex(digest)}.{label}.json"
        return self.root / "targets" / "releases" / name

    def _link(self, wanted: Digest, size: int, blobs: BlobStore) -> None:
        source = blobs.path(wanted)
        found_size = source.stat().st_size
        if found_size != size:
            raise UntrustedError(
                f"artefact {wanted} must have {size} bytes, got {found_size}"
            )
        found = self.blobs.put_file(source)
        if found != wanted:
            raise UntrustedError(f"artefact {wanted} is damaged: its bytes are {found}")

    def _store_documents(self, release: Release) -> None:
        for content in oci.release_image(release).documents.values():
            self.blobs.put_bytes(content)
        write_atomically(self.root / "oci-layout", oci.OCI_LAYOUT)

    def _write_index(self, release: Release, state: SignedState | None) -> None:
        releases = [self._load(label, state)[0] for label in signed_labels(state)]
        images = [oci.release_image(known) for known in [*releases, release]]
        content = oci.layout_index({image.label: image.descriptor for image in images})
        write_atomically(self.root / "index.json", content)

    def _verify_layout(self, image: oci.ReleaseImage) -> None:
        layout = read_part(self.root / "oci-layout")
        if layout != oci.OCI_LAYOUT:
            raise UntrustedError(f"{self.root / 'oci-layout'} is damaged")
        path = self.root / "index.json"
        raw = read_part(path)
        try:
            entries = {
                entry["annotations"][oci.REF_NAME]: entry
                for entry in codec.parse_json(raw, where=str(path))["manifests"]
            }
            whole = oci.layout_index(entries) == raw
        except (InvalidInputError, KeyError, TypeError):
            raise UntrustedError(f"{path} is damaged: no image index") from None
        if not whole or entries.get(image.label) != image.descriptor:
            raise UntrustedError(
                f"{path} is damaged: it does not name release {image.label} as signed"
            )

    @contextmanager
    def _lock(self) -> Iterator[None]:
        self.root.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.root / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)
