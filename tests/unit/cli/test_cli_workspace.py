"""`slmops workspace gc`: looks first, frees when told."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from slmops.cli.main import main
from slmops.registry.blobs import BlobStore
from slmops.testing.live_control import Ran
from slmops.testing.tiny_gguf import write_tiny_llama

Run = Callable[..., Ran]


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    monkeypatch.setenv("SLMOPS_WORKSPACE", str(tmp_path / "ws"))

    def call(*arguments: str) -> Ran:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        out, err = capsys.readouterr()
        return Ran(code=int(caught.value.code or 0), out=out, err=err)

    return call


def test_it_says_what_can_go_and_frees_it_only_when_told(
    run: Run, tmp_path: Path
) -> None:
    source = write_tiny_llama(tmp_path / "tiny.gguf")
    assert run("model", "import", str(source), "--name", "tiny").code == 0
    blobs = BlobStore(tmp_path / "ws")
    stray = blobs.put_bytes(bytes(2 << 20))
    os.utime(blobs.path(stray), (0, 0))
    looked = run("workspace", "gc")
    assert looked.code == 0
    assert "2.0 MiB can be freed: slmops workspace gc --apply" in looked.err
    assert blobs.has(stray)
    freed = run("workspace", "gc", "--apply", "--json")
    assert json.loads(freed.out)["freed_bytes"] == 2 << 20
    assert not blobs.has(stray)
    assert json.loads(run("workspace", "gc", "--json").out)["freed_bytes"] == 0
    assert "tiny" in run("model", "list").out
