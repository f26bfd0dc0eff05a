"""What the API accepts, refuses and answers."""

import stat
from collections.abc import Callable
from typing import Any, Protocol

import pytest

from slmops.control.api_device import NEXT_POLL
from slmops.registry.keys import SigningKey
from slmops.testing.control_in_process import ControlInProcess
from slmops.wire import codec

Run = Callable[..., ControlInProcess]

FACTS = {"memory_mib": 512, "disk_mib": 1, "cpu_count": 1, "architecture": "x86_64"}


class Answer(Protocol):
    status_code: int

    def json(self) -> Any: ...  # noqa: ANN401


def error_of(answer: Answer) -> tuple[int, str]:
    tree = answer.json()
    assert set(tree) == {"error"}
    assert set(tree["error"]) == {"code", "message"}
    assert tree["error"]["message"]
    return answer.status_code, tree["error"]["code"]


def test_health_tells_that_the_database_works(control: ControlInProcess) -> None:
    assert control.http.get("/healthz").json()["status"] == "ok"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/tokens"),
        ("GET", "/v1/devices"),
        ("GET", "/v1/devices/a"),
        ("GET", "/v1/releases"),
        ("GET", "/v1/rollouts"),
        ("POST", "/v1/rollouts"),
        ("GET", "/v1/rollouts/r-1"),
        ("POST", "/v1/rollouts/r-1/pause"),
        ("POST", "/v1/rollouts/r-1/resume"),
        ("POST", "/v1/rollouts/r-1/abort"),
        ("GET", "/v1/audit"),
        ("GET", "/v1/events"),
    ],
)
def test_operator_routes_refuse_strangers_and_devices(
    control: ControlInProcess, method: str, path: str
) -> None:
    device = control.enrol("a")
    for headers in ({}, {"Authorization": "Bearer x"}, device.headers()):
        answer = control.http.request(method, path, headers=headers)
        assert error_of(answer) == (403, "untrusted")


def test_the_operator_token_is_readable_by_its_owner_only(
    control: ControlInProcess,
) -> None:
    path = control.sample.workspace.control / "operator-token"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_no_token_is_stored_as_it_is(control: ControlInProcess) -> None:
    device = control.enrol("a")
    database = control.sample.workspace.control
    stored = b"".join(path.read_bytes() for path in database.glob("control.db*"))
    assert device.headers()["Authorization"].removeprefix("Bearer ").encode() not in (
        stored
    )


def test_an_unknown_route_and_a_wrong_method_have_the_common_form(
    control: ControlInProcess,
) -> None:
    assert error_of(control.http.get("/v1/nothing")) == (404, "not_found")
    assert error_of(control.http.get("/v1/sync")) == (405, "method_not_allowed")


def test_a_device_enrols_once_per_token(control: ControlInProcess) -> None:
    token = control.post("/v1/tokens", {}, status=201)["token"]
    for name, expected in (("a", 201), ("b", 403)):
        key = SigningKey.create(control.sample.workspace.root / f"{name}.key")
        answer = control.http.post(
            "/v1/enrol",
            json={
                "token": token,
                "public_key": key.public_hex,
                "signature": key.sign(f"slmops-enrol:{token}".encode()),
                "facts": FACTS,
                "name": name,
            },
        )
        assert answer.status_code == expected, answer.text


def test_an_expired_enrolment_token_is_refused(control: ControlInProcess) -> None:
    token = control.post("/v1/tokens", {"expires_in_s": 10}, status=201)["token"]
    control.times[0] += 11
    key = SigningKey.create(control.sample.workspace.root / "a.key")
    answer = control.http.post(
        "/v1/enrol",
        json={
            "token": token,
            "public_key": key.public_hex,
            "signature": key.sign(f"slmops-enrol:{token}".encode()),
            "facts": FACTS,
        },
    )
    assert error_of(answer) == (403, "untrusted")


def test_enrolment_needs_proof_of_the_key(control: ControlInProcess) -> None:
    token = control.post("/v1/tokens", {}, status=201)["token"]
    key = SigningKey.create(control.sample.workspace.root / "a.key")
    body = {
        "token": token,
        "public_key": key.public_hex,
        "signature": key.sign(b"something else"),
        "facts": FACTS,
    }
    assert error_of(control.http.post("/v1/enrol", json=body)) == (403, "untrusted")


def test_sessions_count_as_requests_of_their_device_only(run_control: Run) -> None:
    control = run_control(device_burst=3, device_rate_per_s=0.001)
    device, other = control.enrol("a"), control.enrol("b")

    def ask(counter: int, signed: bytes) -> int:
        message = {
            "device": "a",
            "counter": counter,
            "signature": device.key.sign(signed),
        }
        return control.http.post("/v1/session", json=message).status_code

    forged = [ask(9, b"something else") for _ in range(9)]
    assert set(forged) == {403}, "a stranger uses up nothing"
    asked = [ask(index, f"slmops-session:a:{index}".encode()) for index in (2, 3, 4)]
    assert asked == [200, 200, 503]
    assert other.sync(control.http) == 304


def test_a_replayed_session_request_is_refused(control: ControlInProcess) -> None:
    device = control.enrol("a")
    message = {
        "device": "a",
        "counter": 1,
        "signature": device.key.sign(b"slmops-session:a:1"),
    }
    answer = control.http.post("/v1/session", json=message)
    assert error_of(answer) == (403, "untrusted")


def test_a_recorded_session_request_uses_up_nothing(run_control: Run) -> None:
    control = run_control(device_burst=3, device_rate_per_s=0.001)
    device = control.enrol("a")
    recorded = {
        "device": "a",
        "counter": 1,
        "signature": device.key.sign(b"slmops-session:a:1"),
    }
    for _ in range(9):
        answer = control.http.post("/v1/session", json=recorded)
        assert error_of(answer) == (403, "untrusted")
    assert device.sync(control.http) == 304


def test_a_device_cannot_open_another_ones_session(control: ControlInProcess) -> None:
    control.enrol("a")
    other = control.enrol("b")
    for device in ("a", "nobody"):
        message = {
            "device": device,
            "counter": 9,
            "signature": other.key.sign(f"slmops-session:{device}:9".encode()),
        }
        answer = control.http.post("/v1/session", json=message)
        assert error_of(answer) == (403, "untrusted")


def test_a_session_ends_and_the_device_opens_the_next(
    control: ControlInProcess,
) -> None:
    device = control.enrol("a")
    control.times[0] += control.plane.settings.session_s + 1
    raw = codec.encode_json(device.request())
    answer = control.http.post("/v1/sync", content=raw, headers=device.headers())
    assert error_of(answer) == (403, "untrusted")
    assert device.sync(control.http) == 304


def test_nothing_new_is_304_with_a_jittered_next_poll(run_control: Run) -> None:
    control = run_control(poll_s=10.0)
    device = control.enrol("a")
    raw = codec.encode_json(device.request())
    polls = set()
    for _ in range(5):
        answer = control.http.post("/v1/sync", content=raw, headers=device.headers())
        assert answer.status_code == 304
        assert answer.content == b""
        polls.add(float(answer.headers[NEXT_POLL]))
    assert all(8 <= poll <= 12 for poll in polls)
    assert len(polls) > 1


def test_a_device_that_asks_too_often_is_told_to_wait(run_control: Run) -> None:
    control = run_control(device_burst=4, device_rate_per_s=0.001)  # one is a session
    device, other = control.enrol("a"), control.enrol("b")
    raw = codec.encode_json(device.request())
    answers = [
        control.http.post("/v1/sync", content=raw, headers=device.headers())
        for _ in range(4)
    ]
    assert [answer.status_code for answer in answers] == [304, 304, 304, 503]
    assert error_of(answers[-1]) == (503, "unavailable")
    assert answers[-1].headers["Retry-After"]
    assert other.sync(control.http) == 304


BAD_OPERATOR_CALLS = [
    ("/v1/tokens", b"[]"),
    ("/v1/tokens", b'{"expires_in_s": 0}'),
    ("/v1/tokens", b'{"expires_in_s": 1e300}'),
    ("/v1/tokens", b'{"expires": 5}'),
    ("/v1/rollouts", b""),
    ("/v1/rollouts", b'{"release": 1}'),
    ("/v1/rollouts/r-1/abort", b"{}"),
    ("/v1/rollouts/r-1/abort", b'{"keep": "yes"}'),
]


@pytest.mark.parametrize(("path", "body"), BAD_OPERATOR_CALLS)
def test_a_bad_operator_call_is_refused(
    control: ControlInProcess, path: str, body: bytes
) -> None:
    answer = control.http.post(path, content=body, headers=control.operator)
    assert error_of(answer) == (422, "invalid_input")


def test_what_does_not_exist_is_not_found(control: ControlInProcess) -> None:
    control.get("/v1/devices/nobody", status=404)
    control.get("/v1/rollouts/r-9", status=404)
    control.post("/v1/rollouts/r-9/pause", {}, status=404)
    control.enrol("a")
    control.post("/v1/rollouts", {"release": "sample-9"}, status=404)


def test_an_artefact_is_served_whole_in_ranges_and_not_again(
    control: ControlInProcess,
) -> None:
    variant = control.sample.releases[0].variants[0]
    path = f"/v1/registry/blobs/sha256/{variant.digest.removeprefix('sha256:')}"
    whole = control.http.get(path)
    etag = whole.headers["ETag"]
    assert len(whole.content) == variant.bytes
    part = control.http.get(path, headers={"Range": "bytes=5-9"})
    assert (part.status_code, part.content) == (206, whole.content[5:10])
    assert part.headers["Content-Range"] == f"bytes 5-9/{variant.bytes}"
    headers = {"Range": "bytes=5-", "If-Range": etag}
    assert control.http.get(path, headers=headers).content == whole.content[5:]
    headers = {"Range": "bytes=5-", "If-Range": '"another"'}
    assert control.http.get(path, headers=headers).status_code == 200
    headers = {"Range": f"bytes={variant.bytes}-"}
    assert control.http.get(path, headers=headers).status_code == 416
    assert control.http.get(path, headers={"If-None-Match": etag}).status_code == 304


@pytest.mark.parametrize(
    "path",
    [
        "/v1/registry/metadata/..%2f..%2fcontrol%2foperator-token",
        "/v1/registry/metadata/../../control/operator-token",
        "/v1/registry/metadata/%2e%2e%2fkeys%2froot.json",
        "/v1/registry/targets/releases/..%2fx.json",
        "/v1/registry/blobs/sha256/..",
        "/v1/registry/blobs/sha256/" + "0" * 64,
        "/v1/registry/blobs/sha256/" + "0" * 63 + "%00",
        "/dashboard/..%2f..%2f__init__.py",
        "/dashboard/index.html%00",
    ],
)
def test_no_path_leads_out_of_the_registry(
    control: ControlInProcess, path: str
) -> None:
    answer = control.http.get(path)
    assert answer.status_code == 404, answer.text


def test_signed_files_need_no_credential(control: ControlInProcess) -> None:
    for name in ("timestamp.json", "1.root.json"):
        answer = control.http.get(f"/v1/registry/metadata/{name}")
        assert answer.status_code == 200
        assert "signed" in answer.json()
    digest = control.get("/v1/releases")["releases"][0]["digest"]
    name = f"{digest.removeprefix('sha256:')}.sample-1.json"
    answer = control.http.get(f"/v1/registry/targets/releases/{name}")
    assert answer.json()["name"] == "sample"


def test_the_audit_log_says_who_did_what(control: ControlInProcess) -> None:
    control.enrol("a")
    control.post("/v1/rollouts", {"release": "sample-1"}, status=201)
    entries = control.get("/v1/audit")["entries"]
    assert [(one["actor"], one["action"]) for one in entries] == [
        ("operator", "rollout.start"),
        ("device:a", "device.enrol"),
        ("operator", "token.make"),
    ]


def test_a_device_is_explained_by_its_class_conditions(
    control: ControlInProcess,
) -> None:
    control.enrol("a", memory_mib=4096)
    detail = control.get("/v1/devices/a")
    assert detail["device"]["device_class"] == "large"
    assert detail["fits"][0] == {
        "device_class": "small",
        "mismatches": ["memory_mib 4096 is outside ..768"],
    }
