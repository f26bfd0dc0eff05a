"""`slmops task`: examples are checked with their lines, and a model is asked."""

import json
from pathlib import Path

import pytest

from slmops.cli.main import main
from slmops.testing.tiny_gguf import write_tiny_llama


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return int(str(caught.value.code))


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    path = tmp_path / "examples.jsonl"
    lines = [{"prompt": f"q{at}", "answer": ("yes", "no")[at % 2]} for at in range(6)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_check_counts_labels_and_splits(
    examples: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        run("task", "check", str(examples), "--kind", "classification", "--json") == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert found["examples"] == 6
    assert found["search"] + found["test"] == 6
    assert found["labels"] == {"no": 3, "yes": 3}


def test_check_names_both_lines_of_a_leak(
    examples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = tmp_path / "train.jsonl"
    train.write_text('{"prompt": "other", "completion": "x"}\n')
    arguments = (
        "task",
        "check",
        str(examples),
        "--kind",
        "text",
        "--train",
        str(train),
    )
    assert run(*arguments) == 0
    assert "among the 1 lines" in capsys.readouterr().out
    train.write_text('{"prompt": "Q4", "completion": "x"}\n')
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert "examples.jsonl:5" in error
    assert "train.jsonl:1" in error


@pytest.mark.slow
def test_ask_shows_flips_against_a_reference(
    examples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (0, 1):
        write_tiny_llama(tmp_path / f"{seed}.gguf", seed=seed)
    asked = ("--examples", str(examples), "--kind", "classification")
    models = ("--reference", str(tmp_path / "0.gguf"), str(tmp_path / "1.gguf"))
    assert run("task", "ask", *models, *asked) == 0
    shown = capsys.readouterr().out
    assert "against the reference" in shown
    assert "McNemar" in shown
    assert "6 examples sha256:" in shown


def test_a_model_that_is_nowhere_is_not_found(
    examples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = ("--workspace", str(tmp_path / "ws"))
    asked = ("--examples", str(examples), "--kind", "text")
    assert run(*workspace, "task", "ask", "nowhere", *asked) == 3
    assert "neither is there such a file" in capsys.readouterr().err


def test_lm_eval_that_is_not_installed_says_how_to_get_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tiny_llama(tmp_path / "tiny.gguf")
    assert run("task", "lm-eval", str(tmp_path / "tiny.gguf"), "--tasks", "a") == 2
    assert "pip install lm-eval" in capsys.readouterr().err
