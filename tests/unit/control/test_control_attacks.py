"""Attacks on the control plane with what can be stolen from a site."""

from typing import Any

from slmops.registry.keys import SigningKey
from slmops.testing.control_in_process import ControlInProcess, quick_release
from slmops.testing.sample_release import publish_sample
from slmops.wire import codec

FACTS = {"memory_mib": 512, "disk_mib": 1, "cpu_count": 1, "architecture": "x86_64"}


def enrol(control: ControlInProcess, token: str, name: str) -> Any:  # noqa: ANN401
    key = SigningKey.create(control.sample.workspace.root / f"{name}-{token[-6:]}.key")
    return control.http.post(
        "/v1/enrol",
        json={
            "token": token,
            "public_key": key.public_hex,
            "signature": key.sign(f"slmops-enrol:{token}".encode()),
            "facts": FACTS,
            "name": name,
        },
    )


def test_a_stolen_enrolment_token_is_worth_one_new_device_that_is_seen_and_retired(
    control: ControlInProcess,
) -> None:
    victim = control.enrol("till-1")
    token = control.post("/v1/tokens", {}, status=201)["token"]
    # It does not take over a device that is there.
    assert enrol(control, token, "till-1").status_code == 409
    assert victim.sync(control.http) == 304
    # The thief is first: the owner's own enrolment fails, aloud.
    assert enrol(control, token, "till-2").status_code == 201
    refused = enrol(control, token, "till-2b")
    assert refused.status_code == 403
    assert "used" in refused.json()["error"]["message"]
    # What he has is a device that everybody sees, and nobody's but his own.
    names = {one["id"] for one in control.get("/v1/devices")["devices"]}
    assert names == {"till-1", "till-2"}
    control.post("/v1/devices/till-2/retire")
    assert victim.sync(control.http) == 304


def test_a_retired_thief_hears_nothing_any_more(control: ControlInProcess) -> None:
    thief = control.enrol("till-9")
    assert thief.sync(control.http) == 304
    control.post("/v1/devices/till-9/retire")
    answer = control.http.post(
        "/v1/sync", content=codec.encode_json(thief.request()), headers=thief.headers()
    )
    assert answer.status_code == 403


def test_device_a_cannot_read_report_or_sign_as_device_b(
    control: ControlInProcess,
) -> None:
    publish_sample(
        control.sample.workspace.root, [quick_release(1)], keys=control.sample.keys
    )
    one, two = control.enrol("a"), control.enrol("b")
    control.post("/v1/rollouts", {"release": "sample-1"}, status=201)
    control.play(one, two)
    assert one.newest.device == "a"
    assert two.newest.device == "b"
    # A session is a device's own: whatever the body says, it speaks for that one.
    body = codec.to_plain(two.request())
    answer = control.http.post(
        "/v1/sync", json={**body, "device": "b"}, headers=one.headers()
    )
    assert answer.status_code in {200, 304, 422}
    if answer.status_code == 200:
        assert '"b"' not in answer.json()["assignment"]
    # B's name with A's key opens nothing.
    message = {
        "device": "b",
        "counter": 99,
        "signature": one.key.sign(b"slmops-session:b:99"),
    }
    assert control.http.post("/v1/session", json=message).status_code == 403
    # Nor does A's session, or none, do what operators do.
    for headers in (one.headers(), {}):
        answer = control.http.get("/v1/devices", headers=headers)
        assert answer.status_code == 403
