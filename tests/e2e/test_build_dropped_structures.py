"""A structure that cannot be is named in the build's own words, not only on its page."""

import os
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
recipe:
  structures:
    - {name: deep, steps: [{prune_depth: {layers: 9}}]}
quality: {max_kld_times_8bit: 1000000000, min_same_top1: 0}
evaluation: {max_tokens: 128, window_tokens: 64, speed_runs: 3}
golden: {prompts: prompts.txt, answer_tokens: 2}
"""


@pytest.mark.slow
def test_a_structure_that_the_model_is_too_small_for_is_named(tmp_path: Path) -> None:
    write_tiny_llama(tmp_path / "tiny.gguf")
    (tmp_path / "blueprint.yaml").write_text(BLUEPRINT)
    (tmp_path / "prompts.txt").write_text("a cat and a hat\n")
    here = {**os.environ, "SLMOPS_WORKSPACE": str(tmp_path / "ws")}

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "slmops", *arguments],
            cwd=tmp_path,
            env=here,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stderr

    run("model", "import", "tiny.gguf", "--name", "tiny")
    said = run("build", "blueprint.yaml")
    assert "structure deep was not made: " in said
    assert "layers" in said
