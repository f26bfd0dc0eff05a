"""Turn a 16-bit reference into one quantized variant, a few rows at a time.

Blocks come from `libgguf`, bit-identical to llama.cpp's own quantizer; which type a
tensor gets is `mixes`' business. Memory stays at some tens of megabytes, whatever the
model's size, because rows are rounded independently.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import libgguf
import numpy as np
import numpy.typing as npt
from gguf.constants import GGML_QUANT_VERSION, GGMLQuantizationType

from slmops.domain.errors import InvalidInputError
from slmops.workshop.gguf_file import (
    GgufHeader,
    MetadataEntry,
    TensorEntry,
    read_header,
    tensor_bytes,
)
from slmops.workshop.gguf_writer import (
    ByteSink,
    file_bytes,
    metadata_entry,
    with_metadata,
    write_gguf,
)
from slmops.workshop.mixes import (
    TensorChoice,
    assigned_file_type,
    assigned_types,
    choose_types,
    find_mix,
)
from slmops.workshop.model_shape import read_shape
from slmops.workshop.progress import Progress, silent

Matrix = npt.NDArray[np.float32]
Imatrix = Mapping[str, npt.NDArray[np.float32]]
"""Tensor name → importance of each column, (width,) float32, not negative."""

Encoder = Callable[[Matrix], bytes]
"""Turns (rows, width) float32 into the blocks of one tensor's type."""
Rounder = Callable[[TensorEntry, str], Encoder | None]
"""Gives how a tensor is turned into a type; None leaves it to rounding to nearest."""

MIXED = "MIXED"
"""Name of a quantization whose types are assigned tensor by tensor."""
CHUNK_WEIGHTS = 1 << 22
"""Weights converted at a time: 16 MiB of float32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizedFile:
    """What a quantization made, or will make."""

    bytes: int
    """Exact size of the file."""
    parameters: int
    """Weights."""
    tensor_types: dict[str, int]
    """Type → number of tensors."""
    tensors: tuple[TensorEntry, ...] = field(repr=False)
    """Every tensor with its type."""

    @property
    def bits_per_weight(self) -> float:
        """Of the whole file, metadata included."""
        return 8 * self.bytes / self.parameters


@dataclass(frozen=True, kw_only=True, slots=True)
class _Plan:
    metadata: tuple[MetadataEntry, ...]
    tensors: tuple[TensorEntry, ...]
    choices: tuple[TensorChoice, ...]


def predict_quantized(
    header: GgufHeader,
    target_type: str,
    *,
    has_imatrix: bool = False,
    types: Mapping[str, str] | None = None,
) -> QuantizedFile:
    """Tell what `quantize_gguf` will make of a reference: exact, without doing it.

    Raises:
        InvalidInputError: as `quantize_gguf`.
    """
    return _described(_planned(header, target_type, types, has_imatrix=has_imatrix))


def quantize_gguf(  # noqa: PLR0913 - what is made, and three ways to steer it
    reference: Path,
    target_type: str,
    sink: ByteSink,
    *,
    imatrix: Imatrix | None = None,
    types: Mapping[str, str] | None = None,
    rounder: Rounder | None = None,
    progress: Progress = silent,
) -> QuantizedFile:
    """Quantize a 16-bit GGUF file; equal input gives equal bytes.

    Args:
        reference: 16-bit GGUF model, as `import_model` stores it.
        target_type: name of a mix: ``Q4_K_M``; or ``MIXED``, with `types`.
        sink: takes the file's bytes, front to back.
        imatrix: importance of columns; tensors that are missing are rounded without.
        types: tensor → type of its blocks, of every matrix; only with ``MIXED``.
        rounder: how to round, where not to nearest; see `precision.compensated`.
        progress: told after every tensor.

    Raises:
        InvalidInputError: unknown type; a type that needs an importance matrix without
            one; a reference that is not 16 bit, not finite, or damaged.
    """
    header = read_header(reference)
    plan = _planned(header, target_type, types, has_imatrix=imatrix is not None)
    with reference.open("rb") as file:
        encoders = _encoders(header, plan, imatrix or {}, rounder)
        data = _rounded(file, header, encoders, (target_type, progress))
        write_gguf(sink, plan.metadata, plan.tensors, data)
    return _described(plan)


def read_rows(file: BinaryIO, tensor: TensorEntry) -> Iterator[Matrix]:
    """Read a tensor as float32, some rows at a time, dequantizing on the way.

    Yields:
        (rows, width) float32; together all rows, in order.

    Raises:
        InvalidInputError: damaged file, a type that holds no weights, or weights that
            are not finite.
    """
    row_bytes = tensor_bytes(tensor.kind, (tensor.width,))
    step = max(CHUNK_WEIGHTS // tensor.width, 1)
    file.seek(tensor.offset)
    for first in range(0, tensor.rows, step):
        rows = min(step, tensor.rows - first)
        raw = file.read(rows * row_bytes)
        if len(raw) != rows * row_bytes:
            raise InvalidInputError(f"{file.name}: cut off in tensor {tensor.name!r}")
        values = decode_rows(raw, tensor.kind, rows, tensor.width)
        if not np.isfinite(values).all():
            raise InvalidInputError(
                f"{file.name}: tensor {tensor.name!r} holds values that are not finite"
            )
        yield values


def decode_rows(raw: bytes, kind: str, rows: int, width: int) -> Matrix:
    """Turn blocks into (rows, width) float32.

    Raises:
        InvalidInputError: the type holds no weights or is unknown to the quantizer.
    """
    if kind in {"F32", "F16"}:
        dtype: npt.DTypeLike = np.float32 if kind == "F32" else np.float16
        half = np.frombuffer(raw, dtype)
        return half.astype(np.float32).reshape(rows, width)
    if kind == "BF16":
        high = np.frombuffer(raw, np.uint16).astype(np.uint32) << 16
        return np.asarray(high.view(np.float32)).reshape(rows, width)
    blocks = np.frombuffer(raw, np.uint8).reshape(rows, -1)
    try:
        values = libgguf.dequantize_rows(blocks, GGMLQuantizationType[kind], width)
    except (ValueError, KeyError) as error:
        raise InvalidInputError(f"type {kind} cannot be dequantized: {error}") from None
    return np.asarray(values, np.float32).reshape(rows, width)


def encode_rows(
    values: Matrix, kind: str, importance: npt.NDArray[np.float32] | None = None
) -> bytes:
    """Turn (rows, width) float32 into blocks of `kind`."""
    if kind == "F32":
        return values.astype("<f4").tobytes()
    if kind == "F16":
        return values.astype("<f2").tobytes()
    if kind == "BF16":
        return _bf16(values).tobytes()
    blocks = libgguf.quantize_rows(
        np.ascontiguousarray(values), GGMLQuantizationType[kind], importance
    )
    return np.asarray(blocks).tobytes()


def coarse_rows(values: Matrix) -> Matrix:
    """Round every block of 32 weights to four levels: -3/2, -1/2, 1/2, 3/2 of a step.

    Two bits a weight, for rows that no 2-bit type of llama.cpp divides; any 4-bit block
    then holds the result. The step is the block's root mean square: within half a
    percent of the best uniform step for normally distributed weights (Max, 1960).

    Args:
        values: (rows, width), width a multiple of 32.
    """
    blocks = values.reshape(-1, 32)
    step = np.sqrt((blocks * blocks).mean(axis=1, keepdims=True))
    safe = np.where(step > 0, step, 1)
    levels = np.clip(np.floor(blocks / safe), -2, 1) + 0.5
    rounded: Matrix = (levels * step).astype(np.float32).reshape(values.shape)
    return rounded


def _planned(
    header: GgufHeader,
    target_type: str,
    types: Mapping[str, str] | None,
    *,
    has_imatrix: bool,
) -> _Plan:
    if (types is not None) is not (target_type == MIXED):
        raise InvalidInputError(
            f"an assignment of types goes with quantization {MIXED} and no other,"
            f" got {target_type}"
        )
    shape = read_shape(header)
    for tensor in header.tensors:
        if tensor.kind not in {"F32", "F16", "BF16"}:
            raise InvalidInputError(
                f"{header.path}: a reference must have 16 bits or more, but"
                f" {tensor.name} is {tensor.kind}"
            )
    if types is not None:
        choices = assigned_types(header.tensors, types, has_imatrix=has_imatrix)
        file_type = assigned_file_type(types)
    else:
        choices = choose_types(
            header.tensors,
            target_type,
            kv_sharing=shape.heads // shape.kv_heads,
            has_imatrix=has_imatrix,
        )
        file_type = find_mix(target_type).file_type
    changes = (
        metadata_entry("general.file_type", file_type, "UINT32"),
        metadata_entry("general.quantization_version", GGML_QUANT_VERSION, "UINT32"),
    )
    tensors = zip(header.tensors, choices, strict=True)
    return _Plan(
        metadata=with_metadata(
            header.metadata, changes, without=lambda key: key == "general.alignment"
        ),
        tensors=tuple(replace(tensor, kind=choice.kind) for tensor, choice in tensors),
        choices=choices,
    )


def _described(plan: _Plan) -> QuantizedFile:
    return QuantizedFile(
        bytes=file_bytes(plan.metadata, plan.tensors),
        parameters=sum(tensor.elements for tensor in plan.tensors),
        tensor_types=dict(Counter(tensor.kind for tensor in plan.tensors)),
        tensors=plan.tensors,
    )


def _encoders(
    header: GgufHeader, plan: _Plan, imatrix: Imatrix, rounder: Rounder | None
) -> Iterator[Encoder]:
    """Give every tensor's encoder when its turn comes: one may hold a large matrix."""
    for tensor, choice in zip(header.tensors, plan.choices, strict=True):
        special = (
            rounder(tensor, choice.kind) if rounder and not choice.coarse else None
        )
        yield special or _nearest(choice, _importance(imatrix, tensor))


def _nearest(
    choice: TensorChoice, importance: npt.NDArray[np.float32] | None
) -> Encoder:
    def encode(values: Matrix) -> bytes:
        rows = coarse_rows(values) if choice.coarse else values
        return encode_rows(rows, choice.kind, importance)

    return encode


def _rounded(
    file: BinaryIO,
    header: GgufHeader,
    encoders: Iterator[Encoder],
    reporting: tuple[str, Progress],
) -> Iterator[Iterator[bytes]]:
    name, progress = reporting
    total = sum(tensor.elements for tensor in header.tensors)
    done = 0
    for tensor, encode in zip(header.tensors, encoders, strict=True):
        yield map(encode, read_rows(file, tensor))
        done += tensor.elements
        progress(f"quantize {name}", done, total)


def _importance(
    imatrix: Imatrix, tensor: TensorEntry
) -> npt.NDArray[np.float32] | None:
    importance = imatrix.get(tensor.name)
    if importance is None:
        return None
    if importance.shape != (tensor.width,) or not np.isfinite(importance).all():
        raise InvalidInputError(
            f"importance of {tensor.name} must be {tensor.width} finite numbers,"
            f" got shape {list(importance.shape)}"
        )
    return importance


def _bf16(values: Matrix) -> npt.NDArray[np.uint16]:
    """Round to nearest, ties to even, as llama.cpp does."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded: Sequence[int] | npt.NDArray[np.uint32] = bits + 0x7FFF + ((bits >> 16) & 1)
    return (np.asarray(rounded) >> 16).astype(np.uint16)
