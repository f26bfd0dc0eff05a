"""Where a model file keeps its tensors: GGUF and safetensors; all else has none.

Only what a delta needs: name, layout, shape and place. A file that does not parse is
simply bytes; what is unknown costs size, never correctness.
"""

import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from mmap import mmap

from slmops.deltas.layouts import LAYOUTS

_NUMBERS = {layout.name: number for number, layout in enumerate(LAYOUTS)}
_GGUF_KINDS = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    6: "Q5_0",
    7: "Q5_1",
    8: "Q8_0",
    10: "Q2_K",
    11: "Q3_K",
    12: "Q4_K",
    13: "Q5_K",
    14: "Q6_K",
    20: "IQ4_NL",
    23: "IQ4_XS",
    30: "BF16",
}
_SCALAR_BYTES = {
    0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8,
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_SAFETENSORS_HEADER = 100 << 20
_VERSIONS = (2, 3)


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor."""

    name: str
    layout: int
    """Index into `LAYOUTS`."""
    shape: tuple[int, ...]
    """Row width first."""
    at: int
    """Offset in the file."""

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return math.prod(self.shape) // LAYOUTS[self.layout].block_weights

    @property
    def length(self) -> int:
        """Bytes."""
        return self.blocks * LAYOUTS[self.layout].block_bytes


def find_tensors(raw: mmap | bytes) -> list[Tensor]:
    """Return the tensors of a file in order of their places; empty: it has none."""
    try:
        found = _gguf(raw) if raw[:4] == b"GGUF" else _safetensors(raw)
    except (struct.error, ValueError, KeyError, TypeError, RecursionError):
        return []
    found = [tensor for tensor in found if _fits(tensor, len(raw))]
    found.sort(key=lambda tensor: tensor.at)
    end, apart = 0, []
    for tensor in found:
        if tensor.at >= end:
            apart.append(tensor)
            end = tensor.at + tensor.length
    return apart


def _fits(tensor: Tensor, size: int) -> bool:
    weights = LAYOUTS[tensor.layout].block_weights
    whole = bool(tensor.shape) and tensor.shape[0] % weights == 0 and tensor.blocks > 0
    return whole and tensor.at >= 0 and tensor.at + tensor.length <= size


class _Gguf:
    def __init__(self, raw: mmap | bytes) -> None:
        self.raw, self.at = raw, 4

    def number(self, form: str) -> int:
        value: int = struct.unpack_from("<" + form, self.raw, self.at)[0]
        self.at += struct.calcsize("<" + form)
        return value

    def text(self) -> bytes:
        length = self.number("Q")
        self.at += length
        if self.at > len(self.raw):
            raise ValueError(length)
        return self.raw[self.at - length : self.at]

    def skip_value(self, kind: int) -> None:
        if kind == _STRING:
            self.text()
        elif kind == _ARRAY:
            self._skip_array()
        else:
            self.at += _SCALAR_BYTES[kind]

    def _skip_array(self) -> None:
        kind, count = self.number("I"), self.number("Q")
        if kind in _SCALAR_BYTES:
            self.at += count * _SCALAR_BYTES[kind]
            return
        for _ in range(count):
            self.skip_value(kind)


def _gguf(raw: mmap | bytes) -> list[Tensor]:
    reader, alignment = _Gguf(raw), 32
    if reader.number("I") not in _VERSIONS:
        return []
    count, entries = reader.number("Q"), reader.number("Q")
    for _ in range(entries):
        key, kind = reader.text(), reader.number("I")
        if key == b"general.alignment":
            alignment = struct.unpack_from("<I", raw, reader.at)[0]
        reader.skip_value(kind)
    described = []
    for _ in range(count):
        name = reader.text().decode(errors="replace")
        shape = tuple(reader.number("Q") for _ in range(reader.number("I")))
        described.append((name, shape, reader.number("I"), reader.number("Q")))
    start = -(-reader.at // alignment) * alignment
    return [
        Tensor(name, _NUMBERS[_GGUF_KINDS[kind]], shape, start + offset)
        for name, shape, kind, offset in described
        if kind in _GGUF_KINDS
    ]


def _safetensors(raw: mmap | bytes) -> list[Tensor]:
    (length,) = struct.unpack_from("<Q", raw)
    if length > min(_SAFETENSORS_HEADER, len(raw)):
        return []
    entries = json.loads(raw[8 : 8 + length])
    return [
        Tensor(
            name,
            _NUMBERS[entry["dtype"]],
            _row_first(entry["shape"]),
            8 + length + entry["data_offsets"][0],
        )
        for name, entry in entries.items()
        if name != "__metadata__" and entry["dtype"] in {"F32", "F16", "BF16"}
    ]


def _row_first(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(reversed([int(size) for size in shape])) or (1,)
