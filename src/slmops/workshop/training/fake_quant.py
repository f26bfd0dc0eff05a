"""Quantization-aware training: forward and backward with rounded weights.

Inside `rounded`, every weight with a quantized type is what that type makes of it, in
llama.cpp's own rounding (`libgguf`), K types and fallbacks included. Outside, it is the
fp32 weight again, which the optimizer changes by the gradient of the rounded one: the
straight-through estimator (Bengio et al. 2013), without a function in between.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from slmops.domain.errors import InvalidInputError
from slmops.wire.codec import parse_json
from slmops.workshop.gguf_file import BLOCKS, read_header
from slmops.workshop.hf_names import checkpoint_name
from slmops.workshop.model_shape import read_shape
from slmops.workshop.quantize import Matrix, decode_rows, encode_rows
from slmops.workshop.training.bridge import TorchModel
from slmops.workshop.training.untyped import Tensor

_FULL = frozenset({"F32", "F16", "BF16"})
_NEED_IMPORTANCE = frozenset({"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS"})


@dataclass(frozen=True, slots=True)
class FakeQuantization:
    """Some weights of a model and the types they will have."""

    weights: Mapping[str, tuple[Tensor, str]]
    """Checkpoint name → parameter, (rows, width), and type."""

    @contextlib.contextmanager
    def rounded(self) -> Iterator[None]:
        """Round the weights inside, give them back outside."""
        kept = {name: weight.data for name, (weight, _) in self.weights.items()}
        try:
            for weight, kind in self.weights.values():
                weight.data = _rounded(weight.data, kind)
            yield
        finally:
            for name, (weight, _) in self.weights.items():
                weight.data = kept[name]


def rounded_rows(values: Matrix, kind: str) -> Matrix:
    """Return what a type makes of (rows, width) float32: quantized and back.

    The order of rows does not matter, because blocks lie within rows; so weights that a
    checkpoint keeps in another order than a GGUF are rounded as the GGUF's will be.
    """
    return decode_rows(encode_rows(values, kind), kind, *values.shape)


def open_assignment(model: TorchModel, raw: bytes, where: str) -> FakeQuantization:
    """Read which tensor gets which type: ``{"types": {"blk.0.attn_q.weight": "Q4_0"}}``.

    Raises:
        InvalidInputError: no such document, an unknown tensor or type, a width that the
            type's blocks do not divide, or nothing to quantize.
    """
    tree = parse_json(raw, where=where)
    types = tree.get("types") if isinstance(tree, dict) else None
    if not isinstance(types, dict) or not types:
        raise InvalidInputError(f'{where}: must hold {{"types": {{tensor: type}}}}')
    header = read_header(model.source)
    entries = {entry.name: entry for entry in header.tensors}
    parameters = dict(model.causal.named_parameters())
    architecture = read_shape(header).architecture
    weights: dict[str, tuple[Tensor, str]] = {}
    for name, kind in types.items():
        if name not in entries:
            raise InvalidInputError(f"{where}: types: the model has no tensor {name!r}")
        if kind not in BLOCKS or kind in _NEED_IMPORTANCE:
            raise InvalidInputError(
                f"{where}: types.{name}: {kind!r} is no type that weights can be"
                " rounded to here"
            )
        if kind in _FULL:
            continue
        if entries[name].width % BLOCKS[kind][0]:
            raise InvalidInputError(
                f"{where}: types.{name}: {kind} needs rows of a multiple of"
                f" {BLOCKS[kind][0]}, got {entries[name].width}"
            )
        found = checkpoint_name(name, architecture)
        weights[found] = (parameters[found], kind)
    if not weights:
        raise InvalidInputError(f"{where}: types: no tensor is quantized")
    return FakeQuantization(weights)


def _rounded(weight: Tensor, kind: str) -> Tensor:
    values = weight.detach().to("cpu", torch.float32).numpy()
    rounded = rounded_rows(np.ascontiguousarray(values), kind)
    return torch.from_numpy(np.ascontiguousarray(rounded)).to(weight.device)
