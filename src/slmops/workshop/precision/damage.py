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

_ON_GRID = 0.4
TYPICAL_ERRORS = {
    "Q2_K": 0.072,
    "IQ2_S": 0.062,
    "Q3_K": 0.021,
    "IQ3_S": 0.019,
    "Q4_0": 0.0067,
    "Q4_1": 0.0049,
    "IQ4_NL": 0.0056,
    "IQ4_XS": 0.0057,
    "Q4_K": 0.0050,
    "Q5_0": 0.0016,
    "Q5_1": 0.0012,
    "Q5_K": 0.0013,
    "Q6_K": 0.00030,
    "Q8_0": 0.000029,
}
"""Relative squared error of normally distributed weights, importance of columns equal."""

TYPES = tuple(TYPICAL_ERRORS)
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


def grid_types(found: Sequence[Damage]) -> frozenset[str]:
    """Return the types whose grid the weights lie on, or nearly: their source had it.

    A grid is met by more types than the one it came from: weights once rounded to Q4_1
    have no error in Q5_1 with importance, a fifteenth of the usual one in Q4_K and a
    quarter in Q5_K. So each type's error is taken in multiples of what it is for
    normally distributed weights, and compared with those of the other types.
    """
    multiples = {
        damage.kind: damage.error / TYPICAL_ERRORS[damage.kind]
        for damage in found
        if damage.kind in TYPICAL_ERRORS
    }
    if not multiples:
        return frozenset()
    usual = float(np.percentile(list(multiples.values()), 75))
    return frozenset(
        kind for kind, multiple in multiples.items() if multiple < _ON_GRID * usual
    )


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
