"""Sensitivity on disk: what each type of each tensor costs in bytes and in divergence.

One document holds all that choosing types needs: every tensor of a model, and for every
type whose blocks divide its rows the exact bytes and the rise of the mean KL divergence
when only that tensor has it. One direct measurement a tensor, scaled to its other types
by their squared error: KL divergence is quadratic in a small change (its Hessian is the
Fisher information). How far sums of these are off is in `checks`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from slmops.domain.errors import InvalidInputError
from slmops.wire.codec import decode_json
from slmops.workshop.gguf_file import BLOCKS, TensorEntry

_LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Option:
    """One type one tensor may get."""

    kind: str
    """Type of its blocks."""
    bytes: int
    """Exact bytes in the file, padding included."""
    kld: float
    """Rise of mean KL divergence when only this tensor has this type, nats, >= 0."""
    error: float
    """Squared error over squared weights, by the importance of columns if known."""
    measured: bool = False
    """Whether `kld` was measured directly; else scaled by `error`."""
    on_grid: bool = False
    """The weights lie on this type's grid already, because the source of the model had
    it: its error says nothing about the type."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorSensitivity:
    """One tensor and the types it may get."""

    name: str
    """``blk.0.attn_q.weight``."""
    shape: tuple[int, ...]
    """Row width first, as GGUF stores it."""
    options: tuple[Option, ...]
    """At least one; exactly one, without a rise, for what is never quantized."""

    def entry(self, kind: str) -> TensorEntry:
        """Describe the tensor with a type."""
        return TensorEntry(name=self.name, shape=self.shape, kind=kind)


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """A whole mix, predicted and then measured on the same text."""

    bytes: int
    """Size its file would have."""
    predicted: float
    """Sum of its tensors' rises, nats."""
    measured: float
    """Mean KL divergence of a model with all its rounded weights, nats."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sensitivity:
    """What a model's tensors may be, and what that does to it."""

    positions: int
    """Scored positions behind every measurement."""
    window_tokens: int
    """Length of their windows."""
    header_bytes: int
    """Exact size of a quantized file's header, padding included."""
    tensors: tuple[TensorSensitivity, ...]
    """All of the model's, in file order."""
    scale: float = 1.0
    """What sums of rises are multiplied with to predict whole mixes: geometric mean of
    measured over predicted in `checks`."""
    checks: tuple[Check, ...] = ()
    """Whole mixes, predicted and measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One cell of a heat map."""

    layer: int
    """Transformer block; -1 outside of all."""
    part: str
    """``attn_q``, ``ffn_down``, ``token_embd``."""
    kld_per_mb: float
    """Nats lost per megabyte (10**6 bytes) saved."""


def load_sensitivity(path: Path) -> Sensitivity:
    """Read a document and check that choices can be made from it.

    Raises:
        InvalidInputError: damaged, or of another kind.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InvalidInputError(f"{path}: cannot be read: {error.strerror}") from None
    found = decode_json(raw, Sensitivity, where=str(path))
    for tensor in found.tensors:
        _check_tensor(path, tensor)
    return found


def heat_map(
    sensitivity: Sensitivity, *, kind: str = "Q4_0", against: str = "Q8_0"
) -> tuple[Cell, ...]:
    """Tell where a byte saved hurts: one cell a tensor, in file order.

    Args:
        sensitivity: of the model.
        kind: type that saves bytes.
        against: type it saves them from; tensors without both are left out.
    """
    cells = []
    for tensor in sensitivity.tensors:
        options: Mapping[str, Option] = {each.kind: each for each in tensor.options}
        if kind not in options or against not in options:
            continue
        small, large = options[kind], options[against]
        saved = (large.bytes - small.bytes) / 1e6
        layer, part = place_of(tensor.name)
        if saved > 0:
            rate = (small.kld - large.kld) / saved
            cells.append(Cell(layer=layer, part=part, kld_per_mb=rate))
    return tuple(cells)


def place_of(name: str) -> tuple[int, str]:
    """Return a tensor's layer (-1 for none) and part.

    >>> place_of("blk.3.attn_q.weight"), place_of("token_embd.weight")
    ((3, 'attn_q'), (-1, 'token_embd'))
    """
    found = _LAYER.match(name)
    return (int(found[1]), found[2]) if found else (-1, name.partition(".")[0])


def _check_tensor(path: Path, tensor: TensorSensitivity) -> None:
    if not tensor.options:
        raise InvalidInputError(f"{path}: tensor {tensor.name!r} has no options")
    for option in tensor.options:
        if option.kind not in BLOCKS:
            raise InvalidInputError(
                f"{path}: tensor {tensor.name!r} has the unknown type {option.kind!r}"
            )
        if option.bytes < 0 or not option.kld >= 0:
            raise InvalidInputError(
                f"{path}: {option.kind} of {tensor.name!r} must have bytes and kld >= 0"
            )
