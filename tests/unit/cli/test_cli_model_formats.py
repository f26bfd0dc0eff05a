"""`slmops model inspect`, `export` and `merge` as a person runs them."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from slmops.cli.main import main
from slmops.testing.live_control import Ran
from slmops.testing.tiny_gguf import write_tiny_llama

Here = Callable[..., Ran]


@pytest.fixture
def here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Here:
    """Run commands in a folder whose workspace has one model, ``tiny-llama``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SLMOPS_WORKSPACE", raising=False)

    def call(*arguments: str) -> Ran:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        out, err = capsys.readouterr()
        return Ran(code=int(caught.value.code or 0), out=out, err=err)

    call("model", "import", str(write_tiny_llama(tmp_path / "tiny.gguf")))
    return call


def adapter(folder: Path) -> Path:
    folder.mkdir()
    name = "base_model.model.model.layers.1.mlp.up_proj"
    factors = {"A": np.ones((2, 64), np.float32), "B": np.ones((128, 2), np.float32)}
    save_file(
        {f"{name}.lora_{part}.weight": values for part, values in factors.items()},
        folder / "adapter_model.safetensors",
    )
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 0.5}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_inspect_shows_groups_of_tensors(here: Here) -> None:
    shown = here("model", "inspect", "tiny-llama")
    assert shown.code == 0
    assert "blk.*.ffn_down.weight" in shown.out
    assert "feed-forward" in shown.out
    found = json.loads(here("model", "inspect", "tiny.gguf", "--json").out)
    assert found["shape"]["layers"] == 2
    assert found["tokenizer"] == "gpt2/smollm"


def test_an_exported_model_imports_as_the_same_model(here: Here) -> None:
    first = json.loads(here("model", "show", "tiny-llama", "--json").out)
    assert here("model", "export", "tiny-llama", "--output", "hf").out == "hf\n"
    again = here("model", "inspect", "tiny-llama", "--json").out
    here("model", "import", "hf", "--name", "back")
    back = json.loads(here("model", "inspect", "back", "--json").out)
    assert back["groups"] == json.loads(again)["groups"]
    assert first["chat_template"]
    assert here("model", "export", "tiny-llama", "--output", "hf").code == 4


def test_a_merged_model_is_a_new_one(here: Here, tmp_path: Path) -> None:
    adapter(tmp_path / "lora")
    merged = here("model", "merge", "tiny-llama", "--adapter", "lora")
    assert merged.code == 0, merged.err
    assert merged.out.split()[0] == "tiny-llama-lora"
    record = json.loads(here("model", "show", "tiny-llama-lora", "--json").out)
    assert record["source"] == "tiny.gguf + lora"
    named = here("model", "merge", "tiny-llama", "--adapter", "lora", "--name", "tuned")
    assert named.out.split()[0] == "tuned"
    assert list(tmp_path.rglob(".merge-*")) == []


def test_a_folder_that_is_no_adapter_exits_with_2(here: Here, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    ran = here("model", "merge", "tiny-llama", "--adapter", "empty")
    assert (ran.code, ran.out) == (2, "")
    assert "adapter_config.json is missing" in ran.err
