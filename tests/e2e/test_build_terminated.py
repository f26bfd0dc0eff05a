"""A build that is told to end says so, and leaves nothing running."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from slmops.testing.tiny_gguf import write_tiny_llama

BLUEPRINT = """
name: tiny
model: tiny
classes: [{name: any, context_tokens: 256}]
candidates: [Q4_0]
evaluation: {max_tokens: 64, window_tokens: 64, speed_runs: 3}
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)]
)
def test_a_command_that_is_told_to_end_says_how_to_go_on(
    tmp_path: Path, sent: signal.Signals, code: int
) -> None:
    write_tiny_llama(tmp_path / "tiny.gguf")
    (tmp_path / "blueprint.yaml").write_text(BLUEPRINT)
    here = {**os.environ, "SLMOPS_WORKSPACE": str(tmp_path / "ws")}
    slmops = [sys.executable, "-m", "slmops"]
    subprocess.run(
        [*slmops, "model", "import", "tiny.gguf", "--name", "tiny"],
        cwd=tmp_path,
        env=here,
        check=True,
    )
    process = subprocess.Popen(
        [*slmops, "build", "blueprint.yaml"],
        cwd=tmp_path,
        env=here,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    first = process.stderr.readline()  # it is at work
    process.send_signal(sent)
    _, said = process.communicate(timeout=60)
    assert "run it again to go on" in said, first
    assert process.returncode == code
