"""The way to the control plane, through everything that may answer in its place."""

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from slmops.agent import link as link_module
from slmops.agent.journal import Journal
from slmops.agent.link import Link, enrol, http_client
from slmops.domain.device import DeviceFacts
from slmops.domain.errors import (
    ConflictError,
    InvalidInputError,
    NotFoundError,
    SlmopsError,
    UnavailableError,
    UntrustedError,
)
from slmops.domain.sync import EnrolRequest, SyncRequest
from slmops.registry.keys import SigningKey, verify_signature
from slmops.testing.clock import SimulatedClock
from slmops.testing.raw_server import (
    RawServer,
    Reply,
    answer,
    drip,
    head,
    raw,
    silent,
)

REQUEST = SyncRequest(
    facts=DeviceFacts(memory_mib=512, disk_mib=9, cpu_count=1, architecture="x")
)


def session(said: object = "t1", expires_in_s: object = 600) -> Reply:
    return answer(
        body=json.dumps({"token": said, "expires_in_s": expires_in_s}).encode()
    )


def nothing_new(poll: str = "30") -> Reply:
    return raw(head(304, Slmops_Next_Poll=poll))


def assigned(text: str = "sealed") -> Reply:
    return answer(body=json.dumps({"assignment": text}).encode(), Slmops_Next_Poll="2")


def error(status: int, message: str = "no") -> Reply:
    body = {"error": {"code": "x", "message": message}}
    return answer(status, json.dumps(body).encode())


@pytest.fixture
def server() -> Iterator[RawServer]:
    with RawServer(replies=[session(), nothing_new()]) as server:
        yield server


@pytest.fixture
def clock() -> SimulatedClock:
    return SimulatedClock()


@pytest.fixture
def client(server: RawServer) -> Iterator[httpx.Client]:
    with http_client(server.url) as client:
        client.timeout = httpx.Timeout(1.0)
        yield client


@pytest.fixture
def journal(tmp_path: Path, clock: SimulatedClock) -> Iterator[Journal]:
    journal = Journal.open(tmp_path / "journal.db", now=clock.now())
    yield journal
    journal.close()


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    return SigningKey.create(tmp_path / "device.key")


@pytest.fixture
def link(
    client: httpx.Client, journal: Journal, clock: SimulatedClock, key: SigningKey
) -> Link:
    return Link(client, device="till-1", key=key, journal=journal, clock=clock)


def paths(server: RawServer) -> list[str]:
    return [request.path for request in server.received]


def test_a_session_is_opened_with_a_signature_of_the_device_s_key(
    link: Link, server: RawServer, key: SigningKey
) -> None:
    link.sync(REQUEST)
    opened, synced = server.received
    said = json.loads(opened.body)
    message = f"slmops-session:till-1:{said['counter']}".encode()
    verify_signature(key.public_hex, said["signature"], message)
    assert synced.headers["authorization"] == "Bearer t1"
    assert json.loads(synced.body)["facts"]["memory_mib"] == 512


def test_nothing_new_and_a_new_assignment_are_told_apart(
    link: Link, server: RawServer
) -> None:
    server.replies = [session(), nothing_new("12.5"), assigned("sealed")]
    first, second = link.sync(REQUEST), link.sync(REQUEST)
    assert (first.next_poll_s, first.envelope) == (12.5, None)
    assert (second.next_poll_s, second.envelope) == (2.0, "sealed")
    assert paths(server) == ["/v1/session", "/v1/sync", "/v1/sync"]


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("0", 0.01),
        ("86400", 86_400.0),
        ("-1", None),
        ("nan", None),
        ("inf", None),
        ("1e9", None),
        ("soon", None),
        ("", None),
    ],
)
def test_a_nonsensical_next_poll_is_not_taken(
    link: Link, server: RawServer, said: str, meant: float | None
) -> None:
    server.replies = [session(), nothing_new(said)]
    assert link.sync(REQUEST).next_poll_s == meant


def test_a_session_is_renewed_before_it_ends(
    link: Link, server: RawServer, clock: SimulatedClock
) -> None:
    server.replies = [
        *(session("t1", 100), nothing_new(), nothing_new()),
        *(session("t2", 100), nothing_new()),
    ]
    link.sync(REQUEST)
    clock.advance(89)
    link.sync(REQUEST)
    clock.advance(2)
    link.sync(REQUEST)
    assert server.received[-1].headers["authorization"] == "Bearer t2"
    counters = [
        json.loads(request.body)["counter"]
        for request in server.received
        if request.path == "/v1/session"
    ]
    assert counters == sorted(set(counters))


def test_a_forgotten_session_is_opened_anew_and_nobody_notices(
    link: Link, server: RawServer
) -> None:
    server.replies = [
        *(session(), nothing_new(), error(401)),
        *(session("t2"), assigned()),
    ]
    link.sync(REQUEST)
    assert link.sync(REQUEST).envelope == "sealed"
    assert server.received[-1].headers["authorization"] == "Bearer t2"


@pytest.mark.parametrize("status", [401, 403])
def test_a_device_that_is_not_known_is_refused_once_and_does_not_spin(
    link: Link, server: RawServer, status: int
) -> None:
    server.replies = [session(), error(status, "who are you?"), error(status)]
    with pytest.raises(UntrustedError, match="who are you"):
        link.sync(REQUEST)
    assert len(server.received) == 2
    server.replies = [error(status)]
    with pytest.raises(UntrustedError):
        link.sync(REQUEST)
    assert len(server.received) == 3


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504, 301, 418])
def test_failures_of_the_server_are_for_later(
    link: Link, server: RawServer, status: int
) -> None:
    server.replies = [error(status)]
    with pytest.raises(UnavailableError):
        link.sync(REQUEST)
    server.replies = [session()] * 2 + [error(status, "busy")]
    with pytest.raises(UnavailableError, match="busy"):
        link.sync(REQUEST)


@pytest.mark.parametrize("status", [400, 413, 422])
def test_only_a_refused_sync_is_the_request_s_fault(
    link: Link, server: RawServer, status: int
) -> None:
    # Waiting reports are given up when *they* are refused, not for a bad session.
    server.replies = [error(status)]
    with pytest.raises(UnavailableError):
        link.sync(REQUEST)
    server.replies = [session()] * 2 + [error(status)]
    with pytest.raises(InvalidInputError):
        link.sync(REQUEST)


NO_ANSWERS = {
    "portal": answer(200, b"<html>Log in</html>", kind="text/html"),
    "no type": raw(
        b"HTTP/1.1 200 x\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"
    ),
    "empty": answer(200, b""),
    "other json": answer(200, b"{}"),
    "list": answer(200, b"[]"),
    "number": answer(200, b"3"),
    "cut json": answer(200, b'{"token": "t1", "expir'),
    "deep json": answer(200, b"[" * 100_000),
    "not utf-8": answer(200, b'{"token": "\xff", "assignment": "\xff"}'),
    "huge": answer(200, b" " * 1_200_000),
    "endless": drip(head(200), b" " * 65_536, pause_s=0),
    "cut": raw(head(200, length=1000) + b"{"),
    "redirect": answer(302, b"", Location="http://127.0.0.1:9/"),
    "html error": answer(503, b"<html>", kind="text/html"),
    "other protocol": raw(b"SSH-2.0-OpenSSH_9.9\r\n"),
    "closed": raw(b""),
    "silence": silent,
    "many headers": drip(b"HTTP/1.1 200 x\r\n", b"X-A: " + b"a" * 9000, pause_s=0),
    "unasked 304": raw(head(304)),
}


@pytest.mark.parametrize("reply", NO_ANSWERS.values(), ids=NO_ANSWERS)
def test_what_is_no_answer_to_a_session_is_unavailable(
    link: Link, server: RawServer, reply: Reply
) -> None:
    server.replies = [reply]
    with pytest.raises(UnavailableError):
        link.sync(REQUEST)


@pytest.mark.parametrize("name", [name for name in NO_ANSWERS if "304" not in name])
def test_what_is_no_answer_to_a_sync_is_unavailable_and_the_next_one_works(
    link: Link, server: RawServer, name: str
) -> None:
    server.replies = [session(), NO_ANSWERS[name], assigned()]
    with pytest.raises(UnavailableError):
        link.sync(REQUEST)
    assert link.sync(REQUEST).envelope == "sealed"


@pytest.mark.parametrize("token", ["", "a\r\nb: c", "ключ", "two words", "x" * 5000])
def test_a_token_that_fits_no_header_is_refused(
    link: Link, server: RawServer, token: str
) -> None:
    server.replies = [session(token), nothing_new()]
    with pytest.raises(UnavailableError):
        link.sync(REQUEST)
    assert paths(server) == ["/v1/session"]


def test_an_answer_that_drips_is_left(
    link: Link, server: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "_EXCHANGE_S", 0.2)
    server.replies = [drip(head(200), b" ", pause_s=0.05)]
    begin = time.monotonic()
    with pytest.raises(UnavailableError, match="no whole answer"):
        link.sync(REQUEST)
    assert time.monotonic() - begin < 1


def test_a_refused_connection_is_unavailable(
    journal: Journal, clock: SimulatedClock, key: SigningKey
) -> None:
    with http_client("http://127.0.0.1:9") as client:
        nowhere = Link(client, device="d", key=key, journal=journal, clock=clock)
        with pytest.raises(UnavailableError, match="ConnectError"):
            nowhere.sync(REQUEST)


def test_proxies_of_whoever_started_the_agent_are_not_used(
    server: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    with http_client(server.url) as client:
        assert client.get("/v1/session").status_code == 200


ENROL = EnrolRequest(
    token="one-time", public_key="ab" * 32, signature="cd" * 64, facts=REQUEST.facts
)


def enrolled(**other: object) -> Reply:
    said = {"device": "till-1", "director_key": "ab" * 32, "root": "{}", **other}
    return answer(body=json.dumps(said).encode())


def test_enrolment_sends_what_it_was_given_and_returns_what_to_keep(
    client: httpx.Client, server: RawServer
) -> None:
    server.replies = [enrolled()]
    kept = enrol(client, replace(ENROL, name="till-1"))
    assert (kept.device, kept.director_key) == ("till-1", "ab" * 32)
    assert json.loads(server.received[0].body)["name"] == "till-1"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (403, UntrustedError),
        (404, NotFoundError),
        (409, ConflictError),
        (422, InvalidInputError),
        (503, UnavailableError),
    ],
)
def test_a_refused_enrolment_is_the_error_that_the_server_names(
    client: httpx.Client, server: RawServer, status: int, kind: type[SlmopsError]
) -> None:
    server.replies = [error(status, "because")]
    with pytest.raises(kind, match="because"):
        enrol(client, ENROL)


@pytest.mark.parametrize(
    "reply",
    [
        enrolled(director_key="not hex"),
        enrolled(director_key="ab" * 31),
        enrolled(device=3),
        answer(200, b"{}"),
        answer(200, b"<html>", kind="text/html"),
    ],
)
def test_an_enrolment_that_something_else_answers_is_not_taken(
    client: httpx.Client, server: RawServer, reply: Reply
) -> None:
    server.replies = [reply]
    with pytest.raises(UnavailableError):
        enrol(client, ENROL)


@pytest.mark.parametrize("body", [b"", b"[]", b'{"error": 3}', b'{"error": {}}'])
def test_an_error_without_words_is_named_by_its_status(
    link: Link, server: RawServer, body: bytes
) -> None:
    server.replies = [answer(500, body)]
    with pytest.raises(UnavailableError, match="status 500"):
        link.sync(REQUEST)
