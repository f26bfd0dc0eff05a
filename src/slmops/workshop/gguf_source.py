"""A model in a GGUF file, quantized or not."""

from collections.abc import Callable, Iterator
from pathlib import Path

from slmops.registry.blobs import file_digest
from slmops.workshop.gguf_file import TensorEntry, read_header
from slmops.workshop.model_shape import read_shape
from slmops.workshop.quantize import Matrix, read_rows
from slmops.workshop.reference import ReferenceSource
from slmops.workshop.source_grid import main_type, source_types


def open_gguf(path: Path) -> ReferenceSource:
    """Check a GGUF file and open it as a source.

    Raises:
        InvalidInputError: it is no model we support, or damaged; nothing was written.
    """
    header = read_header(path)
    read_shape(header)
    types = source_types(header.tensors)
    return ReferenceSource(
        name=header.text("general.name") or path.stem,
        origin=path.name,
        digest=file_digest(path),
        metadata=header.metadata,
        tensors=header.tensors,
        read=_reader(path),
        quantization=main_type(header.tensors, types),
        licence=header.text("general.license"),
        types=types,
    )


def _reader(path: Path) -> Callable[[TensorEntry], Iterator[Matrix]]:
    def read(tensor: TensorEntry) -> Iterator[Matrix]:
        with path.open("rb") as file:
            yield from read_rows(file, tensor)

    return read
