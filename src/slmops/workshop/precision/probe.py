"""One loaded model whose weights are changed under it, one tensor at a time.

The runtime maps the file it loads. A private copy of the model is loaded once, a
tensor's bytes are overwritten in the file with rounded weights of the same type, and the
runtime computes with them: no reload, one pass over the text a measurement. That the
mapping shows the change is checked, never assumed: a runtime that copies or reorders
16-bit weights would measure nothing.
"""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from slmops.domain.errors import InvalidInputError, UnavailableError
from slmops.runtimes.base import Scorer, WorkerSettings, load_runtime
from slmops.workshop.gguf_file import TensorEntry, read_header
from slmops.workshop.quantize import Matrix, decode_rows, encode_rows
from slmops.workshop.score_file import (
    context_of,
    cut_windows,
    divergence,
    log_softmax,
    top_of,
)

_SAME = 1e-6
"""Divergence, nats, that the model may have from itself: rounding of what is kept."""


class Probe:
    """A model in its runtime, and what it said of a text before it was changed."""

    def __init__(
        self, scorer: Scorer, path: Path, windows: npt.NDArray[np.int32]
    ) -> None:
        """Score the text once; see `open_probe`."""
        self._scorer = scorer
        self._path = path
        self._windows = windows
        self._reference = [top_of(self._logprobs(window)) for window in windows]
        self.tensors: Mapping[str, TensorEntry] = {
            tensor.name: tensor for tensor in read_header(path).tensors
        }

    @property
    def positions(self) -> int:
        """Scored positions."""
        return sum(len(rest) for _, _, rest in self._reference)

    def weights(self, name: str) -> Matrix:
        """Return a tensor's weights as they are in the file now, (rows, width)."""
        tensor = self.tensors[name]
        with self._path.open("rb") as file:
            raw = os.pread(file.fileno(), tensor.bytes, tensor.offset)
        return decode_rows(raw, tensor.kind, tensor.rows, tensor.width)

    @contextmanager
    def changed(self, name: str, values: Matrix) -> Iterator[None]:
        """Let a tensor have other weights for a while."""
        before = self.weights(name)
        self._write(name, values)
        try:
            yield
        finally:
            self._write(name, before)

    def kld(self) -> float:
        """Return the mean KL divergence from the unchanged model, nats.

        Raises:
            InvalidInputError: the model's logits are not finite.
        """
        found = [
            divergence(
                top,
                rest,
                np.take_along_axis(
                    self._logprobs(window), ids.astype(np.int64), axis=1
                ),
            )
            for window, (ids, top, rest) in zip(
                self._windows, self._reference, strict=True
            )
        ]
        return float(np.concatenate(found).mean(dtype=np.float64))

    def check_restored(self) -> None:
        """Check that the model is its old self again.

        Raises:
            UnavailableError: it is not.
        """
        found = self.kld()
        if found > _SAME:
            raise UnavailableError(
                f"weights were not restored: KL divergence from itself is {found:.2g}"
            )

    def check_mapping(self, name: str) -> None:
        """Check that the runtime computes with what is written to the file.

        Raises:
            UnavailableError: it does not.
        """
        with self.changed(name, np.zeros_like(self.weights(name))):
            found = self.kld()
        if found <= _SAME:
            raise UnavailableError(
                "the runtime does not compute with the mapped file: all of"
                f" {name} was set to zero without any effect"
            )

    def _write(self, name: str, values: Matrix) -> None:
        tensor = self.tensors[name]
        raw = encode_rows(values, tensor.kind)
        descriptor = os.open(self._path, os.O_RDWR)
        try:
            written = os.pwrite(descriptor, raw, tensor.offset)
        finally:
            os.close(descriptor)
        if written != len(raw):
            raise UnavailableError(f"{self._path}: only {written} bytes were written")

    def _logprobs(self, window: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
        context = context_of(len(window))
        logits = self._scorer.logits(window.tolist())[context - 1 : -1]
        if not np.isfinite(logits).all():
            raise InvalidInputError(
                "the model's logits are not finite: its weights are bad"
            )
        return log_softmax(logits)


@contextmanager
def open_probe(
    model: Path, text: str, scratch: Path, *, settings: WorkerSettings, tokens: int
) -> Iterator[Probe]:
    """Load a private copy of a 16-bit model and score a text with it.

    Args:
        model: 16-bit GGUF; never written.
        text: long enough for two windows.
        scratch: where the copy goes; removed afterwards.
        settings: context length is the length of a window.
        tokens: positions to score.

    Raises:
        InvalidInputError: the text is too short; the model is refused or not finite.
        UnavailableError: the runtime is not installed.
    """
    shutil.copyfile(model, scratch)
    scorer = load_runtime("llamacpp").open_scorer(scratch, settings)
    try:
        windows = cut_windows(scorer.tokenize(text), settings.context_tokens, tokens)
        yield Probe(scorer, scratch, windows)
    finally:
        scorer.close()
        scratch.unlink(missing_ok=True)
