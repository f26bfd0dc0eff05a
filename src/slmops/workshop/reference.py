"""The 16-bit reference: what every source becomes, and how it is written.

Matrices are stored in F16 and vectors in F32, as llama.cpp's converter does. A model
with weights beyond F16's range is stored in BF16 instead, all of it.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from slmops.domain.ids import Digest
from slmops.workshop.gguf_file import MetadataEntry, TensorEntry
from slmops.workshop.gguf_writer import (
    ByteSink,
    metadata_entry,
    with_metadata,
    write_gguf,
)
from slmops.workshop.mixes import MIXES
from slmops.workshop.progress import Progress
from slmops.workshop.quantize import Matrix, encode_rows

F16_MAX = 65504.0
"""Largest finite half-precision number."""

_SOURCE_ONLY = re.compile(r"general\.alignment|quantize\.imatrix\..*|split\..*")


class HalfOverflowError(Exception):
    """A weight does not fit F16; never leaves the workshop."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReferenceSource:
    """A model that can be read tensor by tensor, whatever it lies in."""

    name: str
    """What it is called by itself; made into a valid name later."""
    origin: str
    """Where it came from, for the record."""
    digest: Digest
    """Of what was read."""
    metadata: tuple[MetadataEntry, ...]
    """For the reference's header."""
    tensors: tuple[TensorEntry, ...]
    """GGUF names and shapes; types are the source's."""
    read: Callable[[TensorEntry], Iterator[Matrix]]
    """Gives a tensor's rows as float32, some at a time."""
    quantization: str | None
    """Main type of a quantized source."""
    licence: str | None
    """SPDX id or name."""
    types: Mapping[str, str] = field(default_factory=dict)
    """Tensor → type, of those that are quantized, or once were."""


def write_reference(
    source: ReferenceSource, sink: ByteSink, half: str, progress: Progress
) -> None:
    """Write the 16-bit GGUF of a source; equal sources give equal bytes.

    Args:
        source: the model.
        sink: takes the file's bytes.
        half: ``F16`` or ``BF16``.
        progress: told after every tensor.

    Raises:
        HalfOverflowError: `half` is ``F16`` and a weight does not fit.
        InvalidInputError: the source is damaged.
    """
    metadata = with_metadata(
        source.metadata,
        [metadata_entry("general.file_type", MIXES[half].file_type, "UINT32")],
        without=lambda key: _SOURCE_ONLY.fullmatch(key) is not None,
    )
    tensors = [
        replace(tensor, kind="F32" if _is_vector(tensor) else half)
        for tensor in source.tensors
    ]
    write_gguf(sink, metadata, tensors, _converted(source, half, progress))


def _is_vector(tensor: TensorEntry) -> bool:
    return len(tensor.shape) == 1 or tensor.name.endswith("_norm.weight")


def _converted(
    source: ReferenceSource, half: str, progress: Progress
) -> Iterator[Iterator[bytes]]:
    total = sum(tensor.elements for tensor in source.tensors)
    done = 0
    for tensor in source.tensors:
        yield _converted_rows(source, tensor, half)
        done += tensor.elements
        progress("convert to 16 bits", done, total)


def _converted_rows(
    source: ReferenceSource, tensor: TensorEntry, half: str
) -> Iterator[bytes]:
    kind = "F32" if _is_vector(tensor) else half
    for values in source.read(tensor):
        if kind == "F16" and values.size and float(np.abs(values).max()) > F16_MAX:
            raise HalfOverflowError(tensor.name)
        yield encode_rows(values, kind)
