"""LoRA adapters that a build's fine-tuning left, for use beside the base instead of merged.

A recipe's fine-tuning merges its adapter and goes on with the merged model; the adapter
itself is kept by the step, as GGUF for llama.cpp and as peft's folder. It belongs to the
very model the step trained, any quantization of it included.
"""

import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from slmops.domain.errors import ConflictError, InvalidInputError, NotFoundError
from slmops.domain.ids import Digest
from slmops.registry.blobs import BlobStore
from slmops.workshop.build_result import BuildResult
from slmops.workshop.steps import StepRecord

_ADAPTER, _PEFT, _MODEL = "adapter", "peft", "model"


@dataclass(frozen=True, kw_only=True, slots=True)
class BuiltAdapter:
    """One adapter, in both its forms."""

    base: Digest
    """16-bit GGUF it was trained on and is loaded beside."""
    merged: Digest
    """16-bit GGUF of both."""
    gguf: Digest
    """For llama.cpp."""
    peft: Digest
    """A tar of peft's two files."""
    data: Digest
    """Examples it learned from."""


def built_adapters(
    build: BuildResult, label: str | None = None
) -> tuple[BuiltAdapter, ...]:
    """Return the adapters of a build, or those a candidate was made with, first to last.

    Raises:
        NotFoundError: the build has no such candidate.
    """
    tuned = [r for r in build.provenance if _ADAPTER in r.outputs]
    if label is not None:
        candidates = {each.label: each.digest for each in build.candidates}
        if label not in candidates:
            raise NotFoundError(
                f"candidate {label!r} is not in this build; there are"
                f" {', '.join(candidates)}"
            )
        history = list(_history(build, candidates[label]))
        tuned = [record for record in reversed(history) if record in tuned]
    return tuple(
        BuiltAdapter(
            base=record.step.inputs[_MODEL],
            merged=record.outputs[_MODEL],
            gguf=record.outputs[_ADAPTER],
            peft=record.outputs[_PEFT],
            data=record.step.inputs["data"],
        )
        for record in tuned
    )


def find_adapter(build: BuildResult, label: str | None = None) -> BuiltAdapter:
    """Return the one adapter of a build or of a candidate.

    Raises:
        NotFoundError: there is none, or no such candidate.
        InvalidInputError: there are several: a candidate tells which is meant, but for
            one that was fine-tuned twice.
    """
    found = built_adapters(build, label)
    of = f"candidate {label!r}" if label else "this build"
    if not found:
        raise NotFoundError(
            f"{of} has no adapter: one comes from a recipe's finetune with method lora"
        )
    if len(found) > 1:
        bases = ", ".join(each.base[7:19] for each in found)
        raise InvalidInputError(
            f"{of} has {len(found)} adapters, on the models {bases}: name a candidate that"
            " was fine-tuned once"
        )
    return found[0]


def write_gguf_adapter(adapter: BuiltAdapter, blobs: BlobStore, path: Path) -> None:
    """Write the file that llama.cpp loads beside the base: ``--lora FILE``.

    Raises:
        ConflictError: something is there already.
        NotFoundError: its bytes are gone: build again.
        UntrustedError: its bytes have changed.
    """
    source = blobs.verify(adapter.gguf)
    if path.exists():
        raise ConflictError(f"{path}: exists already")
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, path)


def write_peft_adapter(adapter: BuiltAdapter, blobs: BlobStore, folder: Path) -> None:
    """Write the folder that peft loads: ``PeftModel.from_pretrained(base, FOLDER)``.

    Raises:
        ConflictError: the folder holds something already.
        NotFoundError: its bytes are gone: build again.
        UntrustedError: its bytes have changed.
    """
    source = blobs.verify(adapter.peft)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConflictError(f"{folder}: exists already")
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(source) as archive:
        archive.extractall(folder, filter="data")


def _history(build: BuildResult, digest: Digest) -> Iterator[StepRecord]:
    """Yield the steps that led to an artefact, the last first."""
    makers = {
        out: record for record in build.provenance for out in record.outputs.values()
    }
    while (record := makers.pop(digest, None)) is not None:
        yield record
        if _MODEL not in record.step.inputs:
            return
        digest = record.step.inputs[_MODEL]
