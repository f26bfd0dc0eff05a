"""`init`, `model`, `blueprint` and `plan` as a user types them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slmops.cli.main import main
from slmops.domain.blueprint import Blueprint
from slmops.registry.workspace import DEFAULT_FOLDER, Workspace
from slmops.testing.tiny_gguf import write_tiny_llama
from slmops.wire.codec import load_yaml, to_plain
from slmops.workshop.artefacts import Making
from slmops.workshop.board import Board
from slmops.workshop.progress import silent
from slmops.workshop.workbench import local_workbench

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        out, err = capsys.readouterr()
        return int(caught.value.code or 0), out, err

    return call


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny_llama(tmp_path / "tiny.gguf", context_tokens=2048)


def test_init_writes_a_blueprint_that_loads_and_spells_out_the_defaults(
    run: Run, tmp_path: Path
) -> None:
    assert run("init")[0] == 0
    written = load_yaml(tmp_path / "blueprint.yaml", Blueprint)
    names = [device_class.name for device_class in written.classes]
    assert names == ["gateway", "till", "workstation"]
    default = Blueprint(name="a", model="b", classes=written.classes)
    for part in ("quality", "evaluation", "golden", "rollout", "candidates"):
        assert getattr(written, part) == getattr(default, part)


def test_init_explains_every_field(run: Run, tmp_path: Path) -> None:
    run("init")
    text = (tmp_path / "blueprint.yaml").read_text()
    written = to_plain(load_yaml(tmp_path / "blueprint.yaml", Blueprint))

    def keys(tree: Any) -> set[str]:  # noqa: ANN401
        if isinstance(tree, dict):
            inner = [keys(value) for value in tree.values()]
            return set(tree) | set().union(*inner)
        if isinstance(tree, list):
            return set().union(*[keys(value) for value in tree])
        return set()

    missing = {key for key in keys(written) if key not in text}
    assert missing <= {"count"}


def test_init_never_overwrites(run: Run, tmp_path: Path) -> None:
    (tmp_path / "blueprint.yaml").write_text("mine")
    code, _, err = run("init")
    assert code == 4
    assert "never overwritten" in err
    assert (tmp_path / "blueprint.yaml").read_text() == "mine"


def test_init_names_the_only_model(run: Run, tiny: Path, tmp_path: Path) -> None:
    run("model", "import", str(tiny))
    run("init")
    assert load_yaml(tmp_path / "blueprint.yaml", Blueprint).model == "tiny-llama"


def test_init_imports_a_source_first_and_finds_it_again(
    run: Run, tiny: Path, tmp_path: Path
) -> None:
    code, out, _ = run("init", "--model", str(tiny), "--json")
    assert code == 0
    name = json.loads(out)["model"]
    assert load_yaml(tmp_path / "blueprint.yaml", Blueprint).model == name
    assert json.loads(run("model", "list", "--json")[1])["models"][0]["name"] == name
    assert run("init", "second", "--model", name)[0] == 0


def test_init_names_what_it_cannot_find(run: Run, tmp_path: Path) -> None:
    assert run("init", "--model", "nothing")[0] == 3
    assert run("init", "--model", "./nothing.gguf")[0] == 3
    assert not (tmp_path / "blueprint.yaml").exists()


def test_init_writes_the_schema_its_first_line_points_to(
    run: Run, tmp_path: Path
) -> None:
    run("init", "product")
    first = (tmp_path / "product" / "blueprint.yaml").read_text().splitlines()[0]
    name = first.partition("$schema=")[2]
    schema = json.loads((tmp_path / "product" / name).read_text())
    assert schema == json.loads(run("blueprint", "schema")[1])
    assert schema["$defs"]["Blueprint"]["additionalProperties"] is False


def test_models_are_imported_listed_and_shown(run: Run, tiny: Path) -> None:
    code, out, _ = run("model", "import", str(tiny), "--name", "mine", "--json")
    assert code == 0
    record = json.loads(out)
    assert json.loads(run("model", "list", "--json")[1])["models"] == [record]
    assert json.loads(run("model", "show", record["id"][7:15], "--json")[1]) == record
    assert "mine" in run("model", "list")[1]
    assert "gpt2/smollm" in run("model", "show", "mine")[1]


def test_a_bad_model_ends_with_code_2_and_its_name(run: Run, tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"")
    code, _, err = run("model", "import", "bad.gguf")
    assert code == 2
    assert "bad.gguf: the file is empty" in err
    assert run("model", "show", "bad")[0] == 3


CHANGES = {
    "misspelt candidate": ("Q5_K_M", "Q5_K_N", "did you mean Q5_K_"),
    "misspelt key": ("context_tokens: 512", "context_token: 512", "context_tokens"),
    "unknown runtime": ("runtime: llamacpp", "runtime: lamacpp", "classes[0].runtime"),
    "negative budget": ("memory_mib: 300", "memory_mib: -3", "must be > 0, got -3"),
    "no YAML": ("name: assistant", "name: [", "not valid YAML"),
    "twice": ("name: till ", "name: gateway ", "used twice"),
    "wave of nothing": ("share: 0.01", "share: 0", "(0, 1]"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_check_tells_the_place_of_a_mistake(
    case: str, run: Run, tmp_path: Path
) -> None:
    run("init")
    path = tmp_path / "blueprint.yaml"
    assert run("blueprint", "check", str(path))[0] == 0
    old, new, message = CHANGES[case]
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    code, _, err = run("blueprint", "check", str(path))
    assert code == 2
    assert message in err
    assert "blueprint.yaml" in err


def test_check_reads_the_texts_a_blueprint_names(run: Run, tmp_path: Path) -> None:
    run("init")
    path = tmp_path / "blueprint.yaml"
    path.write_text(path.read_text().replace("text: builtin", "text: mine.txt"))
    assert run("blueprint", "check", str(path))[0] == 3
    (tmp_path / "mine.txt").write_bytes(b"\xff\xfe broken")
    assert run("blueprint", "check", str(path))[0] == 2
    (tmp_path / "mine.txt").write_text("A text of our own.")
    assert run("blueprint", "check", str(path))[0] == 0


def test_plan_shows_every_candidate(run: Run, tiny: Path) -> None:
    run("model", "import", str(tiny))
    run("init")
    code, out, _ = run("plan", "blueprint.yaml", "--json")
    assert code == 0
    plan = json.loads(out)
    assert len(plan["candidates"]) == 7
    assert {row["class_name"] for row in plan["candidates"][0]["classes"]} == {
        "gateway",
        "till",
        "workstation",
    }
    _, out, err = run("plan", "blueprint.yaml")
    assert "Q8_0 (control)" in out
    assert "predicted from: memory bandwidth probe" in err
    assert "a build would quantize: Q8_0, " in err


def test_plan_says_what_is_quantized_already(run: Run, tiny: Path) -> None:
    run("model", "import", str(tiny))
    run("init")
    (model,) = json.loads(run("model", "list", "--json")[1])["models"]
    workspace = Workspace(root=Path(DEFAULT_FOLDER).absolute())
    with local_workbench(workspace, Board(progress=silent)) as bench:
        Making(model=model["id"], quantization="Q4_K_M").quantize(bench)
    plan = json.loads(run("plan", "blueprint.yaml", "--json")[1])
    built = {c["quantization"] for c in plan["candidates"] if c["is_built"]}
    assert built == {"Q4_K_M"}
    _, out, err = run("plan", "blueprint.yaml")
    assert "Q4_K_M" not in err
    assert out.count("already") == 1


def test_an_impossible_blueprint_fails_the_plan_with_code_6(
    run: Run, tiny: Path, tmp_path: Path
) -> None:
    run("model", "import", str(tiny))
    run("init")
    path = tmp_path / "blueprint.yaml"
    path.write_text(path.read_text().replace("memory_mib: 300", "memory_mib: 12"))
    code, _, err = run("plan", str(path))
    assert code == 6
    assert "raise classes[0].budget.memory_mib from 12 to" in err


def test_plan_without_its_model_says_what_is_imported(run: Run) -> None:
    run("init")
    code, _, err = run("plan", "blueprint.yaml")
    assert code == 3
    assert "slmops model import" in err
