"""Compensated rounding: every weight makes up for the errors of those before it.

Rounding to nearest minimizes the error of weights; what counts is the error of the
matrix's output, ``tr(E H Eᵀ)`` with *E* the error of the weights and *H* the second
moments of its inputs. With ``H = R Rᵀ``, *R* upper triangular, column *j*
of ``E R`` is ``R_jj (E_j + Σ_{i<j} E_i R_ij / R_jj)``: so column *j* is rounded not
where its weights are, but where they would have to be to make up for the columns before.
This is GPTQ (Frantar et al. 2022) in the form of Babai's nearest plane (Chen et al.
2025, "The geometry of LLM quantization"), which needs no inverse of *H*.

llama.cpp's types share scales among neighbouring columns. So columns go block by block,
the most important block first, and inside a block the most important column first.
Scales come from `libgguf`'s own search on what the block should be by then, weighted
by ``R_jj²``: what an error costs once later columns make up for the rest of it. Where
one number scales a block, some multiples of it are tried, and the best is kept row by
row.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from slmops.domain.errors import InvalidInputError
from slmops.workshop.gguf_file import BLOCKS, TensorEntry
from slmops.workshop.precision.blocks import (
    BlockType,
    Bytes,
    as_blocks,
    find_block_type,
    rescaled,
)
from slmops.workshop.precision.statistics_file import Statistics
from slmops.workshop.quantize import Encoder, Matrix, encode_rows

SHRINKAGE = 0.15
"""Part of what *H* says about pairs of channels that is not believed.

Moments of some thousand tokens overstate how inputs go together. Shrinking them towards
the diagonal (Ledoit and Wolf 2004) makes the error less on other text. Of 0 to 40 %, 15 %
left least of it in Q4_0 and nearly so in Q5_0, over 35 matrices of SmolLM2-135M and on text
that neither the moments nor any evaluation saw; between 10 and 30 % it hardly matters."""
DAMPING = 0.003
"""Added to the diagonal of *H*, in multiples of its mean, so that it has a factor."""
FACTORS = (0.94, 0.97, 1.03, 1.06)
"""Multiples of a block's scale that are tried."""
_RESOLUTION = 2
"""Cells of the table of nearest codes in one unit of level: levels are whole numbers,
so borders between codes are borders of cells."""

Codes = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, slots=True)
class Compensation:
    """A `quantize.Rounder` by second moments; other types are left to nearest."""

    statistics: Statistics
    """With moments."""
    shrinkage: float = SHRINKAGE
    """See `SHRINKAGE`; 0 to 1."""
    factors: tuple[float, ...] = FACTORS
    """See `FACTORS`."""

    def __call__(self, tensor: TensorEntry, kind: str) -> Encoder | None:
        """Return the encoder of one tensor; None where nothing can be compensated.

        Raises:
            InvalidInputError: the moments are those of another width, or no moments.
        """
        block_type = find_block_type(kind)
        moment = self.statistics.moment(tensor.name) if block_type else None
        if block_type is None or moment is None:
            return None
        if len(moment) != tensor.width:
            raise InvalidInputError(
                f"moments of {tensor.name} must be {tensor.width} wide,"
                f" got {len(moment)}: these are another model's statistics"
            )
        plan = make_plan(moment, BLOCKS[kind][0], self.shrinkage)
        rounding = _Rounding(
            kind=kind, block_type=block_type, plan=plan, factors=self.factors
        )
        return rounding.encode


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """In which order columns are rounded, and what they owe each other."""

    order: npt.NDArray[np.int64]
    """(width,) columns as they come: whole blocks, permuted inside."""
    share: Matrix
    """(width, width) strictly upper: ``R_ij / R_jj``, in that order."""
    cost: npt.NDArray[np.float32]
    """(width,) ``R_jj²``, in that order."""
    block: int
    """Columns of a block."""


def make_plan(moment: Matrix, block: int, shrinkage: float) -> Plan:
    """Factor second moments for blocks of `block` columns.

    Channels that were always 0 get the damping alone; moments that are all 0 leave
    every column to itself.
    """
    weight = moment.diagonal().astype(np.float64)
    mean = float(weight.mean()) or 1.0
    matrix = moment.astype(np.float64) * (1 - shrinkage)
    matrix[np.diag_indices_from(matrix)] = weight + DAMPING * mean
    inside = np.argsort(-weight.reshape(-1, block), axis=1, kind="stable")
    blocks = np.argsort(-weight.reshape(-1, block).sum(axis=1), kind="stable")
    order = (inside + block * np.arange(len(inside))[:, None])[blocks].ravel()
    # Upper times lower is lower times upper of the matrix turned around.
    turned = np.linalg.cholesky(matrix[np.ix_(order[::-1], order[::-1])])
    factor = turned[::-1, ::-1]
    diagonal = factor.diagonal()
    return Plan(
        order=order,
        share=np.triu(factor / diagonal, 1).astype(np.float32),
        cost=(diagonal**2).astype(np.float32),
        block=block,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Rounding:
    kind: str
    block_type: BlockType
    plan: Plan
    factors: tuple[float, ...]

    def encode(self, rows: Matrix) -> bytes:
        """Turn (rows, width) float32 into blocks."""
        count, width = rows.shape
        done = np.empty((width, count), np.float32)
        raw = np.empty(
            (count, width // self.plan.block, BLOCKS[self.kind][1]), np.uint8
        )
        for first in range(0, width, self.plan.block):
            columns = self.plan.order[first : first + self.plan.block]
            wanted = np.ascontiguousarray(rows[:, columns].T)
            owed = self.plan.share[:first, first : first + self.plan.block]
            target = wanted + owed.T @ done[:first]
            blocks, values = self._rounded_block(target, first)
            done[first : first + self.plan.block] = wanted - values
            raw[:, columns.min() // self.plan.block] = blocks
        return raw.tobytes()

    def _rounded_block(self, target: Matrix, first: int) -> tuple[Bytes, Matrix]:
        """Round one block of columns.

        Args:
            target: (block, rows) what the columns should be, those before considered.
            first: place of its first column in the order.

        Returns:
            Blocks, (rows, block bytes); their weights, (block, rows).
        """
        columns = self.plan.order[first : first + self.plan.block]
        place = columns - columns.min()
        natural = np.empty(target.T.shape, np.float32)
        natural[:, place] = target.T
        cost = self.plan.cost[first : first + self.plan.block]
        importance = np.empty_like(cost)
        importance[place] = cost
        found = as_blocks(encode_rows(natural, self.kind, importance), self.kind)
        best = self._trial(found, target, first, place)
        # Once more for what the columns really had to be: later ones of a block move.
        natural[:, place] = best.aims.T
        found = as_blocks(encode_rows(natural, self.kind, importance), self.kind)
        for candidate in self._candidates(best.blocks, found):
            best = best.better(self._trial(candidate, target, first, place))
        self.block_type.store(best.blocks, best.codes)
        return best.blocks, best.values

    def _candidates(self, best: Bytes, again: Bytes) -> Iterator[Bytes]:
        yield again
        if self.block_type.scalable:
            for factor in self.factors:
                yield rescaled(best, factor)

    def _trial(
        self, blocks: Bytes, target: Matrix, first: int, place: npt.NDArray[np.int64]
    ) -> "_Trial":
        """Round a block's columns one after the other under given scales."""
        size, rows = target.shape
        grid = self.block_type.grid(blocks)
        scale = np.ascontiguousarray(grid.scale.T[place])
        offset = np.ascontiguousarray(grid.offset.T[place])
        with np.errstate(divide="ignore"):
            inverse = np.where(scale == 0, np.float32(0), 1 / scale)
        share = self.plan.share[first : first + size, first : first + size]
        nearest = _Nearest.of(self.block_type.levels)
        errors, aims = np.empty_like(target), np.empty_like(target)
        codes = np.empty((rows, size), np.uint8)
        loss = np.zeros(rows, np.float32)
        for column in range(size):
            aim = target[column] + share[:column, column] @ errors[:column]
            aims[column] = aim
            chosen = nearest.codes((aim - offset[column]) * inverse[column])
            value = self.block_type.levels[chosen] * scale[column] + offset[column]
            codes[:, place[column]] = chosen
            # Of the weights as they were: what the target holds beyond them cancels.
            errors[column] = target[column] - value
            missed = aim - value
            loss += self.plan.cost[first + column] * missed * missed
        return _Trial(
            blocks=blocks, codes=codes, values=target - errors, aims=aims, loss=loss
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Trial:
    """One block of columns rounded under some scales."""

    blocks: Bytes
    codes: Codes
    values: Matrix
    """(block, rows)."""
    aims: Matrix
    """(block, rows) what each column had to be, those before considered."""
    loss: npt.NDArray[np.float32]
    """(rows,)."""

    def better(self, other: "_Trial") -> "_Trial":
        """Take each row from whichever lost less on it; ties stay here."""
        switch = other.loss < self.loss
        return _Trial(
            blocks=np.where(switch[:, None], other.blocks, self.blocks),
            codes=np.where(switch[:, None], other.codes, self.codes),
            values=np.where(switch, other.values, self.values),
            aims=np.where(switch, other.aims, self.aims),
            loss=np.minimum(self.loss, other.loss),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Nearest:
    """Nearest code of a level, by a table."""

    first: np.float32
    table: Codes

    @classmethod
    def of(cls, levels: Matrix) -> "_Nearest":
        count = int((levels[-1] - levels[0]) * _RESOLUTION)
        centers = levels[0] + (np.arange(count) + 0.5) / _RESOLUTION
        middles = (levels[1:] + levels[:-1]) / 2
        table = np.searchsorted(middles, centers).astype(np.uint8)
        return cls(first=levels[0], table=table)

    def codes(self, values: npt.NDArray[np.float32]) -> Codes:
        places = (values - self.first) * np.float32(_RESOLUTION)
        np.clip(places, 0, len(self.table) - 1, out=places)
        found: Codes = self.table[places.astype(np.int32)]
        return found
