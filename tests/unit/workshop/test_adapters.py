"""LoRA adapters: merged and loaded beside, compared with peft by logits."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file, save_file

from slmops.domain.errors import InvalidInputError
from slmops.runtimes.base import WorkerSettings
from slmops.runtimes.llamacpp_scorer import LlamaCppScorer
from slmops.testing.adapter_beside import load_beside
from slmops.testing.tiny_gemma import write_tiny_gemma
from slmops.testing.tiny_gguf import stored_bytes, write_tiny_llama
from slmops.workshop.adapters import adapter_to_gguf, merge_adapter, read_adapter
from slmops.workshop.gguf_file import read_header
from slmops.workshop.hf_export import export_checkpoint

Logits = npt.NDArray[np.float32]
TOKENS = [1, *np.random.default_rng(5).integers(9, 290, 40).tolist()]
MAX_DIFFERENCE = 0.06
"""Of one logit: the runtime rounds activations to half precision in another order."""
QUERY = "base_model.model.model.layers.0.self_attn.q_proj"


def write_adapter(folder: Path, **config: object) -> Path:
    """Write an adapter for the queries of the tiny llama's first layer."""
    chance, rank = np.random.default_rng(1), 4
    folder.mkdir()
    factors = {
        f"{QUERY}.lora_A.weight": chance.normal(0, 0.3, (rank, 64)),
        f"{QUERY}.lora_B.weight": chance.normal(0, 0.3, (64, rank)),
    }
    save_file(
        {name: values.astype(np.float32) for name, values in factors.items()},
        folder / "adapter_model.safetensors",
    )
    document = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(document | config))
    return folder


def merged(model: Path, adapter: Path, path: Path) -> Path:
    with path.open("wb") as file:
        merge_adapter(model, adapter, file)
    return path


def logits(model: Path, adapter: Path | None = None) -> Logits:
    """Score with the runtime, an adapter loaded beside or not."""
    scorer = LlamaCppScorer(model, WorkerSettings(context_tokens=64, threads=1))
    try:
        if adapter is not None:
            load_beside(scorer, adapter)
        return scorer.logits(TOKENS)
    finally:
        scorer.close()


def test_only_what_the_adapter_names_changes(tmp_path: Path) -> None:
    model = write_tiny_llama(tmp_path / "tiny.gguf")
    result = merged(model, write_adapter(tmp_path / "lora"), tmp_path / "out.gguf")
    before, after = read_header(model), read_header(result)
    assert before.metadata == after.metadata
    changed = [
        old.name
        for old, new in zip(before.tensors, after.tensors, strict=True)
        if stored_bytes(before, old) != stored_bytes(after, new)
    ]
    assert changed == ["blk.0.attn_q.weight"]


@pytest.mark.parametrize(
    "config",
    [{}, {"use_rslora": True}, {"alpha_pattern": {"q_proj": 3}}],
    ids=["plain", "rank-stabilized", "an alpha of its own"],
)
def test_loaded_beside_or_merged_the_answers_are_the_same(
    config: dict[str, object], tmp_path: Path
) -> None:
    model = write_tiny_llama(tmp_path / "tiny.gguf", scale=2.0)
    adapter = write_adapter(tmp_path / "lora", **config)
    with (tmp_path / "lora.gguf").open("wb") as file:
        adapter_to_gguf(adapter, model, file)
    beside = logits(model, tmp_path / "lora.gguf")
    within = logits(merged(model, adapter, tmp_path / "out.gguf"))
    assert np.abs(within - logits(model)).max() > 10 * MAX_DIFFERENCE
    np.testing.assert_allclose(beside, within, atol=MAX_DIFFERENCE)


def factor(name: str, shape: tuple[int, ...]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "adapter_model.safetensors"
        save_file(load_file(path) | {name: np.ones(shape, np.float32)}, path)

    return change


def setting(**values: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda f: (f / "adapter_config.json").unlink(), "config.json is mis"),
    "no weights": (
        lambda f: (f / "adapter_model.safetensors").unlink(),
        "safetensors is missing",
    ),
    "pickled": (
        lambda f: (f / "adapter_model.safetensors").rename(f / "adapter_model.bin"),
        "pickled weights can run code",
    ),
    "other kind": (setting(peft_type="IA3"), "must be LORA, got 'IA3'"),
    "decomposed": (setting(use_dora=True), "DoRA"),
    "begun from the base": (setting(init_lora_weights="pissa"), "changes the model"),
    "a pattern that hangs": (
        setting(alpha_pattern={"(([a-z.0-9_]+)+)+!": 2}),
        "must be a module's name",
    ),
    "a pattern that is none": (setting(alpha_pattern={"(": 4}), "a module's name"),
    "patterns in a list": (setting(alpha_pattern=[1]), "must be a mapping"),
    "a truth for a number": (setting(lora_alpha=True), "must be a number"),
    "biases": (setting(bias="all"), "bias must be 'none'"),
    "whole modules": (setting(modules_to_save=["lm_head"]), "whole modules"),
    "alpha of zero": (setting(lora_alpha=0), "lora_alpha must be"),
    "embedding": (
        factor("base_model.model.model.embed_tokens.lora_embedding_A", (4, 300)),
        "no LoRA factor",
    ),
    "other model": (
        factor(QUERY.replace(".0.", ".9.") + ".lora_A.weight", (4, 64)),
        "layers.9.self_attn.q_proj' has no weight",
    ),
    "half a pair": (
        factor(QUERY.replace(".0.", ".1.") + ".lora_A.weight", (4, 64)),
        "must have lora_A and lora_B",
    ),
    "other width": (factor(QUERY + ".lora_A.weight", (4, 32)), "must have shapes"),
    "other rank": (factor(QUERY + ".lora_B.weight", (64, 5)), "must have shapes"),
    "not finite": (
        lambda f: save_file(
            load_file(f / "adapter_model.safetensors")
            | {QUERY + ".lora_B.weight": np.full((64, 4), np.nan, np.float32)},
            f / "adapter_model.safetensors",
        ),
        "not finite",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_adapter_is_refused(case: str, tmp_path: Path) -> None:
    model = write_tiny_llama(tmp_path / "tiny.gguf")
    adapter = write_adapter(tmp_path / "lora")
    damage, reason = BAD[case]
    damage(adapter)
    with pytest.raises(InvalidInputError, match=reason):
        read_adapter(adapter, model)


def test_an_adapter_is_not_merged_into_a_quantized_model(
    smollm2_gguf: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "lora"
    folder.mkdir()
    factors = {"A": np.ones((4, 576), np.float32), "B": np.ones((576, 4), np.float32)}
    save_file(
        {f"{QUERY}.lora_{part}.weight": values for part, values in factors.items()},
        folder / "adapter_model.safetensors",
    )
    config = {"peft_type": "LORA", "lora_alpha": 8}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidInputError, match="is quantized"):
        merged(smollm2_gguf, folder, tmp_path / "out.gguf")


@pytest.mark.slow
# peft asks transformers by a name that it is giving up.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("write", [write_tiny_llama, write_tiny_gemma])
def test_a_merged_model_answers_as_peft_does(
    write: Callable[[Path], Path], tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    model = write(tmp_path / "tiny.gguf")
    export_checkpoint(model, tmp_path / "hf")
    torch.manual_seed(2)
    base = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "hf", dtype=torch.float32
    ).eval()
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
    tuned = peft.get_peft_model(
        base, peft.LoraConfig(r=4, lora_alpha=16, target_modules=targets)
    )
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    tuned.save_pretrained(tmp_path / "lora")
    with torch.no_grad():
        whole = tuned.merge_and_unload()
        wanted = whole(torch.tensor([TOKENS])).logits[0].numpy()
    plain = logits(model)
    assert np.abs(plain - wanted).max() > 10 * MAX_DIFFERENCE
    with (tmp_path / "lora.gguf").open("wb") as file:
        adapter_to_gguf(tmp_path / "lora", model, file)
    within = logits(merged(model, tmp_path / "lora", tmp_path / "out.gguf"))
    np.testing.assert_allclose(within, wanted, atol=MAX_DIFFERENCE)
    np.testing.assert_allclose(
        logits(model, tmp_path / "lora.gguf"), wanted, atol=MAX_DIFFERENCE
    )
