"""Echo's artefact: a small JSON file that says how the 'model' behaves."""

import json
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NoReturn

from slmops.domain.errors import InvalidInputError

MAX_ARTEFACT_BYTES = 1 << 20
VERSION = 1
"""Of the format."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EchoModel:
    """The whole artefact: how this 'model' behaves."""

    echo: int
    """Format version: 1."""
    logprob: float = -0.1
    """log p of every token it generates, nats."""
    answer: str | None = None
    """What it always answers; None to repeat the prompt."""
    delay_ms: float = 0.0
    """Time per generated token."""
    start_delay_ms: float = 0.0
    """Time before it is ready."""
    refuse: bool = False
    """Whether loading fails like a malformed file."""
    crash_at_start: bool = False
    """Whether loading aborts the process."""
    crash_on: str | None = None
    """Abort the process when a prompt holds this text."""
    hold_mib: int = 0
    """Private memory to take while loading."""

    def __post_init__(self) -> None:
        if self.echo != VERSION:
            raise InvalidInputError(f"echo must be {VERSION}, got {self.echo!r}")
        if not self.logprob <= 0:
            raise InvalidInputError(f"logprob must be <= 0, got {self.logprob}")


def load_echo(artefact: Path) -> EchoModel:
    """Read and check an echo artefact.

    Raises:
        InvalidInputError: it is not one, or asks to be refused.
    """
    try:
        with artefact.open("rb") as file:
            raw = file.read(MAX_ARTEFACT_BYTES + 1)
        tree = json.loads(raw)
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidInputError(
            f"{artefact.name}: not an echo artefact: {type(error).__name__}"
        ) from None
    model = _checked(tree, artefact.name)
    if model.refuse:
        raise InvalidInputError(f"{artefact.name}: refused, as it asks for")
    return model


def _checked(tree: object, where: str) -> EchoModel:
    if not isinstance(tree, dict):
        raise InvalidInputError(
            f"{where}: must be an object, got {type(tree).__name__}"
        )
    known = {field.name: field.type for field in fields(EchoModel)}
    for name, value in tree.items():
        if name not in known:
            raise InvalidInputError(f"{where}: {name}: unknown key")
        kinds = _KINDS[str(known[name])]
        is_flag = isinstance(value, bool) and bool not in kinds
        if is_flag or not isinstance(value, kinds):
            raise InvalidInputError(
                f"{where}: {name} must be {known[name]}, got {type(value).__name__}"
            )
    if "echo" not in tree:
        raise InvalidInputError(f"{where}: echo is missing")
    return EchoModel(**tree)


_KINDS: dict[str, tuple[type, ...]] = {
    "<class 'int'>": (int,),
    "<class 'float'>": (int, float),
    "<class 'bool'>": (bool,),
    "str | None": (str, type(None)),
}


def abort() -> NoReturn:
    """End the process like a failed assertion in an engine."""
    os.abort()
