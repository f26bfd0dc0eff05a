"""SentencePiece vocabularies: their file, their scores, and a tiny Gemma both ways."""

import contextlib
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from slmops.domain.errors import InvalidInputError
from slmops.registry.workspace import Workspace
from slmops.runtimes.base import WorkerSettings
from slmops.runtimes.llamacpp_scorer import LlamaCppScorer
from slmops.testing.tiny_gemma import write_tiny_gemma
from slmops.testing.tiny_gguf import stored_bytes
from slmops.workshop.gguf_file import read_header
from slmops.workshop.hf_export import export_checkpoint
from slmops.workshop.hf_sentencepiece import (
    Piece,
    pieces_message,
    ranked_scores,
    read_pieces,
    score_merges,
)
from slmops.workshop.hf_source import open_checkpoint
from slmops.workshop.models import import_model, reference_path

TEXTS = (
    "the tea is hot",
    "  two  and   three    spaces ",
    "lines\n\n\nand\ttabs",
    "日本 é 👩‍👩‍👧",
    "<table>tea</table> seat",
    "",
    " ",
)

pieces = st.builds(
    Piece,
    text=st.text(min_size=1, max_size=20),
    score=st.floats(width=32, allow_nan=False),
    kind=st.integers(1, 6),
)


@given(st.lists(pieces, min_size=1, max_size=20))
def test_pieces_are_read_as_they_were_written(written: list[Piece]) -> None:
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(pieces_message(written, {"unk": 0}))
        assert read_pieces(Path(file.name)) == tuple(written)


@given(st.binary(max_size=200))
@example(b"\n\x00")  # a piece without a text
def test_any_other_bytes_are_refused_or_read(raw: bytes) -> None:
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(raw)
        with contextlib.suppress(InvalidInputError):
            assert read_pieces(Path(file.name))


def test_ranks_and_scores_order_the_joins_alike() -> None:
    vocabulary = {
        token: i for i, token in enumerate(("a", "b", "c", "bc", "ab", "abc"))
    }
    merges = ["b c", "a b", "a bc", "ab c"]
    scores = ranked_scores(vocabulary, merges)
    joined = {token: scores[index] for token, index in vocabulary.items()}
    assert [" ".join(pair) for pair in score_merges(joined)] == merges


def runtime_tokens(model: Path) -> list[list[int]]:
    scorer = LlamaCppScorer(model, WorkerSettings(context_tokens=64, threads=1))
    try:
        return [scorer.tokenize(text) for text in TEXTS]
    finally:
        scorer.close()


def reimported(folder: Path, root: Path) -> Path:
    workspace = Workspace(root=root)
    return reference_path(workspace, import_model(str(folder), workspace))


@pytest.mark.parametrize("has_file", [True, False])
def test_a_gemma_model_goes_out_and_comes_back(has_file: bool, tmp_path: Path) -> None:
    model = write_tiny_gemma(tmp_path / "gemma.gguf")
    export_checkpoint(model, tmp_path / "hf")
    if not has_file:
        (tmp_path / "hf" / "tokenizer.model").unlink()
    back = reimported(tmp_path / "hf", tmp_path)
    before, after = read_header(model), read_header(back)
    assert {t.name: stored_bytes(after, t) for t in after.tensors} == {
        t.name: stored_bytes(before, t) for t in before.tensors
    }
    kept = {e.key: e.raw for e in after.metadata}
    changed = {e.key for e in before.metadata if kept.get(e.key) != e.raw}
    scores = set() if has_file else {"tokenizer.ggml.scores"}
    assert changed <= {"general.name", "general.license"} | scores
    assert runtime_tokens(back) == runtime_tokens(model)


def test_a_gemma_tokenizer_cuts_as_the_runtime_does(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = write_tiny_gemma(tmp_path / "gemma.gguf")
    export_checkpoint(model, tmp_path / "hf")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    found = [tokenizer.encode(text, add_special_tokens=False) for text in TEXTS]
    assert found == runtime_tokens(model)
    assert tokenizer.encode("tea")[0] == tokenizer.bos_token_id
    assert tokenizer.decode(found[3]) == TEXTS[3]


def test_a_vocabulary_that_contradicts_its_file_is_refused(tmp_path: Path) -> None:
    export_checkpoint(write_tiny_gemma(tmp_path / "gemma.gguf"), tmp_path / "hf")
    path = tmp_path / "hf" / "tokenizer.json"
    document = json.loads(path.read_text())
    vocabulary = document["model"]["vocab"]
    vocabulary["te"], vocabulary["ea"] = vocabulary["ea"], vocabulary["te"]
    path.write_text(json.dumps(document))
    with pytest.raises(InvalidInputError, match=r"as in tokenizer\.model"):
        open_checkpoint(tmp_path / "hf")


GEMMAS_OWN = {
    "type": "Split",
    "pattern": {"String": " "},
    "behavior": "MergedWithPrevious",
    "invert": False,
}


@pytest.mark.parametrize("part", [GEMMAS_OWN, {"type": "Metaspace"}])
def test_splitting_at_spaces_is_read_and_other_splitting_refused(
    part: dict[str, object], tmp_path: Path
) -> None:
    export_checkpoint(write_tiny_gemma(tmp_path / "gemma.gguf"), tmp_path / "hf")
    path = tmp_path / "hf" / "tokenizer.json"
    document = json.loads(path.read_text()) | {"pre_tokenizer": part}
    path.write_text(json.dumps(document))
    if part is GEMMAS_OWN:
        assert open_checkpoint(tmp_path / "hf").tensors
        return
    with pytest.raises(InvalidInputError, match="Metaspace"):
        open_checkpoint(tmp_path / "hf")


def test_other_normalization_is_refused(tmp_path: Path) -> None:
    export_checkpoint(write_tiny_gemma(tmp_path / "gemma.gguf"), tmp_path / "hf")
    path = tmp_path / "hf" / "tokenizer.json"
    document = json.loads(path.read_text()) | {"normalizer": {"type": "NFKC"}}
    path.write_text(json.dumps(document))
    with pytest.raises(InvalidInputError, match="must replace spaces"):
        open_checkpoint(tmp_path / "hf")
