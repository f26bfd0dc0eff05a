"""A model in a GGUF file, quantized or not."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from slmops.registry.blobs import file_digest
from slmops.workshop.gguf_file import GgufHeader, TensorEntry, read_header
from slmops.workshop.model_shape import read_shape
from slmops.workshop.quantize import Matrix, read_rows
from slmops.workshop.reference import ReferenceSource

_FULL_PRECISION = frozenset({"F64", "F32", "F16", "BF16"})


def open_gguf(path: Path) -> ReferenceSource:
    """Check a GGUF file and open it as a source.

    Raises:
        InvalidInputError: it is no model we support, or damaged; nothing was written.
    """
    header = read_header(path)
    read_shape(header)
    return ReferenceSource(
        name=header.text("general.name") or path.stem,
        origin=path.name,
        digest=file_digest(path),
        metadata=header.metadata,
        tensors=header.tensors,
        read=_reader(path),
        quantization=main_quantization(header),
        licence=header.text("general.license"),
    )


def main_quantization(header: GgufHeader) -> str | None:
    """Return the type that holds most of the weights; None when none is quantized."""
    weights: Counter[str] = Counter()
    for tensor in header.tensors:
        if tensor.kind not in _FULL_PRECISION:
            weights[tensor.kind] += tensor.elements
    return weights.most_common(1)[0][0] if weights else None


def _reader(path: Path) -> Callable[[TensorEntry], Iterator[Matrix]]:
    def read(tensor: TensorEntry) -> Iterator[Matrix]:
        with path.open("rb") as file:
            yield from read_rows(file, tensor)

    return read
