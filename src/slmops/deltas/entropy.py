"""An interleaved range asymmetric numeral system (rANS) coder over numpy arrays.

Many lanes code side by side, so that a step is a few array operations (J. Duda,
"Asymmetric numeral systems", arXiv:1311.2540; F. Giesen, "Interleaved entropy coders",
arXiv:1402.3392). States are 32 bits and renormalise by 16-bit words. All arithmetic is
on integers, or exact in float64: encoder and decoder agree on every machine.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from slmops.domain.errors import InvalidInputError

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint16]
Integers = npt.NDArray[np.uint32]
Counts = npt.NDArray[np.int64]

PRECISION = 13
"""Bits of a probability: slot, frequency and token share one 32-bit table entry."""
TOKENS = 64
TOTAL = 1 << PRECISION
MAX_LANES = 4096
_LOW = 1 << 16


@dataclass(frozen=True, slots=True)
class Model:
    """Probabilities of tokens in each context."""

    frequencies: Integers
    """(contexts, TOKENS); rows sum to TOTAL; 0 cannot be coded."""
    starts: Integers
    """(contexts, TOKENS): cumulated frequencies before a token."""

    @classmethod
    def checked(cls, frequencies: Integers) -> "Model":
        """Make a model of frequencies from anywhere.

        Raises:
            InvalidInputError: a context's frequencies do not sum to `TOTAL`.
        """
        if (frequencies > TOTAL).any() or (frequencies.sum(axis=1) != TOTAL).any():
            raise InvalidInputError(
                f"delta: a context's frequencies must sum to {TOTAL}"
            )
        ends = np.cumsum(frequencies, axis=1, dtype=np.uint32)
        return cls(frequencies, ends - frequencies)

    @classmethod
    def fitted(cls, counts: Counts, escape: int) -> "Model":
        """Fit to counts; `escape` can be coded in every context.

        Args:
            counts: (contexts, TOKENS), how often each token was seen.
            escape: token that stands for those that were not.
        """
        counts = counts.copy()
        counts[:, escape] += 1
        totals = counts.sum(axis=1, keepdims=True)
        scaled = counts * TOTAL // totals
        scaled = np.where((counts > 0) & (scaled == 0), 1, scaled)
        rows = np.arange(len(counts))
        for _ in range(TOKENS):  # what rounding left over goes to the commonest
            missing = TOTAL - scaled.sum(axis=1)
            if not missing.any():
                break
            largest = scaled.argmax(axis=1)
            room = scaled[rows, largest] - 1
            scaled[rows, largest] += np.maximum(missing, -room)
        return cls.checked(scaled.astype(np.uint32))

    def slots(self) -> Integers:
        """Return the decoder's table, (contexts * TOTAL,): token, frequency, offset."""
        slot = np.arange(TOTAL, dtype=np.uint32)
        tokens = np.arange(TOKENS, dtype=np.uint32) << (2 * PRECISION)
        out = np.empty((len(self.frequencies), TOTAL), dtype=np.uint32)
        # One context at a time: all at once would take several times the memory.
        for row, lengths, starts in zip(
            out, self.frequencies, self.starts, strict=True
        ):
            entry = tokens + ((lengths - np.uint32(1)) << PRECISION) - starts
            np.add(np.repeat(entry, lengths), slot, out=row)
        return out.ravel()


@dataclass(slots=True)
class Encoder:
    """Collects tokens, then codes them from the last to the first."""

    batches: list[tuple[Model, Bytes, npt.NDArray[np.intp]]] = field(
        default_factory=list
    )

    def put(self, model: Model, tokens: Bytes, contexts: npt.NDArray[np.intp]) -> None:
        """Add tokens with their contexts, both flat and of one length."""
        self.batches.append((model, tokens, contexts))

    def bits(self) -> float:
        """Return about how many bits the tokens will take."""
        total = 0.0
        for model, tokens, contexts in self.batches:
            cost = PRECISION - np.log2(np.maximum(model.frequencies, 1))
            pairs = contexts * TOKENS + tokens
            seen = np.bincount(pairs, minlength=cost.size)
            total += float((seen * cost.ravel()).sum())
        return total

    def finish(self, lanes: int) -> tuple[Integers, Words]:
        """Return the states that a decoder starts from, and the words it reads."""
        states = np.full(lanes, _LOW, dtype=np.uint32)
        emitted: list[Words] = []
        for model, tokens, contexts in reversed(self.batches):
            at = contexts * TOKENS + tokens
            frequency = model.frequencies.ravel()[at]
            start = model.starts.ravel()[at]
            last = (len(tokens) - 1) // lanes * lanes
            for begin in range(last, -1, -lanes):
                part = slice(begin, begin + lanes)
                _push(states, frequency[part], start[part], emitted)
        words = np.concatenate(emitted[::-1]) if emitted else np.empty(0, np.uint16)
        return states, words


def _push(
    states: Integers, frequency: Integers, start: Integers, emitted: list[Words]
) -> None:
    active = states[: len(frequency)]
    full = (active >> (32 - PRECISION)) >= frequency
    if full.any():
        emitted.append(active[full].astype(np.uint16))
        active = np.where(full, active >> 16, active)
    # Exact: a quotient of 32 by 13 bits is at least 2**-13 from the next integer.
    quotient = (active / frequency).astype(np.uint32)
    states[: len(frequency)] = (
        (quotient << PRECISION) + (active - quotient * frequency) + start
    )


class Decoder:
    """Gives tokens back in the order they were put."""

    def __init__(self, states: Integers, words: Words) -> None:
        self._states = states.copy()
        self._words = words.astype(np.uint32)
        self._next = 0

    def take(self, slots: Integers, contexts: npt.NDArray[np.intp]) -> Bytes:
        """Return the next tokens, one for each context.

        Args:
            slots: `Model.slots`.
            contexts: flat, below the model's number of contexts.

        Raises:
            InvalidInputError: the words end too early.
        """
        out = np.empty(len(contexts), dtype=np.uint8)
        base = (contexts << PRECISION).astype(np.uint32)
        lanes = len(self._states)
        for begin in range(0, len(contexts), lanes):
            where = base[begin : begin + lanes]
            active = self._states[: len(where)]
            entry = slots[where + (active & (TOTAL - 1))]
            out[begin : begin + lanes] = entry >> 26
            frequency = ((entry >> 13) & (TOTAL - 1)) + 1
            active = (active >> PRECISION) * frequency + (entry & (TOTAL - 1))
            self._refill(active)
            self._states[: len(where)] = active
        return out

    def finish(self) -> None:
        """Check that everything was taken.

        Raises:
            InvalidInputError: words are left, or the states are not the first ones.
        """
        if self._next != len(self._words) or (self._states != _LOW).any():
            raise InvalidInputError("delta: coded tokens do not end where they should")

    def _refill(self, active: Integers) -> None:
        empty = active < _LOW
        count = int(np.count_nonzero(empty))
        if not count:
            return
        words = self._words[self._next : self._next + count]
        if len(words) < count:
            raise InvalidInputError("delta: coded tokens end too early")
        active[empty] = active[empty] << 16 | words
        self._next += count
