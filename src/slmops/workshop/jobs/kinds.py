"""Every kind of job: what computes it, and what its result depends on besides.

The key of a step names the code that computes it (`JobKind.code`: everything of the
workshop and the runtimes that its function imports, by bytes) and the packages it leans
on (by version): editing either makes old results unknown, and nothing is reused that
today's code would compute differently.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import cast

from slmops.domain.errors import NotFoundError
from slmops.workshop.jobs.job import JobFunction
from slmops.workshop.jobs.tools import imported_code

_HERE = "slmops.workshop"
_LLAMACPP = ("slmops.runtimes.llamacpp",)
"""Of jobs that always run the model in llama.cpp, whatever will serve it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JobKind:
    """One row of the table."""

    function: str
    """``module:function``, a `JobFunction`."""
    also: tuple[str, ...] = ()
    """Modules that it finds by name, where no import shows them."""
    packages: tuple[str, ...] = ("numpy",)
    """Distributions whose versions may."""
    in_runtime: bool = False
    """Whether it runs the model in the runtime its parameter ``runtime`` names."""
    wide: bool = False
    """Whether it may use every processor; else it keeps to one, so several run."""

    @property
    def code(self) -> tuple[str, ...]:
        """Modules of ours whose bytes decide the result: all that it imports."""
        module, _, _ = self.function.partition(":")
        return imported_code(module, *self.also)

    @property
    def is_installed(self) -> bool:
        """Whether the packages it leans on are all here."""
        try:
            return all(metadata.version(package) for package in self.packages)
        except metadata.PackageNotFoundError:
            return False

    def load(self) -> JobFunction:
        """Import and return the function."""
        module, _, name = self.function.partition(":")
        return cast("JobFunction", getattr(importlib.import_module(module), name))


KINDS: Mapping[str, JobKind] = {
    "quantize": JobKind(
        function=f"{_HERE}.quantize_job:run",
        packages=("libgguf", "gguf", "numpy"),
    ),
    "statistics": JobKind(
        function=f"{_HERE}.precision.collect:collect_statistics",
        also=_LLAMACPP,
        packages=("numpy", "xllamacpp"),
        wide=True,
    ),
    "sensitivity": JobKind(
        function=f"{_HERE}.precision.measure:run",
        also=_LLAMACPP,
        packages=("libgguf", "gguf", "numpy", "xllamacpp"),
        wide=True,
    ),
    "trim-vocabulary": JobKind(
        function=f"{_HERE}.structure.vocabulary:trim_vocabulary",
        also=_LLAMACPP,
        packages=("gguf", "numpy", "xllamacpp"),
    ),
    "prune-depth": JobKind(
        function=f"{_HERE}.structure.depth:prune_depth",
        also=_LLAMACPP,
        packages=("gguf", "numpy", "xllamacpp"),
    ),
    "prune-width": JobKind(
        function=f"{_HERE}.structure.width:prune_width",
        packages=("gguf", "numpy"),
    ),
    "sparsify": JobKind(
        function=f"{_HERE}.structure.sparsity:sparsify",
        packages=("gguf", "numpy"),
    ),
    "finetune": JobKind(
        function=f"{_HERE}.training.finetune:run",
        packages=("torch", "transformers", "peft", "numpy"),
        wide=True,
    ),
    "distill": JobKind(
        function=f"{_HERE}.training.distill:run",
        packages=("torch", "transformers", "peft", "numpy"),
        wide=True,
    ),
    "recover": JobKind(
        function=f"{_HERE}.training.recover:run",
        packages=("torch", "transformers", "peft", "libgguf", "numpy"),
        wide=True,
    ),
    "generate": JobKind(
        function=f"{_HERE}.training.generate:run",
        packages=("numpy",),
        in_runtime=True,
    ),
    "task": JobKind(
        function=f"{_HERE}.tasks.ask:run",
        packages=("rouge-score", "jsonschema", "numpy"),
        in_runtime=True,
    ),
    "score reference": JobKind(
        function=f"{_HERE}.score_job:score_reference",
        in_runtime=True,
    ),
    "score": JobKind(
        function=f"{_HERE}.score_job:score_candidate",
        in_runtime=True,
    ),
}
"""Kind of step → how it is computed."""


def find_kind(name: str) -> JobKind:
    """Return the row of a kind.

    Raises:
        NotFoundError: no such kind.
    """
    if name not in KINDS:
        raise NotFoundError(f"job {name!r} is unknown; known are {', '.join(KINDS)}")
    return KINDS[name]
