"""Every family, tested by logits: torch's own models against what the runtime computes.

Weights are random and exact in half precision, so the differences are those of the two
engines' arithmetic: llama.cpp rounds activations to half precision before it multiplies.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from slmops.registry.workspace import Workspace
from slmops.runtimes import llamacpp_scorer
from slmops.runtimes.base import WorkerSettings
from slmops.runtimes.llamacpp_scorer import LlamaCppScorer
from slmops.testing.tiny_checkpoint import tiny_checkpoint_texts
from slmops.testing.tiny_gguf import TinyLlama
from slmops.workshop.gguf_file import read_header
from slmops.workshop.gguf_writer import write_gguf
from slmops.workshop.hf_export import export_checkpoint
from slmops.workshop.hf_tokenizer import SPLIT_RULES
from slmops.workshop.model_shape import read_shape
from slmops.workshop.models import import_model, reference_path
from slmops.workshop.quantize import encode_rows, read_rows

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.slow

Logits = npt.NDArray[np.float32]

SIZES = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
GEMMA_SIZES = SIZES | {
    "num_hidden_layers": 7,
    "head_dim": 32,
    "query_pre_attn_scalar": 32,
    "sliding_window": 8,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", SIZES | {"tie_word_embeddings": True}),
    "llama, output of its own": ("LlamaConfig", SIZES),
    "llama, wide heads": ("LlamaConfig", SIZES | {"head_dim": 32}),
    "llama, biases": (
        "LlamaConfig",
        SIZES | {"attention_bias": True, "mlp_bias": True},
    ),
    "llama 3.2 rope": (
        "LlamaConfig",
        SIZES | {"head_dim": 64, "rope_parameters": LLAMA3_ROPE},
    ),
    "qwen2": ("Qwen2Config", SIZES | {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", SIZES | {"head_dim": 32}),
    "gemma3": ("Gemma3TextConfig", GEMMA_SIZES),
    "gemma3, soft cap": (
        "Gemma3TextConfig",
        GEMMA_SIZES | {"final_logit_softcapping": 5.0},
    ),
    "gemma3 of five layers": (
        "Gemma3TextConfig",
        GEMMA_SIZES | {"num_hidden_layers": 5},
    ),
    "gemma3 without windows": (
        "Gemma3TextConfig",
        GEMMA_SIZES | {"layer_types": ["full_attention"] * 7},
    ),
}
TOKENS = [1, *np.random.default_rng(5).integers(3, 300, 63).tolist()]

MAX_DIFFERENCE = 0.05
"""Of one logit, where logits reach 10 or more."""


def random_model(config_name: str, settings: dict[str, Any]) -> Any:  # noqa: ANN401
    torch.manual_seed(3)
    config = getattr(transformers, config_name)(**settings)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
            parameter.copy_(parameter.half().float())
    return model


def write_checkpoint(model: Any, folder: Path) -> Path:  # noqa: ANN401
    model.save_pretrained(folder)
    texts = tiny_checkpoint_texts(TinyLlama(vocabulary=model.config.vocab_size))
    if model.config.model_type.startswith("qwen"):
        rule = next(rule for rule, name in SPLIT_RULES.items() if name == "qwen2")
        letters = texts["tokenizer.json"]["pre_tokenizer"]["pretokenizers"][1]
        texts["tokenizer.json"]["pre_tokenizer"]["pretokenizers"] = [
            {"type": "Split", "pattern": {"Regex": rule}, "behavior": "Isolated"},
            letters | {"use_regex": False},
        ]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_text(json.dumps(texts[name]))
    return folder


def torch_logits(model: Any, tokens: list[int]) -> Logits:  # noqa: ANN401
    with torch.no_grad():
        found: Logits = model(torch.tensor([tokens])).logits[0].numpy()
    return found


def runtime_logits(path: Path, tokens: list[int]) -> Logits:
    scorer = LlamaCppScorer(path, WorkerSettings(context_tokens=64, threads=1))
    try:
        return scorer.logits(tokens)
    finally:
        scorer.close()


def imported(folder: Path, root: Path) -> Path:
    workspace = Workspace(root=root)
    return reference_path(workspace, import_model(str(folder), workspace))


def assert_agree(found: Logits, wanted: Logits) -> None:
    assert np.abs(wanted).max() > 4
    assert np.abs(found - wanted).max() < MAX_DIFFERENCE
    # Two logits closer than the difference may change places.
    best = np.take_along_axis(wanted, found.argmax(1)[:, None], 1)[:, 0]
    assert (wanted.max(1) - best < 2 * MAX_DIFFERENCE).all()
    assert (found.argmax(1) == wanted.argmax(1)).mean() > 0.95


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_answers_alike_in_torch_and_in_the_runtime_both_ways(
    family: str, tmp_path: Path
) -> None:
    model = random_model(*FAMILIES[family])
    wanted = torch_logits(model, TOKENS)
    path = imported(write_checkpoint(model, tmp_path / "hf"), tmp_path / "ws")
    found = runtime_logits(path, TOKENS)
    assert_agree(found, wanted)

    export_checkpoint(path, tmp_path / "back")
    back, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "back", dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert type(back) is type(model)
    np.testing.assert_allclose(torch_logits(back, TOKENS), wanted, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_the_runtimes_rounding_a_family_answers_as_in_torch(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights and the cache of keys and values in single precision: nothing is left.

    But Gemma's activation function, which llama.cpp looks up in a table.
    """
    usual = llamacpp_scorer._context_params

    def precise(*arguments: Any) -> Any:  # noqa: ANN401 - a C structure
        parameters = usual(*arguments)
        parameters.type_k = parameters.type_v = 0
        return parameters

    model = random_model(*FAMILIES[family])
    wanted = torch_logits(model, TOKENS)
    path = imported(write_checkpoint(model, tmp_path / "hf"), tmp_path / "ws")
    rounded = np.abs(runtime_logits(path, TOKENS) - wanted).max()
    monkeypatch.setattr(llamacpp_scorer, "_context_params", precise)
    found = runtime_logits(in_single_precision(path, tmp_path / "f32.gguf"), TOKENS)
    print(f"{family}: F16 {rounded:.4f}, F32 {np.abs(found - wanted).max():.5f}")
    tolerance = 0.005 if family.startswith("gemma") else 1e-4
    np.testing.assert_allclose(found, wanted, atol=tolerance)


def in_single_precision(path: Path, target: Path) -> Path:
    header = read_header(path)
    tensors = [replace(tensor, kind="F32") for tensor in header.tensors]
    with path.open("rb") as file, target.open("wb") as sink:
        data = (
            [encode_rows(rows, "F32") for rows in read_rows(file, tensor)]
            for tensor in header.tensors
        )
        write_gguf(sink, header.metadata, tensors, data)
    return target


def test_windows_of_gemma_count(tmp_path: Path) -> None:
    # The comparison above would mean little if the window changed nothing.
    narrow = random_model(*FAMILIES["gemma3"])
    wide = random_model("Gemma3TextConfig", GEMMA_SIZES | {"sliding_window": 64})
    difference = torch_logits(narrow, TOKENS) - torch_logits(wide, TOKENS)
    assert np.abs(difference).max() > 10 * MAX_DIFFERENCE
    path = imported(write_checkpoint(narrow, tmp_path / "hf"), tmp_path / "ws")
    shape = read_shape(read_header(path))
    assert (shape.window_tokens, shape.windowed_layers) == (8, 6)
