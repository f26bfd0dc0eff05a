"""Scratch folders that nobody inherits: held while they are used, removed when they are not.

A process that is killed cannot tidy up. So each folder is locked by its owner for as long
as it lives, and whoever makes the next one removes those that nobody holds any more.
"""

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from slmops.domain.errors import UnavailableError


@contextmanager
def own_folder(parent: Path, *, prefix: str = "") -> Iterator[Path]:
    """Have an empty folder for a block, and remove those whose owners were killed.

    Args:
        parent: exists; one owner at a time makes and removes folders in it.
        prefix: of the folder's name; only such are removed.
    """
    with contextlib.ExitStack() as stack:
        with held(parent):
            remove_abandoned(parent, prefix=prefix)
            made = tempfile.TemporaryDirectory(
                # Daemons that are still ending may write into it.
                dir=parent,
                prefix=prefix,
                ignore_cleanup_errors=True,
            )
            own = Path(stack.enter_context(made))
            stack.enter_context(held(own))
        yield own


def user_scratch() -> Path:
    """Return a folder of this user's for scratch outside a workspace; made if missing.

    The system's folder for temporary files is everybody's: nobody else may make or lock
    folders in this one.

    Raises:
        UnavailableError: somebody else has made something of that name.
    """
    folder = Path(tempfile.gettempdir()) / f"slmops-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise UnavailableError(
            f"{folder}: must be a folder of this user's, somebody else made it; set TMPDIR"
        )
    return folder


def remove_abandoned(parent: Path, *, prefix: str) -> None:
    """Remove folders below `parent` that nobody holds; others' are left alone."""
    for left in parent.glob(f"{prefix}*"):
        with contextlib.suppress(OSError), held(left, wait=False):
            shutil.rmtree(left, ignore_errors=True)


@contextmanager
def held(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold a folder for a block: the lock ends with the process, however that ends.

    Raises:
        BlockingIOError: another process holds it.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)
