"""What to say when an optional package is not installed: which extra brings it.

A device installs the base alone; everything else comes with an extra of
``pyproject.toml``, and a command that needs one says which. The extra is named as it is
installed from the source folder: this project is on no package index, where somebody
else could take its name.
"""

from collections.abc import Mapping

from slmops.domain.errors import InvalidInputError

EXTRAS: Mapping[str, tuple[str, ...]] = {
    "control": ("alembic", "sqlalchemy"),
    "workshop": (
        *("altair", "cyclonedx", "gguf", "huggingface_hub", "jsonschema"),
        *("libgguf", "ml_dtypes", "numpy", "optuna", "rouge_score"),
        *("safetensors", "scipy", "vl_convert"),
    ),
    "llamacpp": ("xllamacpp",),
    "train": ("peft", "torch", "transformers"),
    "ray": ("ray",),
    "mlflow": ("mlflow",),
    "demo": ("openai",),
}
"""Extra → the packages it brings, as they are imported."""


def extra_needed(error: ModuleNotFoundError) -> InvalidInputError | None:
    """Return what to tell the user, or None when the module is none of an extra's.

    Trying again changes nothing, so it is not `UnavailableError`.

    >>> str(extra_needed(ModuleNotFoundError(name="sqlalchemy.orm")))
    "this needs the package sqlalchemy: in slmops' source folder, pip install '.[control]'"
    """
    package = (error.name or "").partition(".")[0]
    for extra, packages in EXTRAS.items():
        if package in packages:
            return InvalidInputError(
                f"this needs the package {package}:"
                f" in slmops' source folder, pip install '.[{extra}]'"
            )
    return None
