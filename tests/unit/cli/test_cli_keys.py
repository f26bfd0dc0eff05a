"""slmops keys: a threshold root, changed offline in three steps."""

import json
import shutil
from pathlib import Path

import pytest

from slmops.agent.settings import AgentSettings, save_agent_settings
from slmops.cli.main import main
from slmops.registry.catalog import Catalog
from slmops.registry.signing import ReleaseKeys
from slmops.testing.sample_release import publish_sample


class Shell:
    """Runs commands on one workspace."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.workspace = folder / "workspace"
        self.keys = self.workspace / "keys"
        self._capsys = capsys

    def run(self, *arguments: object, code: int = 0) -> str:
        with pytest.raises(SystemExit) as ended:
            main(["--workspace", str(self.workspace), *map(str, arguments)])
        said = self._capsys.readouterr()
        assert ended.value.code == code, said.err
        return said.out + said.err

    def json(self, *arguments: object) -> dict[str, object]:
        tree: dict[str, object] = json.loads(self.run(*arguments, "--json"))
        return tree


@pytest.fixture
def shell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(tmp_path, capsys)


def test_a_change_of_keys_travels_to_two_key_holders_and_back(
    shell: Shell, tmp_path: Path
) -> None:
    shell.run("keys", "init", "--root-keys", 3, "--root-threshold", 2)
    stick = tmp_path / "stick"
    stick.mkdir()
    for name in ("root.key", "root-2.key", "root-3.key"):
        (shell.keys / name).rename(stick / name)
    keys = ReleaseKeys.load(shell.keys)
    publish_sample(shell.workspace, keys=keys)
    said = shell.run("keys", "rotate", "targets")
    assert "root version 2 waits in keys/next-root.json" in said
    assert "2 of the old root's keys" in said
    file = stick / "next-root.json"
    shutil.copy(shell.keys / "next-root.json", file)
    shell.run("keys", "root", "sign", file, "--key", stick / "root.key")
    assert "1 of the old root's keys" in shell.run("keys", "root", "publish", file)
    shell.run("keys", "root", "sign", file, "--key", stick / "root-3.key")
    said = shell.run("keys", "root", "publish", file)
    assert "published root version 2" in said
    assert "retired targets.key.retired" in said
    shown = shell.json("keys", "show")
    assert shown["root"] == 2
    assert "elsewhere" in shell.run("keys", "show")


def test_what_is_here_is_revoked_renewed_and_rotated_at_once(shell: Shell) -> None:
    publish_sample(shell.workspace)
    rows = shell.json("keys", "show")["keys"]
    assert isinstance(rows, list)
    assert [row["role"] for row in rows] == [
        *("root", "targets", "snapshot", "timestamp", "director")
    ]
    keyid = next(row["keyid"] for row in rows if row["role"] == "snapshot")
    assert shell.json("keys", "revoke", keyid[:10])["published"] is True
    assert shell.json("keys", "renew")["version"] == 3
    assert shell.json("keys", "rotate", "director")["version"] == 4
    assert shell.run("keys", "revoke", "zz", code=3)
    assert shell.run("keys", "rotate", "targets", "--to", "vault:x", code=2)
    pinned = (shell.keys / "root.json").read_bytes()
    catalog = Catalog(shell.workspace / "registry", pinned_root=pinned)
    assert catalog.labels() == ("sample-1",)


def test_a_lost_root_is_replaced_only_when_meant_and_given_to_a_device_by_hand(
    shell: Shell, tmp_path: Path
) -> None:
    published = publish_sample(shell.workspace)
    (shell.keys / "root.key").unlink()
    assert "--yes" in shell.run("keys", "root", "replace", code=2)
    shell.run("keys", "root", "replace", "--yes")
    state = tmp_path / "till-1"
    state.mkdir()
    settings = AgentSettings(
        server="http://127.0.0.1:1",
        device="till-1",
        director_key=published.keys.director.public_hex,
    )
    save_agent_settings(state, settings)
    new = shell.keys / "root.json"
    said = shell.run("agent", "trust", "--state", state, "--root", new)
    assert "trusts root version 1, sha256:" in said
    assert (state / "root.json").read_bytes() == new.read_bytes()
    absent = tmp_path / "none.json"
    assert shell.run("agent", "trust", "--state", state, "--root", absent, code=7)


def test_no_keys_and_no_workspace_are_said(shell: Shell, tmp_path: Path) -> None:
    assert "does not exist" in shell.run("keys", "show", code=3)
    shell.run("keys", "init")
    assert "never overwritten" in shell.run("keys", "init", code=4)
    shell.run("keys", "root", "publish", tmp_path / "none.json", code=7)


def test_what_was_signed_elsewhere_is_admitted_by_a_command(shell: Shell) -> None:
    shell.run("keys", "init")
    for name in ("snapshot.key", "timestamp.key", "director.key"):
        (shell.keys / name).rename(shell.workspace / name)
    publish_sample(shell.workspace, keys=ReleaseKeys.load(shell.keys))
    assert shell.json("release", "list")["releases"] == []
    shell.run("release", "admit", code=3)
    for name in ("snapshot.key", "timestamp.key", "director.key"):
        (shell.workspace / name).rename(shell.keys / name)
    assert "published sample-1" in shell.run("release", "admit")
    assert shell.json("release", "admit")["admitted"] == []
    assert shell.json("release", "list")["releases"]
