"""How Llama 3 stretches its context: frequency factors from four numbers."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

LLAMA3_SCALINGS: tuple[Mapping[str, Any], ...] = tuple(
    {
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    for factor in (8.0, 32.0)
)
"""Of Llama 3.1 and of Llama 3.2."""


def llama3_factors(
    scaling: Mapping[str, Any], base: float, width: int
) -> npt.NDArray[np.float32]:
    """Return divisors of the rotation frequencies.

    Args:
        scaling: ``factor``, ``low_freq_factor``, ``high_freq_factor`` and
            ``original_max_position_embeddings`` of a configuration.
        base: rope's theta.
        width: of a head, even.

    Returns:
        (width / 2,) float32, from 1 to the factor.
    """
    low = scaling.get("low_freq_factor", 1)
    high = scaling.get("high_freq_factor", 4)
    factor = float(scaling.get("factor", 8))
    trained = scaling.get("original_max_position_embeddings", 8192)
    waves = 2 * math.pi * base ** (np.arange(0, width, 2, dtype=np.float64) / width)
    smooth = (trained / waves - low) / (high - low)
    mixed = 1 / ((1 - smooth) / factor + smooth)
    factors = np.where(waves > trained / low, factor, mixed)
    return np.where(waves < trained / high, 1.0, factors).astype(np.float32)
