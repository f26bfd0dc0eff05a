"""`slmops agent forgive`: what a person sees of lifting a quarantine."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from slmops.agent.journal import Journal, Quarantined
from slmops.agent.machine import JOURNAL
from slmops.agent.settings import AgentSettings, save_agent_settings
from slmops.cli.main import main
from slmops.domain.ids import Digest

DIGESTS = tuple(Digest("sha256:" + letter * 64) for letter in "ab")


@pytest.fixture
def state(tmp_path: Path) -> Path:
    save_agent_settings(
        tmp_path,
        AgentSettings(server="http://127.0.0.1:1", device="till-1", director_key=""),
    )
    journal = Journal.open(tmp_path / JOURNAL, now=1.0)
    for digest in DIGESTS:
        journal.quarantine(
            Quarantined(variant=digest, release="sample-2", reason="bad", at=1.0)
        )
    journal.close()
    return tmp_path


Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as caught:
            main(["agent", *arguments])
        return int(caught.value.code or 0), "".join(capsys.readouterr())

    return call


def test_one_or_all_are_lifted_and_shown(state: Path, run: Run) -> None:
    code, said = run("status", "--state", str(state), "--json")
    assert code == 0
    assert all(digest in said for digest in DIGESTS)
    code, said = run("forgive", "--state", str(state), DIGESTS[0])
    assert (code, DIGESTS[0] in said, DIGESTS[1] in said) == (0, True, False)
    code, said = run("forgive", "--state", str(state), "--json")
    assert [entry["variant"] for entry in json.loads(said)] == [DIGESTS[1]]
    assert run("forgive", "--state", str(state))[0] == 3


def test_a_folder_without_a_device_is_said(tmp_path: Path, run: Run) -> None:
    code, said = run("forgive", "--state", str(tmp_path))
    assert code == 3
    assert "enrol" in said
