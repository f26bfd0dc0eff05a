"""Every optional package is known by the extra that brings it."""

import re
import sys
import tomllib
from pathlib import Path

import pytest

from slmops.cli.extras import EXTRAS, extra_needed
from slmops.cli.main import main
from slmops.testing.tiny_gguf import write_tiny_llama

PROJECT = Path(__file__).parents[3] / "pyproject.toml"
OTHER_NAMES = {
    "cyclonedx-python-lib": "cyclonedx",
    "mlflow-skinny": "mlflow",
    "vl-convert-python": "vl_convert",
}
"""Packages whose distribution is not called as they are imported."""


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extras_packages_are_those_of_the_project_file(extra: str) -> None:
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    names = [
        re.match(r"[\w-]+", requirement)
        for requirement in project["optional-dependencies"][extra]
    ]
    found = {
        OTHER_NAMES.get(name[0], name[0].replace("-", "_")) for name in names if name
    }
    # numpy comes with two extras; the larger one is named.
    # `slmops` itself stands for its other extras.
    assert found - {"numpy", "slmops"} == set(EXTRAS[extra]) - {"numpy"}


def test_a_module_of_our_own_that_is_missing_is_a_bug_and_stays_one() -> None:
    assert extra_needed(ModuleNotFoundError(name="slmops.nothing")) is None
    assert extra_needed(ModuleNotFoundError()) is None


def test_what_a_command_lacks_is_the_users_to_install_and_never_from_an_index() -> None:
    for extra, packages in EXTRAS.items():
        problem = extra_needed(ModuleNotFoundError(name=f"{packages[0]}.part"))
        assert problem is not None
        assert problem.exit_code == 2, "retrying changes nothing"
        assert f"pip install '.[{extra}]'" in str(problem)


def test_no_text_sends_anybody_to_an_index_where_the_name_is_free() -> None:
    root = PROJECT.parent
    texts = [*root.glob("src/**/*.py"), *root.glob("docs/**/*.md"), root / "README.md"]
    found = [p for p in texts if "pip install 'slmops" in p.read_text(encoding="utf-8")]
    assert found == []


@pytest.mark.parametrize("command", ["plan", "build"])
def test_a_recipe_that_trains_is_refused_at_once_without_its_extra(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLMOPS_WORKSPACE", "ws")
    monkeypatch.setitem(sys.modules, "torch", None)
    source = write_tiny_llama(tmp_path / "tiny.gguf")
    rows = [f'{{"prompt": "{n}", "completion": "b"}}\n' for n in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(rows))
    (tmp_path / "b.yaml").write_text(
        "name: b\nmodel: tiny\nclasses: [{name: any, context_tokens: 64}]\n"
        "recipe: {prepare: [{finetune: {data: rows.jsonl}}]}\n"
    )
    with pytest.raises(SystemExit, match="0"):
        main(("model", "import", str(source), "--name", "tiny"))
    with pytest.raises(SystemExit) as caught:
        main((command, "b.yaml"))
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert "recipe.prepare: finetune needs torch: " in said
    assert "pip install '.[train]'" in said
    assert not list(tmp_path.glob("ws/steps/*.json"))
