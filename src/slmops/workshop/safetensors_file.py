"""Weights in safetensors files, without torch and some rows at a time.

The `safetensors` package checks a file's header; the bytes are read here, because it
gives no access to part of a bfloat16 tensor without torch.
Format: https://huggingface.co/docs/safetensors
"""

import math
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors

from slmops.domain.errors import InvalidInputError
from slmops.wire.codec import encode_json, parse_json
from slmops.workshop.gguf_file import TensorEntry
from slmops.workshop.quantize import Matrix, read_rows

_KINDS = {"F32": "F32", "F16": "F16", "BF16": "BF16"}


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredTensor:
    """One tensor of a checkpoint."""

    file: Path
    """Where it lies."""
    entry: TensorEntry
    """Its name in the checkpoint, shape (row width first), type and place."""

    def rows(self) -> Iterator[Matrix]:
        """Read as float32, some rows at a time.

        Raises:
            InvalidInputError: damaged, or not finite.
        """
        with self.file.open("rb") as file:
            yield from read_rows(file, self.entry)


def read_safetensors(path: Path) -> tuple[StoredTensor, ...]:
    """Read and check a safetensors file's header.

    Raises:
        InvalidInputError: naming the file and what is wrong.
    """
    try:
        with safetensors.safe_open(path, framework="numpy"):
            pass
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = parse_json(file.read(length), where=str(path))
    except (safetensors.SafetensorError, struct.error, OSError) as error:
        raise InvalidInputError(f"{path}: no valid safetensors file: {error}") from None
    return tuple(
        _stored(path, name, described, 8 + length)
        for name, described in header.items()
        if name != "__metadata__"
    )


def write_safetensors(
    path: Path,
    tensors: Mapping[str, TensorEntry],
    data: Callable[[TensorEntry], Iterable[bytes]],
) -> None:
    """Write a safetensors file front to back.

    Args:
        path: file to write.
        tensors: by the name to give them; stored with their type and shape, float32
            first so that everything is aligned.
        data: gives a tensor's bytes in pieces, little endian, row by row.

    Raises:
        InvalidInputError: a tensor's pieces are not as long as its shape and type ask.
    """
    ordered = sorted(tensors.items(), key=lambda item: item[1].kind != "F32")
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in ordered:
        begin, end = end, end + tensor.bytes
        header[name] = {
            "dtype": _KINDS[tensor.kind],
            "shape": list(reversed(tensor.shape)),
            "data_offsets": [begin, end],
        }
    raw = encode_json(header)
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        for name, tensor in ordered:
            written = sum(file.write(piece) for piece in data(tensor))
            if written != tensor.bytes:
                raise InvalidInputError(
                    f"tensor {name!r}: expected {tensor.bytes} bytes, got {written}"
                )


def _stored(path: Path, name: str, described: Any, start: int) -> StoredTensor:  # noqa: ANN401 - checked by the package
    kind = _KINDS.get(described["dtype"])
    shape = tuple(reversed(described["shape"]))
    if kind is None:
        raise InvalidInputError(
            f"{path}: tensor {name!r} is {described['dtype']}; supported are"
            f" {', '.join(_KINDS)}: a quantized checkpoint cannot be a reference"
        )
    if not shape or math.prod(shape) == 0:
        raise InvalidInputError(f"{path}: tensor {name!r} is empty")
    entry = TensorEntry(
        name=name,
        shape=shape,
        kind=kind,
        offset=start + described["data_offsets"][0],
    )
    return StoredTensor(file=path, entry=entry)
