"""Settings of the agent: typed, checked, and readable by the owner only."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from slmops.agent.settings import (
    CONFIG,
    AgentSettings,
    load_agent_settings,
    save_agent_settings,
)
from slmops.domain.errors import InvalidInputError, NotFoundError

EVERY = "0.0.0.0"  # noqa: S104 - never bound here
GOOD = AgentSettings(
    server="http://127.0.0.1:8800",
    device="till-1",
    director_key="ab" * 32,
    labels={"site": "north"},
    memory_mib=512,
)


def test_what_enrolment_saved_is_read_back_and_is_for_the_owner_only(
    tmp_path: Path,
) -> None:
    save_agent_settings(tmp_path, GOOD)
    assert load_agent_settings(tmp_path, {}) == GOOD
    assert (tmp_path / CONFIG).stat().st_mode & 0o777 == 0o600


def test_variables_win_over_the_file(tmp_path: Path) -> None:
    save_agent_settings(tmp_path, GOOD)
    variables = {
        "SLMOPS_AGENT_PORT": "9000",
        "SLMOPS_AGENT_ALLOWED_HOSTS": "[till.local]",
        "SLMOPS_WORKSPACE": "/elsewhere",
    }
    found = load_agent_settings(tmp_path, variables)
    assert (found.port, found.allowed_hosts) == (9000, ("till.local",))
    assert found.device == "till-1"


def test_a_folder_that_was_never_enrolled_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="slmops agent enrol"):
        load_agent_settings(tmp_path, {})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"server": "ftp://x"}, "server"),
        ({"server": ""}, "server"),
        ({"blob_mirror": "10.0.0.2:8810"}, "blob_mirror"),
        ({"blob_mirror_wait_s": 0}, "blob_mirror_wait_s"),
        ({"port": 65_536}, "port"),
        ({"port": -1}, "port"),
        ({"port": "many"}, "port"),
        ({"memory_mib": 0}, "memory_mib"),
        ({"min_battery": 1.1}, "min_battery"),
        ({"min_battery": -0.1}, "min_battery"),
        ({"hold_s": 0}, "hold_s"),
        ({"sync_longest_s": -1}, "sync_longest_s"),
        ({"window_s": 0}, "window_s"),
        ({"disk_reserve_mib": -1}, "disk_reserve_mib"),
        ({"host": EVERY}, "allowed_hosts must list"),
        ({"host": "::"}, "allowed_hosts must list"),
        ({"host": "192.0.2.1"}, "allowed_hosts must list"),
        ({"allowed_hosts": ["till.local", "till.local:80"]}, r"allowed_hosts\[1\]"),
        ({"labels": {"a": 3}}, "labels"),
        ({"colour": "blue"}, "colour"),
    ],
)
def test_a_wrong_setting_is_named(
    tmp_path: Path, change: dict[str, object], named: str
) -> None:
    save_agent_settings(tmp_path, GOOD)
    tree = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps({**tree, **change}))
    with pytest.raises(InvalidInputError, match=named):
        load_agent_settings(tmp_path, {})


@pytest.mark.parametrize(
    ("host", "allowed", "hosts"),
    [
        ("127.0.0.1", (), ("127.0.0.1", "localhost", "::1")),
        ("::1", (), ("127.0.0.1", "localhost", "::1")),
        (
            "127.0.0.9",
            ("till",),
            ("127.0.0.1", "localhost", "::1", "127.0.0.9", "till"),
        ),
        ("192.0.2.1", ("till",), ("192.0.2.1", "till")),
        (EVERY, ("till",), ("127.0.0.1", "localhost", "::1", "till")),
        ("::", ("*",), ("127.0.0.1", "localhost", "::1", "*")),
    ],
)
def test_the_endpoint_answers_to_its_own_names_and_those_that_were_allowed(
    host: str, allowed: tuple[str, ...], hosts: tuple[str, ...]
) -> None:
    assert replace(GOOD, host=host, allowed_hosts=allowed).hosts == hosts
