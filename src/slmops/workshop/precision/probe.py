"""One loaded model whose weights are changed under it, one tensor at a time.

The runtime maps the file it loads. A private copy of the model is loaded once, a
tensor's bytes are overwritten in the file with rounded weights of the same type, and the
runtime computes with them: no reload, one pass over the text a measurement. That the
mapping shows the change is checked, never assumed: a runtime that copies or reorders
16-bit weights would measure nothing.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from slmops.domain.errors import UnavailableError
from slmops.runtimes.base import Scorer, WorkerSettings, load_runtime
from slmops.workshop.gguf_file import TensorEntry, read_header
from slmops.workshop.quantize import Matrix, decode_rows, encode_rows, read_rows
from slmops.workshop.score_file import (
    context_of,
    cut_windows,
    divergence,
    log_softmax,
    logit_chunks,
    top_of,
)

Change = Callable[[Matrix], Matrix]
"""Gives (rows, width) weights from weights."""

_SAME = 1e-6
"""Divergence, nats, that the model may have from itself: rounding of what is kept."""


class Probe:
    """A model in its runtime, and what it said of a text before it was changed."""

    def __init__(
        self,
        scorer: Scorer,
        files: tuple[Path, Path],
        windows: npt.NDArray[np.int32],
    ) -> None:
        """Score the text once; see `open_probe`.

        Args:
            scorer: has mapped the copy.
            files: the model, which is never written, and its copy.
            windows: (windows, tokens) token ids.
        """
        self._scorer = scorer
        self._model, self._path = files
        self._windows = windows
        self._reference = [
            [top_of(part) for part in self._logprobs(window)] for window in windows
        ]
        self.tensors: Mapping[str, TensorEntry] = {
            tensor.name: tensor for tensor in read_header(self._model).tensors
        }

    @property
    def positions(self) -> int:
        """Scored positions."""
        return sum(len(rest) for window in self._reference for _, _, rest in window)

    def rows(self, name: str, places: npt.NDArray[np.intp]) -> Matrix:
        """Return some rows of a tensor's own weights, (places, width)."""
        tensor = self.tensors[name]
        row_bytes = tensor.bytes // tensor.rows
        with self._model.open("rb") as file:
            raw = b"".join(
                os.pread(file.fileno(), row_bytes, tensor.offset + place * row_bytes)
                for place in places.tolist()
            )
        return decode_rows(raw, tensor.kind, len(places), tensor.width)

    @contextmanager
    def changed(self, name: str, change: Change) -> Iterator[None]:
        """Let a tensor have other weights for a while.

        Args:
            name: of the tensor.
            change: gives the weights of some rows, (rows, width), from their own. It is
                asked for some rows at a time: an embedding may be larger than memory.
        """
        self._write(name, change)
        try:
            yield
        finally:
            self._write(name, lambda rows: rows)

    def kld(self) -> float:
        """Return the mean KL divergence from the unchanged model, nats.

        Raises:
            InvalidInputError: the model's logits are not finite.
        """
        found = [
            divergence(
                top, rest, np.take_along_axis(part, ids.astype(np.int64), axis=1)
            )
            for window, reference in zip(self._windows, self._reference, strict=True)
            for part, (ids, top, rest) in zip(
                self._logprobs(window), reference, strict=True
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
        with self.changed(name, np.zeros_like):
            found = self.kld()
        if found <= _SAME:
            raise UnavailableError(
                "the runtime does not compute with the mapped file: all of"
                f" {name} was set to zero without any effect"
            )

    def _write(self, name: str, change: Change) -> None:
        tensor = self.tensors[name]
        descriptor = os.open(self._path, os.O_RDWR)
        at = tensor.offset
        try:
            with self._model.open("rb") as file:
                for rows in read_rows(file, tensor):
                    raw = encode_rows(change(rows), tensor.kind)
                    written = os.pwrite(descriptor, raw, at)
                    if written != len(raw):
                        raise UnavailableError(
                            f"{self._path}: only {written} bytes were written"
                        )
                    at += written
        finally:
            os.close(descriptor)

    def _logprobs(
        self, window: npt.NDArray[np.int32]
    ) -> Iterator[npt.NDArray[np.float64]]:
        """Yield log-probabilities of a window's scored positions, some rows at a time."""
        context = context_of(len(window))
        logits = self._scorer.logits(window.tolist())[context - 1 : -1]
        for rows in logit_chunks(logits):
            yield log_softmax(rows)


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
        yield Probe(scorer, (model, scratch), windows)
    finally:
        scorer.close()
        scratch.unlink(missing_ok=True)
