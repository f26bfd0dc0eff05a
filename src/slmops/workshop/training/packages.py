"""What training needs beyond the workshop's own packages, and the error that says so."""

import importlib.util

from slmops.domain.errors import InvalidInputError

_NEEDED = ("torch", "transformers", "peft")


def require_training_packages(needed: tuple[str, ...] = _NEEDED) -> None:
    """Refuse to begin when a package is missing, before anything is read or written.

    Raises:
        InvalidInputError: naming the packages and the extra that brings them.

    >>> require_training_packages(("no_such_package",))
    Traceback (most recent call last):
    slmops.domain.errors.InvalidInputError: training needs no_such_package: in slmops' source folder, pip install '.[train]'
    """
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise InvalidInputError(
            f"training needs {', '.join(missing)}:"
            " in slmops' source folder, pip install '.[train]'"
        )
