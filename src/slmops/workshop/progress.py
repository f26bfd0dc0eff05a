"""How long work says where it is."""

from collections.abc import Callable

Progress = Callable[[str, float, float], None]
"""Called with (what is being done, done so far, total); total 0 when unknown."""


def silent(what: str, done: float, total: float) -> None:
    """Report nothing."""
