"""What tokens write, as llama.cpp's scorer tells it."""

from pathlib import Path

import pytest

from slmops.domain.errors import InvalidInputError
from slmops.runtimes.base import WorkerSettings, load_runtime
from slmops.testing.tiny_gguf import write_tiny_llama


def test_pieces_of_a_text_join_to_the_text(tmp_path: Path) -> None:
    model = write_tiny_llama(tmp_path / "tiny.gguf")
    scorer = load_runtime("llamacpp").open_scorer(model, WorkerSettings())
    text = "See the Übermaß: 3 × 7\n\n\tend 🙂"
    try:
        tokens = scorer.tokenize(text)
        assert b"".join(map(scorer.piece, tokens)) == text.encode()
        assert scorer.piece(1) == b"<|im_start|>"
        with pytest.raises(InvalidInputError, match="token ids must be 0 to 299"):
            scorer.piece(300)
    finally:
        scorer.close()
