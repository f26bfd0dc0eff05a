"""Disk space: what is free, what a full disk is called, and what a build will write.

A full disk shows up as many errors: ``OSError`` with ENOSPC, EDQUOT or EFBIG (a limit on
file sizes), or as text in an error of a library's own. All become one `UnavailableError`
that says which file, how much is free, and what frees more; what was finished stays, so
the same command goes on once there is room.
"""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from slmops.domain.errors import SlmopsError, UnavailableError

MIB = 1 << 20
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_WORDS = ("no space left on device", "disk quota exceeded", "file too large")


def free_bytes(folder: Path) -> int:
    """Return how many bytes an ordinary user may still write below a folder.

    Args:
        folder: need not exist yet.
    """
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def same_disk(one: Path, other: Path) -> bool:
    """Tell whether two folders, existing or not, are on one file system."""
    found = []
    for folder in (one, other):
        here = folder.absolute()
        while not here.exists() and here != here.parent:
            here = here.parent
        found.append(here.stat().st_dev)
    return found[0] == found[1]


def full_disk(error: BaseException, folder: Path) -> UnavailableError | None:
    """Return what to say when an error means that a disk is full; None when it does not.

    Args:
        error: of any library.
        folder: where was written, when the error does not say.
    """
    if isinstance(error, SlmopsError) or not _says_full(error):
        return None
    named = error.filename if isinstance(error, OSError) else None
    where = Path(os.fsdecode(named)) if isinstance(named, str | bytes) else folder
    limit = isinstance(error, OSError) and error.errno == errno.EFBIG
    what = "file too large" if limit else "no space left"
    return UnavailableError(
        f"{where}: {what}, {free_bytes(where) / MIB:.0f} MiB free there; nothing is"
        " half-done: make room (slmops workspace gc shows what can go) and run it again"
    )


@contextmanager
def said_when_full(folder: Path) -> Iterator[None]:
    """Turn the errors of a full disk into one sentence, for a block.

    Raises:
        UnavailableError: the disk is full.
    """
    try:
        yield
    except Exception as error:
        said = full_disk(error, folder)
        if said is None:
            raise
        raise said from None


def _says_full(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _FULL
    # Native writers (safetensors, torch, numpy) give words instead of a number.
    words = str(error).lower()
    return any(each in words for each in _WORDS)
