"""Exporting a GGUF model as a checkpoint: the way back, byte by byte."""

import json
from pathlib import Path

import pytest

from slmops.domain.errors import ConflictError, InvalidInputError
from slmops.registry.workspace import Workspace
from slmops.runtimes.base import WorkerSettings
from slmops.runtimes.llamacpp_scorer import LlamaCppScorer
from slmops.testing.tiny_gguf import (
    TinyLlama,
    stored_bytes,
    tiny_metadata,
    tiny_weights,
    write_tiny_llama,
)
from slmops.workshop.gguf_file import TensorEntry, read_header
from slmops.workshop.gguf_writer import metadata_entry, with_metadata, write_gguf
from slmops.workshop.hf_export import export_checkpoint
from slmops.workshop.models import import_model, reference_path

TRICKY = (
    "Hello world",
    "  two spaces,\ttabs\n\n\nand lines ",
    "don't we'll I'VE 12345 3.14 ½ Ⅷ ١٢٣",
    "naïve café – “quotes” … 日本語テキスト 한국어 עברית",
    "emoji 👩‍👩‍👧‍👦 🏳️‍🌈 \u200b zero width",
    "e\u0301 combining, \u00a0 no-break, \u3000 wide",
    "def f(x):\r\n    return x**2  # code\r\n",
    "x" * 300,
    " ",
    "\x00\x01\x7f control",
)
"""Texts that splitting rules disagree about first."""


def reimported(folder: Path, root: Path) -> Path:
    workspace = Workspace(root=root)
    return reference_path(workspace, import_model(str(folder), workspace))


def runtime_tokens(model: Path, texts: tuple[str, ...]) -> list[list[int]]:
    scorer = LlamaCppScorer(model, WorkerSettings(context_tokens=64, threads=1))
    try:
        return [scorer.tokenize(text) for text in texts]
    finally:
        scorer.close()


def checkpoint_tokens(folder: Path, texts: tuple[str, ...]) -> list[list[int]]:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return [tokenizer.encode(text, add_special_tokens=False) for text in texts]


SHAPES = {
    "whole": TinyLlama(),
    "one layer": TinyLlama(layers=1),
    "narrow feed-forward": TinyLlama(feed_forward=96),
    "one head group": TinyLlama(heads=2, kv_heads=1),
    "small vocabulary": TinyLlama(vocabulary=280),
}


@pytest.mark.parametrize("case", SHAPES)
def test_an_exported_model_imports_as_it_was(case: str, tmp_path: Path) -> None:
    model = write_tiny_llama(tmp_path / "tiny.gguf", sizes=SHAPES[case])
    export_checkpoint(model, tmp_path / "hf")
    before, after = (
        read_header(path) for path in (model, reimported(tmp_path / "hf", tmp_path))
    )
    assert {t.name: stored_bytes(after, t) for t in after.tensors} == {
        t.name: stored_bytes(before, t) for t in before.tensors
    }
    kept = {e.key: e.raw for e in after.metadata}
    changed = {e.key for e in before.metadata if kept.get(e.key) != e.raw}
    assert changed <= {"general.name", "general.license"}


def test_a_checkpoint_is_never_overwritten(tmp_path: Path) -> None:
    model = write_tiny_llama(tmp_path / "tiny.gguf")
    export_checkpoint(model, tmp_path / "hf")
    with pytest.raises(ConflictError, match="holds a checkpoint"):
        export_checkpoint(model, tmp_path / "hf")


def test_an_export_that_was_stopped_is_written_again(tmp_path: Path) -> None:
    model = write_tiny_llama(tmp_path / "tiny.gguf")

    def stop(what: str, done: float, total: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_checkpoint(model, tmp_path / "hf", progress=stop)
    assert not (tmp_path / "hf" / "config.json").exists()
    export_checkpoint(model, tmp_path / "hf")
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["head_dim"] == 16


def test_a_quantized_model_is_refused(smollm2_gguf: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="quantized"):
        export_checkpoint(smollm2_gguf, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def test_heads_that_do_not_divide_the_width_are_refused(tmp_path: Path) -> None:
    model = write_tiny_llama(tmp_path / "tiny.gguf", heads=3, kv_heads=1)
    with pytest.raises(InvalidInputError, match="multiple of its 3 heads"):
        export_checkpoint(model, tmp_path / "hf")


def test_a_tiny_tokenizer_cuts_as_the_runtime_does(tmp_path: Path) -> None:
    model = write_tiny_llama(tmp_path / "tiny.gguf")
    export_checkpoint(model, tmp_path / "hf")
    wanted = runtime_tokens(model, TRICKY)
    assert checkpoint_tokens(tmp_path / "hf", TRICKY) == wanted


def test_template_and_special_tokens_are_carried(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = write_tiny_llama(tmp_path / "tiny.gguf")
    export_checkpoint(model, tmp_path / "hf")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], add_generation_prompt=True, tokenize=False
    )
    assert chat == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    assert tokenizer.encode("<|im_start|>") == [1]
    assert tokenizer.decode(tokenizer.encode("é 12 ok")) == "é 12 ok"


@pytest.mark.slow
@pytest.mark.parametrize("rules", ["gpt-2", "smollm", "qwen2", "llama-bpe"])
def test_splitting_rules_cut_a_real_vocabulary_as_the_runtime_does(
    rules: str, smollm2_gguf: Path, tmp_path: Path
) -> None:
    words = [
        entry
        for entry in read_header(smollm2_gguf).metadata
        if entry.key.startswith("tokenizer.")
    ]
    rule = metadata_entry("tokenizer.ggml.pre", rules, "STRING")
    sizes = TinyLlama(width=32, layers=1, heads=2, kv_heads=1, vocabulary=49152)
    tiny = [e for e in tiny_metadata(TinyLlama()) if not e.key.startswith("tokenizer.")]
    changes = {
        "llama.embedding_length": 32,
        "llama.block_count": 1,
        "llama.attention.head_count": 2,
        "llama.attention.head_count_kv": 1,
        "llama.vocab_size": 49152,
    }
    numbers = [metadata_entry(k, v, "UINT32") for k, v in changes.items()]
    weights = tiny_weights(sizes, 0)
    model = tmp_path / "tiny.gguf"
    with model.open("wb") as file:
        write_gguf(
            file,
            with_metadata([*tiny, *words], [rule, *numbers]),
            [
                TensorEntry(name=n, shape=tuple(reversed(w.shape)), kind="F32")
                for n, w in weights.items()
            ],
            ((values.tobytes(),) for values in weights.values()),
        )
    export_checkpoint(model, tmp_path / "hf")
    wanted = runtime_tokens(model, TRICKY)
    assert checkpoint_tokens(tmp_path / "hf", TRICKY) == wanted


@pytest.mark.slow
def test_the_real_model_goes_out_and_comes_back(
    smollm2_gguf: Path, tmp_path: Path
) -> None:
    model = reimported(smollm2_gguf, tmp_path / "a")
    export_checkpoint(model, tmp_path / "hf")
    back = reimported(tmp_path / "hf", tmp_path / "b")
    before, after = read_header(model), read_header(back)
    for tensor in before.tensors:
        same = next(t for t in after.tensors if t.name == tensor.name)
        assert stored_bytes(before, tensor) == stored_bytes(after, same)
    wanted = runtime_tokens(model, TRICKY)
    assert checkpoint_tokens(tmp_path / "hf", TRICKY) == wanted
    assert runtime_tokens(back, TRICKY) == wanted
