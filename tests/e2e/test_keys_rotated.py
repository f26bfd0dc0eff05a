"""Every key is changed while a real control plane and a real agent run."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from slmops.testing.stage import Stage, echo_artefact, stage, wait_until

pytestmark = pytest.mark.slow


@pytest.fixture
def built(tmp_path: Path) -> Iterator[Stage]:
    with stage(tmp_path) as built:
        yield built


def test_a_fleet_follows_every_rotation_and_a_lost_key_without_a_restart(
    built: Stage,
) -> None:
    built.publish(1, echo_artefact())
    built.serve()
    state = built.enrol("till-1")
    built.start_agent(state)
    built.roll_out("sample-1")
    wait_until(lambda: built.serving(state) == "sample-1", "sample-1 serves")

    keys = built.workspace.keys
    for role in ("director", "root", "targets", "snapshot"):
        built.run("keys", "rotate", role)
    (keys / "timestamp.key").unlink()  # lost
    shown = json.loads(built.run("keys", "show", "--json"))
    [lost] = [row for row in shown["keys"] if row["place"] == "elsewhere"]
    assert lost["role"] == "timestamp"
    built.run("keys", "revoke", lost["keyid"][:12])
    shown = json.loads(built.run("keys", "show", "--json"))
    assert shown["root"] == 6
    assert not [row for row in shown["keys"] if row["place"] == "elsewhere"]

    built.publish(2, echo_artefact(start_delay_ms=1))
    built.roll_out("sample-2")
    wait_until(lambda: built.serving(state) == "sample-2", "sample-2 serves")
    directors = json.loads((state / "directors.json").read_text())["keys"]
    [row] = [row for row in shown["keys"] if row["role"] == "director"]
    assert directors == [row["keyid"]]
