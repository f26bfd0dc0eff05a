"""Files that a person names: opened without trust, read in bounded memory.

A path may lead to a folder, a pipe that nobody writes to, a device that never ends, or
to a file that is gone by the time it is opened. Each ends at once, with one sentence.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from slmops.domain.errors import InvalidInputError, NotFoundError

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def open_input(path: Path, *, where: str = "") -> BinaryIO:
    """Open a regular file for reading bytes; never waits.

    Args:
        path: of the file.
        where: what names it, for messages: a key of a blueprint. Empty for nothing.

    Raises:
        NotFoundError: no such file.
        InvalidInputError: a folder, pipe or device, or it may not be read.
    """
    named = f"{where}: {path}" if where else str(path)
    try:
        # Opening a pipe waits for its other end, unless told not to.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFoundError(f"{named} does not exist") from None
    except OSError as error:
        raise InvalidInputError(f"{named}: cannot be read: {error.strerror}") from None
    except ValueError:
        raise InvalidInputError(f"{named!r}: a path must hold no null") from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        found = next((kind for is_kind, kind in _KINDS if is_kind(mode)), "none")
        raise InvalidInputError(f"{named}: must be a file, is {found}")
    return os.fdopen(descriptor, "rb")


def check_input(path: Path, *, where: str = "") -> Path:
    """Return the path of a file that can be read now; arguments as `open_input`.

    Raises:
        NotFoundError: no such file.
        InvalidInputError: as `open_input`.
    """
    open_input(path, where=where).close()
    return path


def read_input(path: Path, *, max_bytes: int, where: str = "") -> bytes:
    """Return a whole file's bytes; no more than `max_bytes` are ever read.

    Raises:
        NotFoundError: no such file.
        InvalidInputError: as `open_input`, or too large.
    """
    with open_input(path, where=where) as file:
        # What a file says of its size may be wrong by the time it is read.
        raw = file.read(max_bytes + 1)
    if len(raw) > max_bytes:
        named = f"{where}: {path}" if where else str(path)
        raise InvalidInputError(
            f"{named} must have at most {max_bytes} bytes, has more"
        )
    return raw


def bounded_lines(
    file: BinaryIO, *, max_line_bytes: int, where: str
) -> Iterator[tuple[int, bytes]]:
    """Yield a file's lines with their numbers from 1, line breaks included.

    Args:
        file: open for reading bytes; at most one line of it is in memory.
        max_line_bytes: longest line, without its line break.
        where: name of the file.

    Raises:
        InvalidInputError: a longer line; names it, and reads no further.
    """
    number = 0
    # Two bytes of room for the line break; what is longer is never read on.
    while line := file.readline(max_line_bytes + 3):
        number += 1
        if len(line.rstrip(b"\r\n")) > max_line_bytes:
            raise InvalidInputError(
                f"{where}:{number}: a line must have at most {max_line_bytes} bytes,"
                " this has more"
            )
        yield number, line
