"""Choose blocks to remove by measuring what the model loses without them.

Greedy: take out the unit whose loss raises the KL divergence from the whole model
least, and look again, because what a block is worth depends on which others are left.
Lazy (Minoux 1978): a unit is measured again only while its old value, which grows as
others go, is still the smallest. That is exact as long as no unit becomes cheaper to
remove, and needs about half of the measurements.

A block whose two output matrices are zero adds nothing to the residual stream: it
computes what its removal computes, bit for bit. So one scratch copy of the model serves
all trials, and only those matrices are written. Every measurement is kept, so a killed
job continues where it was.
"""

import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from slmops.runtimes.base import Scorer, WorkerSettings, load_runtime
from slmops.wire.codec import decode_json, encode_json, encode_json_pretty
from slmops.workshop.gguf_file import GgufHeader
from slmops.workshop.jobs.job import Report
from slmops.workshop.score_file import (
    ReferenceScores,
    cut_windows,
    load_scores,
    save_scores,
)
from slmops.workshop.score_job import candidate_scores, reference_scores
from slmops.workshop.structure.model_edit import read_text

_OUTPUTS = re.compile(r"blk\.(\d+)\.(attn_output|ffn_down)\.(weight|bias)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Removal:
    """Blocks that went together."""

    blocks: tuple[int, ...]
    """Numbers in the model as it was."""
    kld: float | None = None
    """Mean KL divergence from the whole model after it, nats; None if not measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Removals:
    """What went, first to last."""

    removed: tuple[Removal, ...] = ()
    """In order."""
    measurements: int = 0
    """Models that were scored to find it."""

    @classmethod
    def chosen(cls, units: Iterable[tuple[int, ...]]) -> "Removals":
        """Return removals that were not measured."""
        return cls(removed=tuple(Removal(blocks=unit) for unit in units))

    @property
    def blocks(self) -> tuple[int, ...]:
        """All that went."""
        return tuple(block for removal in self.removed for block in removal.blocks)


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """How trials are scored."""

    model: GgufHeader
    """The whole model."""
    text: Path
    """UTF-8; not the text a build is judged by."""
    state: Path
    """Folder for the scratch model and what was measured."""
    tokens: int = 768
    """Positions to score."""
    window_tokens: int = 256
    """Length of a window."""
    runtime: str = "llamacpp"
    """Scores them."""
    threads: int = 1
    """Of the runtime."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Known:
    """One measurement: what the model loses without `unit` and all before it."""

    round: int
    """How many units were gone."""
    unit: int
    """Index of the unit."""
    kld: float
    """Mean KL divergence, nats."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Journal:
    """What earlier runs of this job measured, in order."""

    known: tuple[_Known, ...] = field(default=())
    """Every measurement."""


def measured_removals(
    measurement: Measurement,
    units: Sequence[tuple[int, ...]],
    count: int,
    report: Report,
) -> Removals:
    """Remove `count` units greedily.

    Args:
        measurement: how to score.
        units: blocks that go together; no block is in two.
        count: units to remove, fewer than there are.
        report: told how many of the expected measurements are done.

    Raises:
        InvalidInputError: the text is too short for two windows, or logits are bad.
    """
    trials = _Trials(measurement, units)
    gone: list[int] = []
    removed: list[Removal] = []
    values = dict.fromkeys(range(len(units)), 0.0)
    measured_in = dict.fromkeys(range(len(units)), -1)
    done = 0
    while len(gone) < count:
        best = min(values, key=lambda unit: (values[unit], unit))
        if measured_in[best] == len(gone):
            gone.append(best)
            removed.append(Removal(blocks=units[best], kld=values.pop(best)))
            continue
        values[best] = trials.kld([*gone, best])
        measured_in[best] = len(gone)
        done += 1
        # Later rounds measure about half of the units again.
        report(done, max(len(units) * (count + 1) // 2, done + 1))
    return Removals(removed=tuple(removed), measurements=done)


def save_removals(removals: Removals, path: Path) -> None:
    """Write what went as JSON."""
    path.write_text(encode_json_pretty(removals))


class _Trials:
    """Scores the model without some units; remembers over kills."""

    def __init__(self, how: Measurement, units: Sequence[tuple[int, ...]]) -> None:
        self._how = how
        self._units = units
        self._journal = how.state / "measured.json"
        self._model = how.state / "trial.gguf"
        self._zeroed: set[int] | None = None
        self._known = _Journal()
        if self._journal.exists():
            raw = self._journal.read_bytes()
            self._known = decode_json(raw, _Journal, where=str(self._journal))
        self._read = {(k.round, k.unit): k.kld for k in self._known.known}
        self._reference: ReferenceScores | None = None

    def kld(self, gone: Sequence[int]) -> float:
        """Return the mean KL divergence without the units `gone`, nats."""
        key = (len(gone) - 1, gone[-1])
        if key not in self._read:
            self._read[key] = self._measured(gone)
            known = _Known(round=key[0], unit=key[1], kld=self._read[key])
            self._known = _Journal(known=(*self._known.known, known))
            scratch = self._journal.with_suffix(".new")
            scratch.write_bytes(encode_json(self._known))
            scratch.replace(self._journal)
        return self._read[key]

    def _measured(self, gone: Sequence[int]) -> float:
        reference = self._reference or self._scored_reference()
        self._reference = reference
        self._zero({block for unit in gone for block in self._units[unit]})
        scorer = self._open(self._model)
        try:
            scores = candidate_scores(scorer, reference, lambda done, total: None)
        finally:
            scorer.close()
        return float(scores.kld.mean())

    def _scored_reference(self) -> ReferenceScores:
        path = self._how.state / "reference.npz"
        if path.exists():
            return load_scores(path, ReferenceScores)
        text = read_text(self._how.text)
        scorer = self._open(self._how.model.path)
        try:
            tokens = scorer.tokenize(text)
            windows = cut_windows(tokens, self._how.window_tokens, self._how.tokens)
            scores = reference_scores(scorer, windows, lambda done, total: None)
        finally:
            scorer.close()
        scratch = path.with_suffix(".new")
        save_scores(scores, scratch)
        scratch.replace(path)
        return scores

    def _open(self, path: Path) -> Scorer:
        settings = WorkerSettings(
            threads=self._how.threads, context_tokens=self._how.window_tokens
        )
        return load_runtime(self._how.runtime).open_scorer(path, settings)

    def _zero(self, blocks: set[int]) -> None:
        """Make the scratch model one in which exactly `blocks` add nothing."""
        if self._zeroed is None:
            shutil.copyfile(self._how.model.path, self._model)
            self._zeroed = set()
        with (
            self._how.model.path.open("rb") as source,
            self._model.open("r+b") as trial,
        ):
            for tensor in self._how.model.tensors:
                found = _OUTPUTS.fullmatch(tensor.name)
                if found is None or int(found[1]) not in blocks ^ self._zeroed:
                    continue
                source.seek(tensor.offset)
                trial.seek(tensor.offset)
                whole = int(found[1]) not in blocks
                trial.write(source.read(tensor.bytes) if whole else bytes(tensor.bytes))
        self._zeroed = set(blocks)
