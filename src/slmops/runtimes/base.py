"""What an inference runtime is: one Protocol, a name table, and settings.

A runtime is used in two ways, both outside the caller's process because malformed
models abort processes: `serve` runs in a worker child and answers llama-server's
dialect of the OpenAI HTTP API on loopback; `open_scorer` gives full next-token logits
to the workshop's evaluation child.

Third parties add a runtime with the entry-point group ``slmops.runtimes``.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from slmops.domain.errors import InvalidInputError, NotFoundError, UnavailableError
from slmops.domain.runtime_settings import (
    DRAFT_TOKENS,
    check_draft_tokens,
    check_kv_cache,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerSettings:
    """How a worker child loads and serves one artefact."""

    threads: int = 1
    """Threads for prefill and decode."""
    context_tokens: int = 1024
    """Context length of one request."""
    parallel: int = 1
    """Requests served at the same time, each with its own context."""
    memory_limit_mib: float | None = None
    """Hard limit on the child's private memory; None for none."""
    chat_template: str | None = None
    """Jinja template pinned by the signed release; None for the artefact's own."""
    start_timeout_s: float = 60.0
    """Longest time from process start to ready."""
    api_key: str | None = field(default=None, repr=False)
    """Requests for completions without this bearer token get 401; `start_worker` makes
    it. None asks for nothing."""
    kv_cache: str = "f16"
    """Type of the attention's cache: see `slmops.domain.runtime_settings`."""
    draft: str | None = None
    """Path of a smaller model that drafts tokens; None for none."""
    draft_tokens: int = DRAFT_TOKENS
    """Most tokens drafted at once."""

    def __post_init__(self) -> None:
        check_kv_cache(self.kv_cache)
        check_draft_tokens(self.draft_tokens)
        for name in ("threads", "context_tokens", "parallel", "start_timeout_s"):
            if not getattr(self, name) > 0:
                raise InvalidInputError(
                    f"worker.{name} must be > 0, got {getattr(self, name):g}"
                )


class Scorer(Protocol):
    """Full next-token logits of one loaded artefact."""

    vocabulary: int
    """Number of columns of `logits`."""

    def tokenize(self, text: str) -> list[int]:
        """Return token ids of plain text: no special tokens added or parsed."""
        ...

    def piece(self, token: int) -> bytes:
        """Return what a token writes, special ones too; may be a part of a character.

        The pieces of a tokenized text, joined, are the text in UTF-8.
        """
        ...

    def logits(self, tokens: Sequence[int]) -> "npt.NDArray[np.float32]":
        """Score one window from empty context.

        Args:
            tokens: 1 to context length many.

        Returns:
            (len(tokens), vocabulary) float32: row i scores what follows tokens[: i + 1].
        """
        ...

    def close(self) -> None:
        """Free the model."""
        ...


class Runtime(Protocol):
    """One inference engine."""

    name: str
    """As blueprints name it."""
    formats: tuple[str, ...]
    """Artefact formats it loads: ``gguf``."""

    def version(self) -> str:
        """Return the engine's version.

        Raises:
            UnavailableError: it is not installed; the message names the extra.
        """
        ...

    def serve(self, artefact: Path, settings: WorkerSettings) -> None:
        """Serve until SIGTERM; runs as the worker child's main work.

        Calls `slmops.runtimes.worker.announce_ready` once requests are answered. A
        completion without `settings.api_key` must get 401 and never reach the model.
        """
        ...

    def open_scorer(self, artefact: Path, settings: WorkerSettings) -> Scorer:
        """Load for scoring in this process."""
        ...


_BUILT_IN = {
    "llamacpp": "slmops.runtimes.llamacpp:LlamaCppRuntime",
    "echo": "slmops.runtimes.echo:EchoRuntime",
}


_FOR_TESTS = frozenset({"echo"})
"""Always installed; a device that offered them would take a release without a model."""


def runtime_names() -> tuple[str, ...]:
    """Return the names of all known runtimes, installed or not."""
    found = {point.name for point in metadata.entry_points(group="slmops.runtimes")}
    return tuple(sorted(found | set(_BUILT_IN)))


def load_runtime(name: str) -> Runtime:
    """Return the runtime called `name`; its engine is imported only when used.

    Raises:
        NotFoundError: no such runtime.
    """
    target = _BUILT_IN.get(name)
    if target is not None:
        module, _, attribute = target.partition(":")
        return cast("Runtime", getattr(importlib.import_module(module), attribute)())
    for point in metadata.entry_points(group="slmops.runtimes"):
        if point.name == name:
            return cast("Runtime", point.load()())
    raise NotFoundError(
        f"runtime {name!r} is unknown; known are {', '.join(runtime_names())}"
    )


def installed_runtimes(*, test_runtimes: bool = False) -> tuple[str, ...]:
    """Return the names of the runtimes whose engine is installed here.

    Args:
        test_runtimes: whether those count that answer without a model, too.
    """
    names = []
    for name in runtime_names():
        if name in _FOR_TESTS and not test_runtimes:
            continue
        try:
            load_runtime(name).version()
        except UnavailableError:
            continue
        names.append(name)
    return tuple(names)
