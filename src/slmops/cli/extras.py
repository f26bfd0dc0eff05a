"""What to say when an optional package is not installed: which extra brings it.

A device installs the base alone; everything else comes with an extra of
``pyproject.toml``, and a command that needs one says which.
"""

from collections.abc import Mapping

from slmops.domain.errors import UnavailableError

EXTRAS: Mapping[str, tuple[str, ...]] = {
    "control": ("alembic", "sqlalchemy"),
    "workshop": (
        *("altair", "gguf", "huggingface_hub", "libgguf", "ml_dtypes", "numpy"),
        *("safetensors", "vl_convert"),
    ),
    "llamacpp": ("xllamacpp",),
}
"""Extra → the packages it brings, as they are imported."""


def extra_needed(error: ModuleNotFoundError) -> UnavailableError | None:
    """Return what to tell the user, or None when the module is none of an extra's.

    >>> str(extra_needed(ModuleNotFoundError(name="sqlalchemy.orm")))
    "this needs the package sqlalchemy: pip install 'slmops[control]'"
    """
    package = (error.name or "").partition(".")[0]
    for extra, packages in EXTRAS.items():
        if package in packages:
            return UnavailableError(
                f"this needs the package {package}: pip install 'slmops[{extra}]'"
            )
    return None
