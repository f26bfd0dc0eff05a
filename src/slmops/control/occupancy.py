"""One control plane per workspace, and where it answers.

While one serves it holds a lock, which the kernel drops however it ends, and its address
lies in a file beside it: the commands of its workspace send their token there and not to
whatever happens to listen on a port.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from slmops.domain.errors import ConflictError, InvalidInputError
from slmops.registry.blobs import write_atomically
from slmops.wire import codec

LOCK = "serve.lock"
ADDRESS = "address.json"
_ATTEMPTS = 5
_PAUSE_S = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Address:
    """Where a workspace's control plane answers."""

    url: str
    """``http://127.0.0.1:8800``."""


@contextmanager
def only_plane(folder: Path) -> Iterator[None]:
    """Hold a workspace's control folder: two engines would move the same rollouts.

    Raises:
        ConflictError: another control plane serves it.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not _locked(descriptor):
            url = running_at(folder)
            raise ConflictError(
                f"another control plane serves {folder.parent}"
                + (f" at {url}" if url else "")
                + ": stop that one first, or name another --workspace"
            )
        # What a killed one left would be believed now that the lock is held again.
        (folder / ADDRESS).unlink(missing_ok=True)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def announced(folder: Path, url: str) -> Iterator[None]:
    """Keep the address beside the lock, for its owner only."""
    path = folder / ADDRESS
    content = codec.encode_json(Address(url=url))
    write_atomically(path, content, mode=0o600, replace=True)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def running_at(folder: Path) -> str | None:
    """Return where the control plane of a folder answers; None when none runs.

    The address that a killed one left is not believed: by now anything may listen there.
    """
    try:
        descriptor = os.open(folder / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read(folder / ADDRESS)
    else:
        return None
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    """Take the lock; whoever only looks holds it for a moment, too."""
    for attempt in range(_ATTEMPTS):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if attempt + 1 < _ATTEMPTS:
                time.sleep(_PAUSE_S)
        else:
            return True
    return False


def _read(path: Path) -> str | None:
    try:
        return codec.decode_json(path.read_bytes(), Address, where=str(path)).url
    except (OSError, InvalidInputError):
        return None
