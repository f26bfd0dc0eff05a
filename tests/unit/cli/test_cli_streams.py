"""Standard output and error as processes meet them: closed, narrow, complete."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SLMOPS = [sys.executable, "-m", "slmops"]


@pytest.mark.parametrize("command", [["blueprint", "schema"], ["--help"]])
def test_a_reader_that_has_seen_enough_ends_a_command_quietly(
    tmp_path: Path, command: list[str]
) -> None:
    with subprocess.Popen(
        [*SLMOPS, *command],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        said = process.stderr.read()
    assert (process.returncode, said) == (1, "")


def test_signs_that_a_terminal_cannot_spell_do_not_stop_a_command(
    tmp_path: Path,
) -> None:
    ran = subprocess.run(
        [*SLMOPS, "device", "--help"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert b"slmops device" in ran.stdout
    ran = subprocess.run(
        [*SLMOPS, "model", "show", "h\u00e4\udcff"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert ran.returncode == 3
    assert ran.stderr.startswith(b"error [not_found]: model 'h?")


def test_a_shell_can_complete_nouns_verbs_and_options(tmp_path: Path) -> None:
    def offered(words: str) -> set[str]:
        variables = {
            "_SLMOPS_COMPLETE": "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split(" ")) - 1),
        }
        program = "from slmops.cli.main import main; main()"
        ran = subprocess.run(
            [sys.executable, "-c", program],
            cwd=tmp_path,
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        return {line.partition(",")[2] for line in ran.stdout.splitlines()}

    assert {"rollout", "release", "report"} == offered("slmops r")
    assert {"start", "status"} == offered("slmops rollout st")
    assert {"--watch"} == offered("slmops rollout status --w")
