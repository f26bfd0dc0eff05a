"""Malformed models and blueprints on the command line: code 2, not a byte changed."""

import hashlib
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from slmops.cli.main import main
from slmops.testing.live_control import Ran, Slmops
from slmops.testing.tiny_checkpoint import write_tiny_checkpoint
from slmops.testing.tiny_gguf import write_tiny_llama

Bytes = Callable[[bytes], bytes]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a good model, a good blueprint, a good file and folder."""
    folder = tmp_path_factory.mktemp("project")
    workspace = ["--workspace", str(folder / ".slmops")]
    good = write_tiny_llama(folder / "good.gguf", context_tokens=2048)
    write_tiny_checkpoint(folder / "good")
    for command in (["model", "import", str(good)], ["init", str(folder)]):
        with pytest.raises(SystemExit) as caught:
            main([*workspace, *command])
        assert not caught.value.code
    return folder


@pytest.fixture
def workspace(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the good workspace, in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SLMOPS_WORKSPACE", raising=False)
    return Path(shutil.copytree(project / ".slmops", tmp_path / ".slmops"))


@pytest.fixture
def slmops(workspace: Path, capsys: pytest.CaptureFixture[str]) -> Slmops:
    def call(*arguments: str) -> Ran:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main(["--workspace", str(workspace), *arguments])
        out, err = capsys.readouterr()
        return Ran(code=int(caught.value.code or 0), out=out, err=err)

    return call


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): (
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "/"
        )
        for path in folder.rglob("*")
    }


def at(offset: int, raw: bytes) -> Bytes:
    return lambda good: good[:offset] + raw + good[offset + len(raw) :]


def instead(old: bytes, new: bytes) -> Bytes:
    return lambda good: good.replace(old, new, 1)


BAD_FILES: dict[str, Bytes] = {
    "zero length": lambda good: b"",
    "one byte": lambda good: good[:1],
    "all zero": lambda good: bytes(len(good)),
    "text": lambda good: b"This is not a model.\n" * 100,
    "pickle": lambda good: b"\x80\x04\x95" + good[3:],
    "safetensors": lambda good: struct.pack("<Q", 2) + b"{}",
    "version 0": at(4, struct.pack("<I", 0)),
    "endless metadata": at(16, struct.pack("<Q", 2**63)),
    "cut in the header": lambda good: good[:1000],
    "cut in the weights": lambda good: good[: -len(good) // 3],
    "other architecture": instead(
        b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0mamba"
    ),
    "no layers": instead(
        b"llama.block_count\x04\0\0\0\x02", b"llama.block_count\x04\0\0\0\0"
    ),
    "missing tensor": instead(b"blk.1.attn_q.weight", b"blk.1.attn_x.weight"),
    "key that is no text": instead(b"general.name", b"general.\xff\xfe\xfd\xfc"),
    "weights that are no numbers": lambda good: good[:-4096] + b"\xff\x7f" * 2048,
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_model_file_exits_with_2_and_changes_nothing(
    case: str, slmops: Slmops, project: Path, workspace: Path
) -> None:
    bad = Path("bad.gguf")
    bad.write_bytes(BAD_FILES[case]((project / "good.gguf").read_bytes()))
    before = contents(workspace)
    ran = slmops("model", "import", str(bad))
    assert ran.code == 2, ran.err
    assert (ran.out, ran.err.count("error [invalid_input]: ")) == ("", 1)
    assert "bad.gguf" in ran.err
    assert contents(workspace) == before


def as_json(name: str, **values: object) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        tree = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(tree | values))

    return change


def as_text(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def emptied(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


BAD_FOLDERS: dict[str, Callable[[Path], object]] = {
    "empty": emptied,
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "weights of one byte": as_text("model.safetensors", b"\0"),
    "weights with an endless header": as_text("model.safetensors", b"\xff" * 64),
    "config that is no JSON": as_text("config.json", b"{"),
    "config nested for ever": as_text("config.json", b"[" * 100_000),
    "code of its own": as_json("config.json", architectures=["MyModel"]),
    "absurd width": as_json("config.json", hidden_size=10**12),
    "tokenizer of another kind": as_json("tokenizer.json", model={"type": "Unigram"}),
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_a_bad_checkpoint_folder_exits_with_2_and_changes_nothing(
    case: str, slmops: Slmops, project: Path, workspace: Path
) -> None:
    bad = Path(shutil.copytree(project / "good", "bad"))
    BAD_FOLDERS[case](bad)
    before = contents(workspace)
    ran = slmops("model", "import", str(bad))
    assert ran.code == 2, ran.err
    assert (ran.out, ran.err.count("error [invalid_input]: ")) == ("", 1)
    assert contents(workspace) == before


def test_the_good_ones_are_good(slmops: Slmops, project: Path) -> None:
    """Otherwise the tests here would pass for another reason."""
    assert slmops("model", "import", str(project / "good.gguf")).code == 0
    assert slmops("model", "import", str(project / "good")).code == 0
    assert slmops("plan", str(project / "blueprint.yaml")).code == 0


BAD_BLUEPRINTS: dict[str, Bytes] = {
    "empty": lambda good: b"",
    "only a comment": lambda good: b"# later\n",
    "a list": lambda good: b"- a\n- b\n",
    "a number": lambda good: b"42",
    "no UTF-8": lambda good: b"\xff\xfe" + good,
    "zero bytes": lambda good: b"\0" * 100,
    "cut in the middle": lambda good: good[: good.index(b"candidates:") + 20],
    "a tab": instead(b"\nmodel:", b"\n\tmodel:"),
    "a Python object": instead(
        b"name: assistant", b"name: !!python/object/apply:os.getcwd []"
    ),
    "an alias": instead(b"name: assistant", b"name: &a assistant\nother: *a"),
    "key given twice": instead(b"name: assistant", b"name: a\nname: b"),
    "unknown key": instead(b"name: assistant", b"nmae: assistant"),
    "no classes": instead(b"classes:", b"clases:"),
    "name with a slash": instead(b"name: assistant", b"name: ../assistant"),
    "name that is a number": instead(b"name: assistant", b"name: 7"),
    "memory as text": instead(b"memory_mib: 300", b"memory_mib: lots"),
    "negative memory": instead(b"memory_mib: 300", b"memory_mib: -300"),
    "no number": instead(b"memory_mib: 300", b"memory_mib: .nan"),
    "endless memory": instead(b"memory_mib: 300", b"memory_mib: .inf"),
    "threads with a fraction": instead(b"threads: 1 ", b"threads: 1.5 "),
    "unknown objective": instead(b"objective: speed", b"objective: luck"),
    "unknown runtime": instead(b"runtime: llamacpp", b"runtime: magic"),
    "unknown quantization": instead(b"Q5_K_M", b"Q5_K_X"),
    "wave of both kinds": instead(b"- share: 0.01", b"- {share: 0.01, count: 3}"),
    "share above 1": instead(b"- share: 0.25", b"- share: 1.25"),
    "impossible rate": instead(
        b"tolerated_failure_rate: 0.02", b"tolerated_failure_rate: 2"
    ),
    "upside-down range": instead(b"{min: 700, max: 1500}", b"{min: 1500, max: 700}"),
    "window larger than the text": instead(b"max_tokens: 768", b"max_tokens: 100"),
    "too large": lambda good: good + b"# " + b"x" * (17 * 1024 * 1024),
    "nested for ever": lambda good: b"[" * 100_000,
}


@pytest.mark.parametrize("case", BAD_BLUEPRINTS)
def test_a_bad_blueprint_exits_with_2_and_changes_nothing(
    case: str, slmops: Slmops, project: Path, workspace: Path
) -> None:
    bad = Path("bad.yaml")
    bad.write_bytes(BAD_BLUEPRINTS[case]((project / "blueprint.yaml").read_bytes()))
    before = contents(workspace)
    for command in (["blueprint", "check"], ["plan"], ["build"]):
        ran = slmops(*command, str(bad))
        assert ran.code == 2, ran.err
        assert (ran.out, ran.err.count("error [invalid_input]: ")) == ("", 1)
        assert "bad.yaml" in ran.err
        assert len(ran.err) < 1000, "a message quotes what came, but not all of it"
    assert contents(workspace) == before


def test_a_blueprint_that_is_not_there_exits_with_3_and_a_folder_with_2(
    slmops: Slmops, workspace: Path
) -> None:
    before = contents(workspace)
    for path, code in (("gone.yaml", 3), (".", 2)):
        for command in (["blueprint", "check"], ["plan"], ["build"]):
            assert slmops(*command, path).code == code
    assert contents(workspace) == before


@pytest.mark.parametrize("content", [b"", b"null", b"{}", b"[" * 100_000, b"\xff"])
def test_a_damaged_model_record_is_named(
    slmops: Slmops, workspace: Path, content: bytes
) -> None:
    [record] = (workspace / "models").iterdir()
    record.write_bytes(content)
    for command in (["list"], ["show", "good"]):
        ran = slmops("model", *command)
        assert (ran.code, record.name in ran.err) == (2, True)
