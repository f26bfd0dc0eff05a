"""Tie a process to the one that starts it: killed when that ends, however that ends.

A test run that is killed itself (a time limit, a lost terminal) never gets to its
fixtures' clean-up. Linux does it for us: ``prctl(2)``, ``PR_SET_PDEATHSIG``. It counts
the *thread* that starts the process, so start from one that lasts. On other systems the
command runs untied.

Also a script of the standard library alone: ties itself, then becomes the command.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1


def tethered(command: Sequence[str]) -> list[str]:
    """Return the command that runs `command` tied to this process.

    Args:
        command: program (a path) and arguments.
    """
    # -I -S: nothing but the standard library is wanted, so it costs 20 ms.
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *command]


def main() -> None:
    """Tie this process to its parent, then become the command."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            sys.exit("the parent ended before this process was tied to it")
    os.execv(command[0], command)  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    main()
