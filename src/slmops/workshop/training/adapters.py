"""Low-rank adapters by peft: put in, merged, and written."""

import contextlib
import io
import tarfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import peft
import torch

from slmops.workshop.adapters import adapter_to_gguf
from slmops.workshop.jobs.job import Job
from slmops.workshop.training.settings import FinetuneSettings
from slmops.workshop.training.untyped import Module

_FILES = ("adapter_config.json", "adapter_model.safetensors")
_TARGETS = [
    *("q_proj", "k_proj", "v_proj", "o_proj"),
    *("gate_proj", "up_proj", "down_proj"),
]


def add_adapters(causal: Module, settings: FinetuneSettings) -> Module:
    """Put adapters into every projection of a model, which is changed in place.

    Returns:
        peft's wrapper around it. Only adapters require gradients afterwards.
    """
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=_TARGETS,
        task_type="CAUSAL_LM",
    )
    with _quiet():
        return peft.get_peft_model(causal, config)


def merge_adapters(adapted: Module) -> None:
    """Add adapters into the weights they belong to and take them out, in place."""
    with torch.no_grad(), _quiet():
        adapted.merge_and_unload()


def save_adapter(adapted: Module, model: Path, job: Job) -> Mapping[str, Path]:
    """Write an adapter in both its forms.

    Returns:
        ``adapter``, the GGUF that llama.cpp loads beside any quantization of `model`, and
        ``peft``, a tar of peft's two files for other tools.
    """
    folder = job.state / "adapter"
    with _quiet():
        adapted.save_pretrained(folder)
    path = job.output / "adapter.gguf"
    with path.open("wb") as sink:
        adapter_to_gguf(folder, model, sink, kind="F16")
    return {"adapter": path, "peft": _packed(folder, job.output / "peft.tar")}


def _packed(folder: Path, path: Path) -> Path:
    """Pack without dates or owners: equal files give equal bytes."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name in _FILES:
            content = (folder / name).read_bytes()
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o644
            archive.addfile(entry, io.BytesIO(content))
    return path


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide that peft uses names of transformers that version 6 will not have."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield
