"""Durable files: every step that must survive a power cut, in one place.

Writing, flushing, renaming and removing are a disk's only promises: a file's bytes are
safe after `flush` or `sync_file`, its name after `sync_folder`. Blobs, slot pointers
and downloads are made of these steps and nothing else, so that tests can record them,
refuse each, or cut the power around each (`slmops.testing.power_cut`). SQLite keeps
its own files by the same rules. Callers use the module's name (``durable.move``).
"""

import ctypes
import errno
import fcntl
import os
import tempfile
from pathlib import Path
from typing import BinaryIO

_KEEP_SIZE = 1
PARTIAL = ".partial-"
"""How files that are not whole yet are called."""


def write(sink: BinaryIO, content: bytes) -> int:
    """Append bytes; not safe before `flush`."""
    return sink.write(content)


def flush(sink: BinaryIO) -> None:
    """Make the bytes of an open file survive a power cut; its name is another matter."""
    sink.flush()
    os.fsync(sink.fileno())


def sync_file(path: Path) -> None:
    """Make bytes survive that a killed process had only handed to the system."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make what was created, renamed or removed inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path, *, mode: int = 0o777) -> None:
    """Make a folder and those above it; their names survive a power cut.

    The folder's own `mode`; those above get the default.
    """
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(mode=mode, exist_ok=True)
    sync_folder(folder.parent)


def reserve(sink: BinaryIO, length: int) -> None:
    """Take room for `length` bytes on the disk; the file's size stays as it is.

    ``fallocate(2)`` with FALLOC_FL_KEEP_SIZE, which ``posix_fallocate`` lacks: the size
    tells how much has arrived. A file system that cannot is left to say when it is full.

    Raises:
        OSError: there is not enough room.
    """
    try:
        allocate = ctypes.CDLL(None, use_errno=True).fallocate
    except (OSError, AttributeError):
        return  # not Linux
    allocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    if allocate(sink.fileno(), _KEEP_SIZE, 0, length) == 0:
        return
    code = ctypes.get_errno()
    if code in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        raise OSError(code, os.strerror(code))


def move(source: Path, target: Path) -> None:
    """Rename over `target`, atomically; safe after `sync_folder`."""
    source.replace(target)


def remove(path: Path) -> None:
    """Remove a name, if it is there."""
    path.unlink(missing_ok=True)


def open_partial(folder: Path) -> tuple[int, Path]:
    """Open a new file that its writer holds locked, so that it can be told abandoned."""
    while True:
        descriptor, name = tempfile.mkstemp(prefix=PARTIAL, dir=folder)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return descriptor, Path(name)
        os.close(descriptor)  # removed as abandoned before it was locked


def remove_abandoned(folder: Path) -> int:
    """Remove what killed writers left in `folder`, and count it; running ones are left."""
    if not folder.is_dir():
        return 0
    return sum(_remove_unlocked(path) for path in folder.glob(f"{PARTIAL}*"))


def _remove_unlocked(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove(path)
    except (BlockingIOError, FileNotFoundError):
        return False
    return True


def write_atomically(
    path: Path, content: bytes, *, mode: int = 0o644, replace: bool = True
) -> None:
    """Write `content` to `path`: whole, or not at all, also on power cut.

    Raises:
        FileExistsError: `path` exists and `replace` is False; of two writers one wins.
    """
    make_folder(path.parent)
    descriptor, partial = open_partial(path.parent)
    try:
        with os.fdopen(descriptor, "wb") as sink:
            write(sink, content)
            sink.flush()
            os.fchmod(sink.fileno(), mode)
            flush(sink)
            if replace:
                move(partial, path)
            else:
                path.hardlink_to(partial)
    finally:
        remove(partial)
    sync_folder(path.parent)
