"""Unit files: systemd accepts them, they are locked down, and their commands exist."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from slmops.cli.main import app
from slmops.cli.reference.commands import leaf_commands

DEPLOY = Path(__file__).parents[2] / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
SYSTEMD = shutil.which("systemd-analyze")
HARDENED = (
    *("NoNewPrivileges=yes", "ProtectSystem=strict", "PrivateTmp=yes"),
    *("CapabilityBoundingSet=", "StateDirectoryMode=0700", "UMask=0077"),
)
needs_systemd = pytest.mark.skipif(SYSTEMD is None, reason="systemd is not installed")


def analyze(*arguments: str) -> "subprocess.CompletedProcess[str]":
    assert SYSTEMD is not None
    return subprocess.run(
        [SYSTEMD, *arguments], capture_output=True, check=False, text=True, timeout=60
    )


def test_agent_and_control_plane_have_a_unit() -> None:
    assert [unit.stem for unit in UNITS] == ["slmops-agent", "slmops-control"]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_a_unit_runs_as_its_own_user_and_can_write_its_state_only(unit: Path) -> None:
    lines = unit.read_text("utf-8").splitlines()
    assert set(HARDENED) <= set(lines)
    assert f"User={unit.stem}" in lines
    assert f"StateDirectory={unit.stem}" in lines
    assert not [line for line in lines if line.startswith("ReadWritePaths=")]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_the_command_of_a_unit_exists_with_its_options(unit: Path) -> None:
    (start,) = re.findall(r"^ExecStart=(.*)$", unit.read_text("utf-8"), re.MULTILINE)
    words = start.partition("/opt/slmops/bin/slmops ")[2].rstrip("'").split()
    if words[0] == "--workspace":
        words = words[2:]
    leaves = dict(leaf_commands(app))
    size = next(n for n in (2, 1) if tuple(words[:n]) in leaves)
    leaves[tuple(words[:size])].make_context("slmops", words[size:])


@needs_systemd
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_finds_no_fault_with_a_unit(unit: Path, tmp_path: Path) -> None:
    # It also wants the program to be there, which it is on a device only.
    text = unit.read_text("utf-8").replace("/opt/slmops/bin/slmops", "/bin/true")
    copy = tmp_path / unit.name
    copy.write_text(text, "utf-8")
    found = analyze("verify", "--man=no", str(copy))
    assert (found.returncode, found.stderr) == (0, "")


@needs_systemd
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_a_unit_is_hardly_exposed(unit: Path) -> None:
    found = analyze("security", "--offline=true", "--threshold=20", str(unit))
    assert found.returncode == 0, found.stdout[-2000:]
