"""Every kind of job: what computes it, and what its result depends on besides.

The key of a step names the code that computes it (`JobKind.code`, by its bytes) and the
packages it leans on (by version): editing either makes old results unknown, and nothing
is reused that today's code would compute differently.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import cast

from slmops.domain.errors import NotFoundError
from slmops.workshop.jobs.job import JobFunction

_HERE = "slmops.workshop"
_GGUF = (
    f"{_HERE}.gguf_file",
    f"{_HERE}.gguf_writer",
    f"{_HERE}.model_shape",
)
_CHECKPOINTS = (
    "hf_config",
    "hf_export",
    "hf_export_tokenizer",
    "hf_files",
    "hf_names",
    "hf_rope",
    "hf_sentencepiece",
    "hf_source",
    "hf_tokenizer",
    "reference",
    "safetensors_file",
)
_TRAINING = (
    f"{_HERE}.training",
    f"{_HERE}.adapters",
    f"{_HERE}.quantize",
    *(f"{_HERE}.{name}" for name in _CHECKPOINTS),
    *_GGUF,
)
_SCORE = (f"{_HERE}.score_job", f"{_HERE}.score_file", f"{_HERE}.token_map")
_STRUCTURE = (
    f"{_HERE}.structure",
    f"{_HERE}.precision.statistics_file",
    f"{_HERE}.quantize",
    *_SCORE,
    *_GGUF,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class JobKind:
    """One row of the table."""

    function: str
    """``module:function``, a `JobFunction`."""
    code: tuple[str, ...]
    """Modules and packages of ours whose bytes decide the result."""
    packages: tuple[str, ...] = ("numpy",)
    """Distributions whose versions may."""
    in_runtime: bool = False
    """Whether it runs the model in the runtime its parameter ``runtime`` names."""
    wide: bool = False
    """Whether it may use every processor; else it keeps to one, so several run."""

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
        code=(
            f"{_HERE}.quantize_job",
            f"{_HERE}.quantize",
            f"{_HERE}.mixes",
            *(f"{_HERE}.precision.{name}" for name in ("blocks", "compensated")),
            f"{_HERE}.precision.statistics_file",
            *_GGUF,
        ),
        packages=("libgguf", "gguf", "numpy"),
    ),
    "statistics": JobKind(
        function=f"{_HERE}.precision.collect:collect_statistics",
        code=(
            f"{_HERE}.precision.collect",
            f"{_HERE}.precision.statistics_file",
            "slmops.runtimes.llamacpp_activations",
        ),
        packages=("numpy", "xllamacpp"),
        wide=True,
    ),
    "sensitivity": JobKind(
        function=f"{_HERE}.precision.measure:run",
        code=(f"{_HERE}.precision", f"{_HERE}.quantize", f"{_HERE}.score_file", *_GGUF),
        packages=("libgguf", "gguf", "numpy", "xllamacpp"),
        wide=True,
    ),
    "trim-vocabulary": JobKind(
        function=f"{_HERE}.structure.vocabulary:trim_vocabulary",
        code=_STRUCTURE,
        packages=("gguf", "numpy", "xllamacpp"),
    ),
    "prune-depth": JobKind(
        function=f"{_HERE}.structure.depth:prune_depth",
        code=_STRUCTURE,
        packages=("gguf", "numpy", "xllamacpp"),
    ),
    "prune-width": JobKind(
        function=f"{_HERE}.structure.width:prune_width",
        code=_STRUCTURE,
        packages=("gguf", "numpy"),
    ),
    "sparsify": JobKind(
        function=f"{_HERE}.structure.sparsity:sparsify",
        code=_STRUCTURE,
        packages=("gguf", "numpy"),
    ),
    "finetune": JobKind(
        function=f"{_HERE}.training.finetune:run",
        code=_TRAINING,
        packages=("torch", "transformers", "peft", "numpy"),
        wide=True,
    ),
    "distill": JobKind(
        function=f"{_HERE}.training.distill:run",
        code=_TRAINING,
        packages=("torch", "transformers", "peft", "numpy"),
        wide=True,
    ),
    "recover": JobKind(
        function=f"{_HERE}.training.recover:run",
        code=_TRAINING,
        packages=("torch", "transformers", "peft", "libgguf", "numpy"),
        wide=True,
    ),
    "generate": JobKind(
        function=f"{_HERE}.training.generate:run",
        code=(f"{_HERE}.training.generate", f"{_HERE}.training.data"),
        packages=("numpy",),
        in_runtime=True,
    ),
    "task": JobKind(
        function=f"{_HERE}.tasks.ask:run",
        code=(
            f"{_HERE}.tasks",
            f"{_HERE}.jsonl",
            "slmops.runtimes.llamacpp_continuations",
        ),
        packages=("rouge-score", "jsonschema", "numpy"),
        in_runtime=True,
    ),
    "score reference": JobKind(
        function=f"{_HERE}.score_job:score_reference",
        code=_SCORE,
        in_runtime=True,
    ),
    "score": JobKind(
        function=f"{_HERE}.score_job:score_candidate",
        code=_SCORE,
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
