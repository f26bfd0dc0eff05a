"""One build at a time in a workspace: two would disturb each other's speed figures.

The kernel holds the lock for an open file, so it ends with its process, however that
ends. A second build waits, and then finds the first one's steps done.
"""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager

from slmops.registry.workspace import Workspace
from slmops.workshop.progress import Progress

_FILE = ".lock"
_WAIT_S = 0.2


@contextmanager
def build_lock(workspace: Workspace, progress: Progress) -> Iterator[None]:
    """Hold the workspace's build lock for a block; wait for another build first."""
    workspace.steps.mkdir(parents=True, exist_ok=True)
    with (workspace.steps / _FILE).open("ab") as file:
        while not _taken(file.fileno()):
            progress("another build runs in this workspace: waiting", 0, 0)
            time.sleep(_WAIT_S)
        yield


def _taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
