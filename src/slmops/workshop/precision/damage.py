"""How much a type changes a tensor, without running the model.

The squared error of a matrix's output is quadratic in the error of its weights, with the
second moments of its input as the metric. Their diagonal, the mean square of each
channel, is what an importance matrix holds, and all that is used here: relative, so that
tensors compare. Without statistics all columns count alike.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from slmops.workshop.gguf_file import (
    ALIGNMENT,
    BLOCKS,
    TensorEntry,
    aligned,
    tensor_bytes,
)
from slmops.workshop.mixes import NEED_IMATRIX
from slmops.workshop.quantize import Matrix, decode_rows, encode_rows

Importance = npt.NDArray[np.float32] | None

_GRID_SHARE = 0.05
_LEVEL_BITS = {
    "Q2_K": 2,
    "IQ2_S": 2,
    "Q3_K": 3,
    "IQ3_S": 3,
    "Q4_0": 4,
    "Q4_1": 4,
    "IQ4_NL": 4,
    "IQ4_XS": 4,
    "Q4_K": 4,
    "Q5_0": 5,
    "Q5_1": 5,
    "Q5_K": 5,
    "Q6_K": 6,
    "Q8_0": 8,
}

TYPES = tuple(_LEVEL_BITS)
"""Types this workshop can put into a mix of its own, coarsest first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Damage:
    """What one type does to one tensor."""

    kind: str
    """Type of its blocks."""
    bytes: int
    """Exact bytes in the file, padding included."""
    error: float
    """Squared error over squared weights, both by importance; >= 0."""

    @property
    def on_grid(self) -> bool:
        """Whether the weights lie on the type's grid already.

        Rounding to b bits leaves a relative squared error near ``4**-b`` whatever the
        weights are; a twentieth of that is no luck.
        """
        bits = _LEVEL_BITS.get(self.kind)
        return bits is not None and self.error < _GRID_SHARE * 4.0**-bits


def fitting_types(
    tensor: TensorEntry, kinds: Sequence[str], *, has_importance: bool
) -> tuple[str, ...]:
    """Return which types a tensor may get: those whose blocks divide its rows."""
    return tuple(
        kind
        for kind in kinds
        if tensor.width % BLOCKS[kind][0] == 0
        and (has_importance or kind not in NEED_IMATRIX)
    )


def padded_bytes(tensor: TensorEntry, kind: str) -> int:
    """Return the exact bytes a tensor takes in a file with a type.

    >>> padded_bytes(TensorEntry(name="a", shape=(64, 1), kind="F16"), "Q4_0")
    64
    """
    return aligned(tensor_bytes(kind, tensor.shape), ALIGNMENT)


def rounded_rows(values: Matrix, kind: str, importance: Importance) -> Matrix:
    """Quantize rows and dequantize them again.

    Args:
        values: (rows, width).
        kind: type whose blocks divide the width.
        importance: (width,), or None.
    """
    raw = encode_rows(values, kind, importance)
    return decode_rows(raw, kind, len(values), values.shape[1])


def damages(
    tensor: TensorEntry,
    values: Matrix,
    kinds: Sequence[str],
    importance: Importance,
) -> Iterator[Damage]:
    """Yield what each type does to a tensor.

    Args:
        tensor: its name and shape.
        values: (rows, width) its weights.
        kinds: types that fit.
        importance: (width,) mean square of each input channel, or None.
    """
    for kind in kinds:
        found = rounded_rows(values, kind, importance)
        yield Damage(
            kind=kind,
            bytes=padded_bytes(tensor, kind),
            error=relative_error(values, found, importance),
        )


def relative_error(values: Matrix, rounded: Matrix, importance: Importance) -> float:
    """Return the weighted squared error over the weighted squares, 0 for all zeros."""
    change = ((rounded - values) ** 2).sum(axis=0, dtype=np.float64)
    whole = (values**2).sum(axis=0, dtype=np.float64)
    weight = np.ones(len(whole)) if importance is None else importance
    total = float(whole @ weight)
    return float(change @ weight) / total if total > 0 else 0.0
