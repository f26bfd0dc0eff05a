"""From a real model to a published release, as a user types it."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

BLUEPRINT = """
name: assistant
model: smol
classes:
  - name: small
    where: {memory_mib: {max: 700}}
    budget: {disk_mib: 100}
    context_tokens: 256
  - name: large
    context_tokens: 256
candidates: [Q8_0, Q4_0]
quality: {max_kld_times_8bit: 200, min_same_top1: 0.4}
evaluation: {max_tokens: 192, window_tokens: 64, speed_runs: 3}
golden: {answer_tokens: 2}
"""

Tree = dict[str, Any]

pytestmark = pytest.mark.slow


@dataclass(frozen=True, slots=True)
class Shell:
    """Runs `slmops` in a folder with a workspace of its own."""

    folder: Path

    def run(
        self, *arguments: str, passphrase: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": "/usr/bin:/bin", "HOME": str(self.folder)}
        if passphrase is not None:
            environment["SLMOPS_KEY_PASSPHRASE"] = passphrase
        return subprocess.run(
            [sys.executable, "-m", "slmops", *arguments],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def document(self, *arguments: str) -> Any:  # noqa: ANN401 - what JSON holds
        done = self.run(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory, smollm2_gguf: Path) -> Shell:
    made = Shell(tmp_path_factory.mktemp("product"))
    (made.folder / "blueprint.yaml").write_text(BLUEPRINT)
    made.document("model", "import", str(smollm2_gguf), "--name", "smol")
    return made


@pytest.fixture(scope="module")
def built(shell: Shell) -> Tree:
    found: Tree = shell.document("build", "blueprint.yaml", "--output", "page")
    return found


def test_a_build_measures_every_candidate_and_chooses_for_every_class(
    shell: Shell, built: Tree
) -> None:
    chosen = {
        s["device_class"]: s["quantization"] for s in built["result"]["selection"]
    }
    assert chosen == {"small": "Q4_0", "large": "Q8_0"}
    reference = built["result"]["reference"]["card"]["fidelity"]
    assert reference["mean_kld"]["value"] < 1e-5
    kld = {
        c["card"]["quantization"]: c["card"]["fidelity"]["mean_kld"]["value"]
        for c in built["result"]["candidates"]
    }
    assert 0 < kld["Q8_0"] < kld["Q4_0"]
    assert "Q4_0" in (shell.folder / "page" / "build.html").read_text()
    assert (shell.folder / "page" / "pareto.png").read_bytes()[1:4] == b"PNG"


def test_a_second_build_computes_nothing_and_finds_the_same(
    shell: Shell, built: Tree
) -> None:
    again = shell.document("build", "blueprint.yaml", "--output", "page")
    assert again["steps_computed"] == 0
    assert again["build"] == built["build"]


def test_a_report_shows_a_finished_build_again(shell: Shell, built: Tree) -> None:
    done = shell.run("report", built["build"][7:17], "--output", "again")
    assert done.returncode == 0, done.stderr
    assert "Q8_0 (control)" in done.stdout
    page = (shell.folder / "page" / "build.html").read_bytes()
    assert (shell.folder / "again" / "build.html").read_bytes() == page


def test_a_build_becomes_one_release_and_not_two(shell: Shell, built: Tree) -> None:
    shell.document("build", "blueprint.yaml", "--output", "page")
    created = shell.document("release", "create")
    assert created["label"] == "assistant-1"
    assert created["build"] == built["build"]
    assert shell.run("release", "verify", "assistant-1").returncode == 0
    again = shell.run("release", "create")
    assert again.returncode == 4
    assert "assistant-1 holds this build already" in again.stderr


def test_below_the_floor_a_release_needs_force_and_a_reason_that_it_keeps(
    shell: Shell, built: Tree
) -> None:
    refused = shell.run("build", "blueprint.yaml", "--candidates", "Q2_K_PURE")
    assert refused.returncode == 6
    shell.document(
        *("build", "blueprint.yaml", "--candidates", "Q2_K_PURE"),
        *("--below-floor", "--output", "page"),
    )
    refused = shell.run("release", "create")
    assert refused.returncode == 6
    assert "Q2_K_PURE" in refused.stderr
    assert shell.run("release", "create", "--force").returncode == 2
    before = shell.document("release", "list")
    forced = shell.document("release", "create", "--force", "--reason", "a drill")
    assert forced["forced"]["reason"] == "a drill"
    assert any("same-top-1" in v for v in forced["forced"]["violations"])
    assert forced["version"] == len(before["releases"]) + 1


def test_a_passphrase_keeps_the_keys_from_whoever_does_not_know_it(
    shell: Shell, built: Tree
) -> None:
    workspace = shell.folder / "encrypted" / ".slmops"
    shutil.copytree(
        shell.folder / ".slmops",
        workspace,
        copy_function=os.link,
        ignore=shutil.ignore_patterns("keys", "registry"),
    )
    other = Shell(workspace.parent)
    created = other.run("release", "create", built["build"], passphrase="open")
    assert created.returncode == 0, created.stderr
    assert "ENCRYPTED" in (workspace / "keys" / "targets.key").read_text()
    assert other.run("release", "create", passphrase="wrong").returncode == 5
    assert other.run("release", "create").returncode == 5


def test_an_unknown_build_or_candidate_is_named(shell: Shell) -> None:
    assert shell.run("release", "create", "feedbeef").returncode == 3
    done = shell.run("build", "blueprint.yaml", "--candidates", "Q9_9")
    assert done.returncode == 2
    assert "Q9_9" in done.stderr


def test_a_changed_blueprint_is_applied_and_an_unchanged_one_is_not(
    shell: Shell, built: Tree
) -> None:
    first = shell.document("release", "list")["releases"]
    before = {one["label"] for one in first}
    path = shell.folder / "blueprint.yaml"
    path.write_text(BLUEPRINT + "rollout: {soak_s: 5}\n")
    shown = shell.document("blueprint", "diff", "blueprint.yaml")
    assert "rollout.soak_s" in {one["path"] for one in shown["changes"]}
    refused = shell.run("blueprint", "apply", "blueprint.yaml")
    assert refused.returncode == 130  # nobody to say yes
    assert "rollout.soak_s" in refused.stdout
    applied = shell.document("blueprint", "apply", "blueprint.yaml", "--yes")
    assert applied["release"] not in before
    again = shell.document("blueprint", "apply", "blueprint.yaml", "--yes")
    assert again == applied
    path.write_text(BLUEPRINT)
