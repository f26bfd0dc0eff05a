"""`slmops model`, `init` and `blueprint` as a person reads and interrupts them."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from slmops.cli.main import main
from slmops.testing.live_control import Ran
from slmops.testing.tiny_gguf import write_tiny_llama
from slmops.workshop.quantize import quantize_gguf

Here = Callable[..., Ran]


@pytest.fixture
def here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Here:
    """Run commands in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SLMOPS_WORKSPACE", raising=False)

    def call(*arguments: str) -> Ran:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        out, err = capsys.readouterr()
        return Ran(code=int(caught.value.code or 0), out=out, err=err)

    return call


def test_an_empty_workspace_says_what_the_first_step_is(
    here: Here, tmp_path: Path
) -> None:
    listed = here("model", "list")
    assert (listed.code, listed.out) == (0, "")
    assert "slmops model import" in listed.err
    assert json.loads(here("model", "list", "--json").out) == {"models": []}
    assert list(tmp_path.iterdir()) == [], "looking makes nothing"


def test_an_import_says_name_and_digest_and_what_is_special(
    here: Here, tmp_path: Path
) -> None:
    write_tiny_llama(tmp_path / "tiny.gguf")
    plain = here("model", "import", "tiny.gguf")
    assert plain.code == 0
    name, digest = plain.out.split()
    assert (name, digest.startswith("sha256:")) == ("tiny-llama", True)
    assert "quantized" not in plain.err
    with (tmp_path / "small.gguf").open("wb") as sink:
        quantize_gguf(tmp_path / "tiny.gguf", "Q4_0", sink)
    marked = here("model", "import", "small.gguf", "--name", "small")
    assert "the source is quantized (mainly Q4_0)" in marked.err
    shown = here("model", "show", "small")
    assert "Q4_0" in shown.out
    assert here("model", "show", digest[7:19]).code == 0


@pytest.mark.parametrize("source", ["nothing.gguf", "no/such/folder"])
def test_a_source_that_is_nowhere_exits_with_3(here: Here, source: str) -> None:
    ran = here("model", "import", source)
    assert (ran.code, ran.out) == (3, "")


@pytest.mark.parametrize("name", ["", "UPPER", "a/b", "..", "x" * 65, "a\nb"])
def test_a_name_that_cannot_be_one_exits_with_2(
    here: Here, tmp_path: Path, name: str
) -> None:
    write_tiny_llama(tmp_path / "tiny.gguf")
    ran = here("model", "import", "tiny.gguf", "--name", name)
    assert (ran.code, ran.out) == (2, "")
    assert not (tmp_path / ".slmops").exists()


def test_init_says_what_is_missing_and_what_comes_next(
    here: Here, tmp_path: Path
) -> None:
    first = here("init", "shop")
    assert first.code == 0
    assert "shop/blueprint.yaml" in first.out
    assert "slmops model import" in first.err
    assert "next: slmops plan shop/blueprint.yaml" in first.err
    checked = here("blueprint", "check", "shop/blueprint.yaml")
    assert checked.out == (
        "shop/blueprint.yaml is valid: assistant for gateway, till, workstation\n"
    )
    tree = json.loads(here("blueprint", "check", "shop/blueprint.yaml", "--json").out)
    assert tree["name"] == "assistant"
    assert here("init", "shop").code == 4


@pytest.mark.parametrize("model", ["absent", "a: b", "'"])
def test_init_writes_nothing_for_a_model_that_is_not_there(
    here: Here, tmp_path: Path, model: str
) -> None:
    assert here("init", "--model", model).code == 3
    assert list(tmp_path.iterdir()) == []


_LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
from slmops.cli.main import main
main(sys.argv[1:])
"""


def test_a_disk_that_takes_no_more_exits_with_7_and_leaves_nothing(
    tmp_path: Path,
) -> None:
    write_tiny_llama(tmp_path / "tiny.gguf")
    workspace = tmp_path / "ws"
    ran = subprocess.run(
        [
            *(sys.executable, "-c", _LIMITED, "--workspace", str(workspace)),
            *("model", "import", str(tmp_path / "tiny.gguf")),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ran.returncode == 7, ran.stderr
    assert "error [unavailable]: " in ran.stderr
    assert "too large" in ran.stderr
    assert [path for path in workspace.rglob("*") if path.is_file()] == []


@pytest.mark.slow
def test_ctrl_c_in_an_import_leaves_nothing(tmp_path: Path, smollm2_gguf: Path) -> None:
    workspace = tmp_path / "ws"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "slmops", "--workspace", str(workspace)),
            *("model", "import", str(smollm2_gguf)),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not any(workspace.rglob(".partial-*")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out == ""
    assert "run it again" in err
    assert "Traceback" not in err
    assert [path for path in workspace.rglob("*") if path.is_file()] == []
