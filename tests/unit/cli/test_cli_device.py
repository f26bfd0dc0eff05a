"""`slmops device` against a real control plane process."""

import json
import re
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from slmops.registry.keys import SigningKey
from slmops.testing.live_control import LiveControl, Slmops
from slmops.testing.scripted_device import ScriptedDevice
from slmops.wire import codec

pytestmark = pytest.mark.slow


def test_a_fresh_fleet_says_what_the_first_step_is(slmops: Slmops) -> None:
    listed = slmops("device", "list")
    assert (listed.code, listed.out) == (0, "")
    assert "slmops device token" in listed.err
    assert json.loads(slmops("device", "list", "--json").out) == {"devices": []}


def test_a_token_enrols_one_device_once(slmops: Slmops, live: LiveControl) -> None:
    made = slmops("device", "token", "--expires-in-s", "60")
    assert made.code == 0
    # Alone on standard output: TOKEN=$(slmops device token) works.
    token = made.out.strip()
    assert re.fullmatch(r"enrol_[\w-]{40,}", token)
    assert f"slmops agent enrol --server {live.control.url}" in made.err
    assert token not in made.err
    for name, expected in (("one", 201), ("two", 403)):
        key = SigningKey.create(live.control.workspace / f"{name}.key")
        body = {
            "token": token,
            "public_key": key.public_hex,
            "signature": key.sign(f"slmops-enrol:{token}".encode()),
            "name": name,
            "facts": {
                "memory_mib": 512,
                "disk_mib": 1,
                "cpu_count": 1,
                "architecture": "x86_64",
            },
        }
        assert live.http.post("/v1/enrol", json=body).status_code == expected


def test_a_token_as_json_says_how_long_it_lives(slmops: Slmops) -> None:
    made = json.loads(slmops("device", "token", "--json").out)
    assert made.keys() == {"token", "expires_in_s"}
    assert made["expires_in_s"] == 3600


@pytest.mark.parametrize("life", ["0", "-1", "nan", "inf", "1e9", "soon"])
def test_a_life_that_is_none_is_wrong_usage(slmops: Slmops, life: str) -> None:
    assert slmops("device", "token", "--expires-in-s", life).code == 2


@pytest.fixture(scope="module")
def till(live: LiveControl) -> ScriptedDevice:
    device = live.enrol("till-7", memory_mib=2048, labels={"site": "north"})
    assert device.sync(live.http) == 304
    return device


def test_devices_are_listed_with_what_they_last_said(
    slmops: Slmops, till: ScriptedDevice
) -> None:
    listed = slmops("device", "list")
    assert listed.code == 0
    assert till.name in listed.out
    assert "large" in listed.out
    tree = json.loads(slmops("device", "list", "--json").out)
    [one] = [one for one in tree["devices"] if one["id"] == till.name]
    assert one["device_class"] == "large"
    assert one["labels"] == {"site": "north"}
    assert one["requests"] == 10


def test_a_device_is_shown_with_facts_and_labels(
    slmops: Slmops, till: ScriptedDevice
) -> None:
    shown = slmops("device", "show", till.name)
    assert shown.code == 0
    assert "2048 MiB" in shown.out
    assert "site=north" in shown.out
    tree = json.loads(slmops("device", "show", till.name, "--json").out)
    assert tree["facts"]["memory_mib"] == 2048


def test_a_class_is_explained_condition_by_condition(
    slmops: Slmops, till: ScriptedDevice
) -> None:
    said = slmops("device", "explain", till.name)
    assert said.code == 0
    assert re.search(r"till-7 is of class large in sample-\d", said.out)
    assert "small: no, memory_mib 2048 is outside ..768" in said.out
    assert "large: yes, all its conditions hold" in said.out
    tree = json.loads(slmops("device", "explain", till.name, "--json").out)
    assert tree.keys() == {"device", "release", "fits"}


def test_a_retired_device_leaves_the_list_and_stays_on_record(
    slmops: Slmops, live: LiveControl
) -> None:
    device = live.enrol("stolen")
    retired = slmops("device", "retire", "stolen")
    assert (retired.code, "stolen is retired" in retired.out) == (0, True)
    raw = codec.encode_json(device.request())
    refused = live.http.post("/v1/sync", content=raw, headers=device.headers())
    assert refused.status_code == 403
    again = json.loads(slmops("device", "retire", "stolen", "--json").out)
    assert again["device"]["retired_at"]
    listed = slmops("device", "list")
    assert ("stolen" in listed.out, "1 retired" in listed.err) == (False, True)
    assert "stolen" not in slmops("device", "list", "--json").out
    assert re.search(r"stolen .* retired", slmops("device", "list", "--all").out)
    assert "retired" in slmops("device", "show", "stolen").out


def test_what_a_device_says_of_itself_does_not_steer_the_terminal(
    slmops: Slmops, live: LiveControl
) -> None:
    evil = "\x1b[2J\x1b]0;owned\x07\u202e[red]"
    device = live.enrol("evil", labels={"site": evil})
    assert device.sync(live.http) == 304
    shown = slmops("device", "show", "evil")
    assert shown.code == 0
    assert not set(shown.out) & set("\x1b\x07\u202e")
    assert "[red]" in shown.out
    tree = json.loads(slmops("device", "show", "evil", "--json").out)
    assert tree["device"]["labels"]["site"] == evil, "JSON is exact"


@pytest.mark.parametrize("command", ["show", "explain", "retire"])
def test_an_unknown_device_exits_with_3(slmops: Slmops, command: str) -> None:
    ran = slmops("device", command, "nobody")
    assert ran.code == 3
    assert "error [not_found]" in ran.err
    assert "nobody" in ran.err


@pytest.mark.parametrize("name", ["", "..", "../rollouts", "a/b", "a?x=1", "é", "%2e"])
def test_what_cannot_be_a_name_is_refused_before_it_is_sent(
    slmops: Slmops, name: str
) -> None:
    ran = slmops("device", "show", name)
    assert (ran.code, "device must be 1 to 64 of" in ran.err) == (2, True)


def test_a_wrong_token_exits_with_5_and_is_not_repeated(slmops: Slmops) -> None:
    ran = slmops("device", "list", "--token", "operator_wrong_wrong")
    assert ran.code == 5
    assert "operator_wrong_wrong" not in ran.err


@pytest.mark.parametrize("token", ["ü", "a\nb", "a\0b"])
def test_a_token_that_cannot_be_sent_is_refused_here(
    slmops: Slmops, token: str
) -> None:
    ran = slmops("device", "list", "--token", token)
    assert (ran.code, token in ran.err) == (2, False)


def test_a_token_file_that_cannot_be_read_exits_with_5(
    slmops: Slmops, live: LiveControl
) -> None:
    path = live.control.workspace / "control" / "operator-token"
    good = path.read_bytes()
    try:
        path.write_bytes(b"\xff\xfe")
        assert slmops("device", "list").code == 5
        path.unlink()
        ran = slmops("device", "list")
        assert (ran.code, "SLMOPS_OPERATOR_TOKEN" in ran.err) == (3, True)
    finally:
        path.write_bytes(good)


def test_without_a_control_plane_it_exits_with_7(slmops: Slmops) -> None:
    for server in ("http://127.0.0.1:9", "http://[", "http://127.0.0.1:99999"):
        ran = slmops("device", "list", "--server", server)
        assert ran.code == 7, ran.err
        assert "slmops serve" in ran.err


def test_an_address_of_another_scheme_exits_with_2(slmops: Slmops) -> None:
    assert slmops("device", "list", "--server", "ftp://a").code == 2


class _Stranger(BaseHTTPRequestHandler):
    """Answers everything, never as a control plane would."""

    answers = (b"<html>", b"", b"null", b'{"hello": 1}', b'{"devices": [1]}')

    def do_GET(self) -> None:
        content = self.answers[int(self.headers["Authorization"][-1])]
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_said: object) -> None:
        """Stay quiet."""


def test_something_else_on_the_port_is_said_to_be_no_control_plane(
    slmops: Slmops,
) -> None:
    with HTTPServer(("127.0.0.1", 0), _Stranger) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}"
        for index in range(len(_Stranger.answers)):
            arguments = ("--server", address, "--token", f"token-{index}")
            ran = slmops("device", "list", *arguments)
            assert ran.code == 7, (index, ran.err)
            assert "is no control plane" in ran.err
        server.shutdown()
        thread.join()
