"""SparseGPT: prune a matrix column by column and let later columns make up for it.

Frantar & Alistarh 2023, algorithm 1. With *H* the second moments of the input, removing
weight *w_c* of a row costs ``w_c² / U_cc²`` once the columns behind *c* are updated by
``-w_c / U_cc * U_c``, where *U* is the upper Cholesky factor of ``H⁻¹``. Unlike the
paper's run, moments are those of the dense model for every layer: layers are pruned
independently, in any order, from one pass over the calibration text.
"""

import numpy as np
import numpy.typing as npt

from slmops.workshop.quantize import Matrix

BLOCK_COLUMNS = 128
"""Columns whose mask is chosen together; the paper's size."""
_DAMPING = 0.01
_GROUP, _GONE_OF_GROUP = 4, 2

Wide = npt.NDArray[np.float64]


def sparsegpt(
    weights: Matrix, moment: Matrix, share: float, *, fours: bool = False
) -> Matrix:
    """Prune a matrix with compensation.

    Args:
        weights: (rows, columns).
        moment: (columns, columns), E[x xᵀ] of the inputs.
        share: of zeros, in every block of columns.
        fours: take two of each four neighbours instead; columns a multiple of 4.

    Returns:
        (rows, columns) with zeros.
    """
    left = weights.astype(np.float64)
    factor = _factor(moment.astype(np.float64), left)
    columns = left.shape[1]
    for first in range(0, columns, BLOCK_COLUMNS):
        last = min(first + BLOCK_COLUMNS, columns)
        inner = factor[first:last, first:last]
        errors = _pruned_block(left[:, first:last], inner, share, fours=fours)
        left[:, last:] -= errors @ factor[first:last, last:]
    return left.astype(np.float32)


def _factor(moment: Wide, weights: Wide) -> Wide:
    """Return the upper Cholesky factor of the damped moments' inverse.

    A channel that is always zero gets zero weights: nothing depends on them.
    """
    diagonal = np.diag_indices_from(moment)
    dead = moment[diagonal] == 0
    weights[:, dead] = 0
    moment[diagonal] += np.where(dead, 1.0, 0.0)
    moment[diagonal] += _DAMPING * moment[diagonal].mean()
    return np.linalg.cholesky(np.linalg.inv(moment)).T


def _pruned_block(block: Wide, factor: Wide, share: float, *, fours: bool) -> Wide:
    """Prune a block of columns in place; return its errors, (rows, columns)."""
    scale = np.diag(factor)
    errors = np.zeros_like(block)
    gone = np.zeros(block.shape, np.bool_) if fours else _cheapest(block, scale, share)
    for column in range(block.shape[1]):
        if fours and column % _GROUP == 0:
            group = slice(column, column + _GROUP)
            costs = np.square(block[:, group] / scale[group])
            order = np.argsort(costs, axis=1, kind="stable")[:, :_GONE_OF_GROUP]
            np.put_along_axis(gone[:, group], order, values=True, axis=1)
        removed = np.where(gone[:, column], block[:, column], 0.0)
        errors[:, column] = removed / scale[column]
        block[:, column:] -= np.outer(errors[:, column], factor[column, column:])
        block[gone[:, column], column] = 0.0
    return errors


def _cheapest(block: Wide, scale: Wide, share: float) -> npt.NDArray[np.bool_]:
    costs = np.square(block / scale).ravel()
    gone = np.zeros(costs.shape, np.bool_)
    gone[np.argsort(costs, kind="stable")[: int(share * costs.size)]] = True
    return gone.reshape(block.shape)
