"""``python -m slmops.deltas OLD DELTA OUT DIGEST``: apply, in a process of its own.

So a parser's memory, and what it might do on hostile input, stay out of the agent. Exit
statuses are those of `slmops.domain.errors`; the reason goes to standard error.
"""

import sys
from pathlib import Path

from slmops.deltas.apply import apply_delta
from slmops.domain.errors import SlmopsError
from slmops.domain.ids import parse_digest

_ARGUMENTS = 4
_DISK_REFUSED = 74
"""EX_IOERR of sysexits.h."""


def main(arguments: list[str]) -> int:
    """Apply and return the exit status."""
    if len(arguments) != _ARGUMENTS:
        sys.stderr.write(f"{(__doc__ or '').splitlines()[0]}\n")
        return 2
    old, delta, out = (Path(argument) for argument in arguments[:3])
    try:
        apply_delta(old, delta, out, expected=parse_digest(arguments[3]))
    except SlmopsError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    except (OSError, MemoryError) as error:
        sys.stderr.write(f"{error}\n")
        return _DISK_REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
