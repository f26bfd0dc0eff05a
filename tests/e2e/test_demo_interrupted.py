"""The demo leaves nothing running behind it, however it ends early."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from slmops.demo.story import MARK, PIDS, prepare_output
from slmops.domain.errors import ConflictError

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_demo_stops_everything_and_says_so(
    tmp_path: Path, smollm2_gguf: Path, number: signal.Signals
) -> None:
    output = tmp_path / "demo"
    process = subprocess.Popen(
        [sys.executable, "-m", "slmops", "demo", "--output", str(output)],
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "score reference" in line:
            break
    time.sleep(0.5)
    os.killpg(process.pid, number)
    rest = process.communicate(timeout=60)[0]
    assert process.returncode == 130
    assert "stopped" in rest
    assert not [
        other.pid
        for other in psutil.process_iter(["cmdline"])
        if str(output) in " ".join(other.info["cmdline"] or ())
    ]
    assert not (output / "summary.json").exists()
    assert not (output / PIDS).exists()


def test_an_output_folder_that_exists_is_left_alone(tmp_path: Path) -> None:
    kept = tmp_path / "demo" / "summary.json"
    kept.parent.mkdir()
    kept.write_text("old")
    done = subprocess.run(
        [sys.executable, "-m", "slmops", "demo", "--output", str(kept.parent)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 4
    assert "exists" in done.stderr
    assert kept.read_text() == "old"


def test_only_an_earlier_demo_that_is_over_is_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    folder.mkdir()
    (folder / "mine").touch()
    with pytest.raises(ConflictError, match="exists"):
        prepare_output(folder, replace_demo=True)
    (folder / MARK).touch()
    (folder / PIDS).write_text(f"{os.getpid()}\n")
    with pytest.raises(ConflictError, match="may still run"):
        prepare_output(folder, replace_demo=True)
    (folder / PIDS).unlink()
    prepare_output(folder, replace_demo=True)
    assert {path.name for path in folder.iterdir()} == {MARK, PIDS}
    with pytest.raises(ConflictError, match="may still run"):
        prepare_output(folder, replace_demo=True)
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]
    link = tmp_path / "link"
    link.symlink_to(folder)
    with pytest.raises(ConflictError, match="exists"):
        prepare_output(link, replace_demo=True)
