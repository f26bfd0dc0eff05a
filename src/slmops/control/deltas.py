"""Deltas that the registry offers, made ahead and kept by the pair of digests.

``deltas/<from>.<to>`` (hex) below the registry. An empty file means that the pair was
tried and the delta saves too little. Deltas are not signed: devices check the result.
"""

import os
import tempfile
from pathlib import Path

from slmops.deltas.make import make_delta
from slmops.domain.ids import Digest, digest_hex
from slmops.registry.blobs import BlobStore
from slmops.registry.durable import sync_folder

LARGEST_SHARE = 0.7
"""Of the new file's bytes. Above, what a delta costs a device is not worth it."""


def delta_name(old: Digest, new: Digest) -> str:
    """Return the file name of a pair's delta."""
    return f"{digest_hex(old)}.{digest_hex(new)}"


def offer_delta(registry: Path, old: Digest, new: Digest) -> int:
    """Make the delta between two published blobs, if there is none yet.

    Returns:
        Its size in bytes; 0 when it would save too little and none is offered.

    Raises:
        NotFoundError: one of the blobs is not published.
        OSError: the disk refuses.
    """
    blobs, folder = BlobStore(registry), registry / "deltas"
    place = folder / delta_name(old, new)
    if place.is_file():
        return place.stat().st_size
    before, after = blobs.path(old), blobs.path(new)
    folder.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=".partial-", dir=folder)
    partial = Path(name)
    try:
        os.fchmod(descriptor, 0o644)
        made = make_delta(before, after, partial)
        if made.delta_bytes > LARGEST_SHARE * made.new_bytes:
            os.ftruncate(descriptor, 0)
        os.fsync(descriptor)
        partial.replace(place)
    finally:
        os.close(descriptor)
        partial.unlink(missing_ok=True)
    sync_folder(folder)
    return place.stat().st_size
